"""Words found again in their text, to the character, or not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.text.running_text import divide, locate, locate_with_ranges
from electra_hf.text.tagged_text import read_tagged_sentences


def cut(text, spans):
    return [text[start:end] for start, end in spans]


def test_a_word_is_found_with_its_blanks_and_none_around_it():
    text = "Trả lời\u00a0phỏng  vấn,ông"
    assert cut(text, locate(["Trả lời", "phỏng vấn", ",", "ông"], text)) == ["Trả lời", "phỏng  vấn", ",", "ông"]


@pytest.mark.parametrize("words", [["la"], ["la", "kato", "kato"], ["kato", "la"], ["la", "Kato"]])
def test_a_text_of_other_words_has_no_spans(words):
    assert locate(words, "la kato") is None


def test_a_word_without_a_character_has_an_empty_span():
    assert locate(["a", " ", "b", ""], "a b") == [(0, 1), (2, 2), (2, 3), (3, 3)]


@given(
    words=st.lists(st.text(min_size=1)), blanks=st.lists(st.sampled_from(["", " ", "\u3000", " \n"])), data=st.data()
)
def test_words_of_any_characters_are_found_wherever_blanks_stand(words, blanks, data):
    gaps = [data.draw(st.sampled_from(["", " ", "\u3000", " \n"])) for _ in words]
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=True))
    spans = locate(words, text)
    assert ["".join(part.split()) for part in cut(text, spans)] == ["".join(word.split()) for word in words]
    assert all(a <= b for a, b in spans) and spans == sorted(spans)


def test_a_contraction_is_divided_where_its_words_are_written_and_shared_where_not():
    text = "we've du pain"
    assert cut(text, divide((0, 5), text, ["we", "'ve"])) == ["we", "'ve"]
    assert divide((6, 8), text, ["de", "le"]) == [(6, 8), (6, 8)]


def test_ranges_without_a_label_cover_the_words_that_the_text_does_not_show():
    words = ["Je", "mange", "du", "de", "le", "pain", "I'm", "I", "'m", "nenio", "."]
    are_words = [word not in ("du", "I'm", "nenio") for word in words]
    text = "Je mange du pain I'm."
    assert cut(text, locate_with_ranges(words, are_words, text)) == [
        *["Je", "mange", "du", "du", "pain", "I", "'m", "."]
    ]
    assert locate_with_ranges(["Je", "de"], [True, True], "Je") is None
    assert locate_with_ranges(["Je"], [True], "Je mange") is None


# CoNLL-U

ROW = "{}\t{}\t_\tX\t_\t_\t_\t_\t_\t{}"


def read(tmp_path, *lines):
    path = tmp_path / "a.conllu"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return read_tagged_sentences(path)


def test_the_text_of_a_sentence_counts_also_where_no_word_says_space_after(tmp_path):
    (sentence,) = read(
        tmp_path, "# text = 食べた。", *(ROW.format(i, w, "_") for i, w in enumerate("食べ た 。".split(), 1))
    )
    assert sentence.text == "食べた。" and sentence.spans == [(0, 2), (2, 3), (3, 4)]


def test_a_file_that_says_nothing_about_blanks_has_no_running_text(tmp_path):
    (sentence,) = read(tmp_path, "# text_en = He ate.", ROW.format(1, "食べ", "_"), ROW.format(2, "た", "Gloss=past"))
    assert sentence.text is None and sentence.spans is None


def test_one_word_that_joins_the_next_says_it_for_the_whole_file(tmp_path):
    lines = [ROW.format(1, "Jes", "_"), "", ROW.format(1, "Ne", "Gloss=no|SpaceAfter=No"), ROW.format(2, "!", "_")]
    assert [sentence.text for sentence in read(tmp_path, *lines)] == ["Jes", "Ne!"]


def test_a_text_of_other_words_is_not_taken_and_counted_with_its_line(tmp_path, caplog):
    lines = ["# text = Je", ROW.format(1, "Jes", "_"), "", "# sent_id = 2", "# text = Ne", ROW.format(1, "Ne", "_")]
    first, second = read(tmp_path, *lines)
    assert first.spans is None and second.spans == [(0, 2)]
    assert "a.conllu: the `# text` of 1 sentences, the one at line 1 first" in caplog.text
    assert "each word by itself" in caplog.text
    caplog.clear()
    (joined,) = read(tmp_path, "# text = La kat.", ROW.format(1, "kato", "SpaceAfter=No"), ROW.format(2, ".", "_"))
    assert joined.text == "kato." and "how SpaceAfter joins the words is taken" in caplog.text


def test_ranges_and_empty_nodes_are_no_words_but_a_range_is_what_is_written(tmp_path):
    lines = ["# text = du pain", ROW.format("1-2", "du", "_"), ROW.format(1, "de", "SpaceAfter=No")]
    lines += [ROW.format(2, "le", "_"), ROW.format("2.1", "bon", "_"), ROW.format(3, "pain", "_")]
    (sentence,) = read(tmp_path, *lines)
    assert sentence.words == ["de", "le", "pain"] and sentence.text == "du pain"
    assert sentence.spans == [(0, 2), (0, 2), (3, 7)]

"""The corpus from files to two splits: what is cleaned, counted, dropped, held out, and found again."""

import json
import time
import unicodedata
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text import corpus
from electra_hf.text.corpus import (
    CorpusArguments,
    SeenHashes,
    clean_batch,
    format_report,
    hash_texts,
    load_corpus,
    normalise_texts,
    split_batch,
)
from electra_hf.text.exclusion import TaggedSentences, sentence_key
from electra_hf.text.tagged_text import TaggedSentence


@pytest.fixture
def load(tmp_path):
    """Writes files into a folder of the test and loads the corpus from them."""

    def load(files, **kwargs):
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(content)
        paths = [str(folder / name) for name in files]
        return load_corpus(CorpusArguments(corpus_files=paths, data_cache_dir=str(tmp_path / "cache"), **kwargs))

    return load


def numbered(start, stop):
    return "".join(f"Frazo numero {i}.\n" for i in range(start, stop))


def nonzero(counts):
    return {name: count for name, count in counts.items() if count}


def normalise(*texts):
    return normalise_texts({"text": list(texts)})


def test_normalise_composes_letters_and_collapses_white_space():
    decomposed = unicodedata.normalize("NFD", "ĉu  ŝi\u00a0\u2028ĝojas\t?")
    assert normalise(decomposed, " ", "")["text"] == ["ĉu ŝi ĝojas ?", "", ""]


def test_nul_and_control_characters_become_a_counted_space():
    batch = normalise("a\x00b\x07c\x7fd\x93e\ufffdf", "a\tb\x0bc\x85d")
    assert batch == {"text": ["a b c d e f", "a b c d"], "control_characters": [5, 0]}  # white space is not counted


@given(st.lists(st.text()))
def test_normalising_twice_changes_nothing_more(texts):
    once = normalise(*texts)
    assert normalise(*once["text"]) == {"text": once["text"], "control_characters": [0] * len(texts)}
    assert not any(unicodedata.category(character) == "Cc" for text in once["text"] for character in text)


def test_normalise_and_hash_are_map_functions_of_datasets():
    dataset = (
        Dataset.from_dict({"text": ["a  b", "ĉ"]}).map(normalise_texts, batched=True).map(hash_texts, batched=True)
    )
    # Pinned (xxhash 4.1): with another hash every sentence could change sides between two releases.
    assert dataset["text"][:] == ["a b", "ĉ"]
    assert dataset["hash"][:] == [9242785727729118284, 4776004906153061801]


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=30))
def test_seen_hashes_agree_with_a_set(batches):
    seen, reference = SeenHashes(), set()
    for batch in batches:
        expected = [not (value in reference or reference.add(value)) for value in batch]
        assert seen.add(np.array(batch, dtype=np.uint64)).tolist() == expected
    sizes = [len(run) for run in seen.runs]
    assert sum(sizes) == len(reference) and all(a > 2 * b for a, b in zip(sizes, sizes[1:], strict=False))


def test_a_sentence_comes_once_and_every_drop_is_counted(load):
    splits, report = load({"a.txt": "unu\ndu\n\n du \n", "b.txt": "tri\nunu\n\x00\n"}, test_share=0)
    assert splits["train"]["text"][:] == ["unu", "du", "tri"] and len(splits["test"]) == 0
    first, second = report["sources"]
    assert first.pop("name").endswith("a.txt") and second.pop("name").endswith("b.txt")
    assert nonzero(first) == {"read": 4, "empty": 1, "duplicate": 1, "kept": 2}
    assert nonzero(second) == {"read": 3, "empty": 1, "duplicate": 1, "kept": 1, "control_characters": 1}
    assert report["splits"] == {
        "train": {"sentences": 3, "characters": 8},
        "test": {"sentences": 0, "characters": 0},
    }


@pytest.mark.parametrize("encoding_errors", ["replace", "skip"])
def test_what_was_read_is_what_was_dropped_and_kept(load, encoding_errors):
    content = b"unu\ncaf\xe9\n\ndu\ndu\n" + b"vorto " * 20_000
    _, report = load({"a.txt": content}, encoding_errors=encoding_errors, test_share=0)
    total = report["total"]
    assert total["undecodable"] == 1 and total["cut"] == 1 and total["read"] == 7
    dropped = total["empty"] + total["duplicate"] + (encoding_errors == "skip")
    assert total["read"] == dropped + total["kept"]


def test_the_split_has_its_share_and_no_sentence_on_both_sides(load):
    splits, report = load({"a.txt": numbered(0, 5000)}, test_share=0.1)
    train, test = set(splits["train"]["text"]), set(splits["test"]["text"])
    assert len(train) + len(test) == 5000 and not train & test
    assert 400 < len(test) < 600  # 500 expected, standard deviation 21
    assert report["splits"]["test"]["sentences"] == len(test)
    assert report["splits"]["train"]["characters"] == sum(map(len, train))


def test_adding_a_file_moves_no_sentence_across(load):
    before, _ = load({"b.txt": numbered(1000, 2000)}, test_share=0.1)
    after, _ = load({"a.txt": numbered(0, 1500), "b.txt": numbered(1000, 2000)}, test_share=0.1)
    for split in ("train", "test"):
        assert set(before[split]["text"]) <= set(after[split]["text"])


def test_a_larger_test_share_only_adds_to_the_test_part():
    batch = {"text": [f"frazo {i}" for i in range(1000)]}
    batch |= hash_texts(batch)
    parts = [set(split_batch(batch, share)["test"]) for share in (0, 0.01, 0.3, 0.9999)]
    assert parts[0] == set() and parts[0] < parts[1] < parts[2] < parts[3]


def test_an_empty_file_is_left_out_with_a_warning(load, caplog):
    splits, _ = load({"empty.txt": "", "a.txt": "unu\n"}, test_share=0)
    assert splits["train"]["text"][:] == ["unu"]
    assert "empty.txt is empty" in caplog.text and "a.txt is" not in caplog.text


@pytest.mark.parametrize("content", ["", "\n \n\x00\n"])
def test_an_empty_corpus_is_an_error_and_leaves_nothing_behind(load, tmp_path, content):
    with pytest.raises(InputError, match="the corpus is empty"):
        load({"a.txt": content})
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_empty_test_part_is_an_error_with_the_way_out(load):
    with pytest.raises(InputError, match="held out none. Raise it, or add text"):
        load({"a.txt": "unu\n"}, test_share=0.001)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no corpus is named"),
        ({"corpus_files": ["a"], "test_share": 1.0}, "test_share"),
        ({"corpus_files": ["a"], "test_share": -0.1}, "test_share"),
        ({"corpus_files": ["a"], "encoding_errors": "ignore"}, "encoding_errors"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        CorpusArguments(**settings)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="data_cache_dir"):
        load_corpus(
            CorpusArguments(corpus_files=[str(tmp_path / "file")], data_cache_dir=str(tmp_path / "file" / "x"))
        )


WORD_TAG = "Mi PRON\nlegas VERB\n. PUNCT\n\nĈu PART\nli PRON\n? PUNCT\n"
CONLLU = (
    "# text = Ne gravas\n"
    "1-2\tdel\t_\t_\t_\t_\t_\t_\t_\t_\n"
    "1\tde\t_\tADP\t_\t_\t_\t_\t_\t_\n"
    "2\tel\t_\tDET\t_\t_\t_\t_\t_\t_\n"
    "3\tdomo\t_\tNOUN\t_\t_\t_\t_\t_\t_\n"
    "3.1\tnenio\t_\tX\t_\t_\t_\t_\t_\t_\n"
    "4\t!\t_\tPUNCT\t_\t_\t_\t_\t_\t_\n"
)


def test_tagged_sentences_are_dropped_however_they_are_spaced(load, tmp_path):
    (tmp_path / "pos.txt").write_text(WORD_TAG, encoding="utf-8")
    (tmp_path / "ud").mkdir()
    (tmp_path / "ud" / "x.conllu").write_text(CONLLU, encoding="utf-8")
    (tmp_path / "ud" / "LICENSE.md").write_text("restu\n", encoding="utf-8")
    text = "Mi legas.\n«ĈU li?»\nDel domo!\nde el domo\nMi legas ĝin.\nrestu\n...\n"
    exclude = [str(tmp_path / "pos.txt"), str(tmp_path / "ud")]
    splits, report = load({"a.txt": text}, exclude_files=exclude, test_share=0)
    assert splits["train"]["text"][:] == ["de el domo", "Mi legas ĝin.", "restu", "..."]
    assert report["total"]["excluded"] == 3


def test_a_key_keeps_letters_marks_and_digits():
    assert sentence_key("«Ĉu 3-a\u200b, ne?»") == sentence_key("Ĉu 3 - a , ne ?") == "ĉu3ane"
    assert sentence_key("कि") != sentence_key("का")  # vowel signs are marks


def test_a_second_start_reads_nothing_again(load, tmp_path, monkeypatch):
    splits, report = load({"a.txt": numbered(0, 300)})
    monkeypatch.setattr(corpus, "prepare_corpus", None)
    path = tmp_path / "files" / "a.txt"
    again, same_report = load_corpus(CorpusArguments([str(path)], data_cache_dir=str(tmp_path / "cache")))
    assert same_report == report and again["train"]._fingerprint == splits["train"]._fingerprint


def test_a_changed_file_is_prepared_anew(load):
    load({"a.txt": "unu\n"}, test_share=0)
    splits, _ = load({"a.txt": "unu\ndu\n"}, test_share=0)
    assert splits["train"]["text"][:] == ["unu", "du"]


def test_what_a_killed_run_left_is_cleaned_away(load, tmp_path):
    load({"a.txt": "unu\n"}, test_share=0)
    (prepared,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    prepared.rename(prepared.with_suffix(".incomplete"))  # as if it had been killed before the last step
    (prepared.with_suffix(".incomplete") / "train.arrow").write_bytes(b"half")
    splits, _ = load_corpus(
        CorpusArguments(
            corpus_files=[str(tmp_path / "files" / "a.txt")], data_cache_dir=str(tmp_path / "cache"), test_share=0
        )
    )
    assert splits["train"]["text"][:] == ["unu"] and not prepared.with_suffix(".incomplete").exists()


def test_files_and_a_dataset_become_one_corpus(load, tmp_path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "data.jsonl").write_text('{"text": "unu\\ndu"}\n{"text": "tri"}\n')
    splits, report = load({"a.txt": "tri\nkvar\n"}, dataset_name=str(tmp_path / "hub"), test_share=0)
    assert splits["train"]["text"][:] == ["tri", "kvar", "unu", "du"]
    assert [source["kept"] for source in report["sources"]] == [2, 2]


def test_a_dataset_that_is_not_there_is_named():
    with pytest.raises(InputError, match="dataset_name: me/nowhere cannot be loaded"):
        load_corpus(CorpusArguments(dataset_name="me/nowhere"))


def test_the_report_is_json_and_prints_as_an_aligned_table(load):
    _, report = load({"first.txt": numbered(0, 2000) * 2, "second.txt": "unu\n"}, test_share=0.5)
    assert json.loads(json.dumps(report)) == report
    table, train = format_report(report).split("\ntrain: ")
    assert len({len(line) for line in table.splitlines()}) == 1
    assert [line.split() for line in table.splitlines()] == [
        ["corpus", "read", "duplicate", "kept"],
        ["first.txt", "4,000", "2,000", "2,000"],
        ["second.txt", "1", "0", "1"],
        ["total", "of", "2", "4,001", "2,000", "2,001"],
    ]
    assert train.startswith(f"{report['splits']['train']['sentences']:,} sentences, ")


@pytest.mark.parametrize("invisible", ["\u200b", "\u00ad", "\ufeff", "\u2060", "\u200e"])
def test_duplicates_that_differ_in_invisible_characters_are_duplicates(load, invisible):
    texts = [f"Jen la{invisible}bona frazo.", "Jen labona frazo.", "Jen la bona frazo."]
    splits, report = load({"a.txt": "\n".join(texts)}, test_share=0)
    assert splits["train"]["text"][:] in (
        ["Jen labona frazo.", "Jen la bona frazo."],
        ["Jen la bona frazo.", "Jen labona frazo."],
    )
    assert report["total"]["duplicate"] == 1


def test_a_zero_width_non_joiner_is_spelling(load):
    splits, _ = load({"a.txt": "می‌خواهم\nمیخواهم\n"}, test_share=0)
    assert len(splits["train"]) == 2


@pytest.mark.parametrize("setting", ["corpus_files", "exclude_files", "dataset_name", "data_cache_dir", "text_column"])
def test_an_empty_setting_is_refused_by_its_name(setting):
    value = ["a.txt", " "] if setting.endswith("files") else ""
    with pytest.raises(InputError, match=f"{setting}: is empty"):
        CorpusArguments(**{"corpus_files": ["a.txt"], setting: value})


def test_ten_thousand_files_make_one_progress_bar_and_one_warning(load, tmp_path, capfd, caplog):
    files = {f"{number}.txt": f"Frazo {number}.\n" * (number % 2) for number in range(200)}
    load(files, test_share=0)
    assert capfd.readouterr().err.count("\r") < 10
    assert [record.getMessage()[-30:] for record in caplog.records] == ["and 97 others are empty and left out."[-30:]]


def test_a_hub_dataset_that_cannot_be_read_is_one_message(tmp_path):
    (tmp_path / "train.csv").write_text('text,b\n1,"2\n3,4,5,6\n')
    for name in (str(tmp_path), "a" * 5000, "\0", "~nosuchuser", "http://[bad", "/dev/zero"):
        with pytest.raises(InputError, match="dataset_name") as raised:
            load_corpus(CorpusArguments(dataset_name=name, data_cache_dir=str(tmp_path / "cache")))
        assert len(str(raised.value)) < 1_500


@pytest.mark.parametrize("folder", ["\0", "a" * 5000, "/dev/null/x", "\ud800"])
def test_a_cache_that_cannot_be_is_one_message(tmp_path, folder):
    (tmp_path / "a.txt").write_text("unu")
    with pytest.raises(InputError, match="data_cache_dir"):
        load_corpus(CorpusArguments([str(tmp_path / "a.txt")], data_cache_dir=folder))


# Documents


def as_documents(documents):
    return "\n\n".join("\n".join(lines) for lines in documents) + "\n"


def test_a_document_is_kept_dropped_and_counted_as_one(load, tmp_path):
    (tmp_path / "pos.txt").write_text(WORD_TAG, encoding="utf-8")
    documents = [["unu", "du"], ["tri"], ["unu", " du"], ["Jen.", "Mi legas.", "Fino."], ["du", "unu"]]
    splits, report = load(
        {"a.txt": as_documents(documents), "b.jsonl": '{"text": "tri\\n"}\n{"text": "unu"}\n'},
        text_unit="document",
        test_share=0,
        exclude_files=[str(tmp_path / "pos.txt")],
    )
    assert splits["train"]["text"][:] == ["unu du", "tri", "du unu", "unu"]
    assert nonzero(report["total"]) == {"read": 7, "excluded": 1, "duplicate": 2, "kept": 4}
    assert report["text_unit"] == "document" and report["excluded_sentences_found"] == 1
    assert "train: 4 documents" in format_report(report)


def test_the_same_file_as_lines_and_as_documents_is_two_corpora(load):
    files = {"a.txt": as_documents([["unu", "du"], ["tri"]])}
    lines, _ = load(files, test_share=0)
    documents, _ = load(files, test_share=0, text_unit="document")
    again, report = load(files, test_share=0)
    assert lines["train"]["text"][:] == again["train"]["text"][:] == ["unu", "du", "tri"]
    assert documents["train"]["text"][:] == ["unu du", "tri"]
    assert report["text_unit"] == "line"


@given(
    documents=st.lists(st.lists(st.sampled_from(["unu", "du tri", "kvar"]), min_size=1, max_size=4), max_size=20),
    batches=st.integers(1, 5),
)
def test_each_document_is_whole_in_one_split_and_none_is_twice(documents, batches):
    texts, seen, splits = [" ".join(lines) for lines in documents], SeenHashes(), {"train": [], "test": []}
    for start in range(0, len(texts), batches):
        batch = clean_batch({"text": texts[start : start + batches]}, TaggedSentences([]), seen, Counter())
        for split, kept in split_batch(batch, 0.4).items():
            splits[split] += kept
    assert sorted(splits["train"] + splits["test"]) == sorted(set(texts))


def test_a_unit_that_is_none_is_named():
    with pytest.raises(InputError, match="text_unit: expected line or document, got 'page'"):
        CorpusArguments(["a"], text_unit="page")


def test_a_corpus_of_empty_documents_says_so(load):
    with pytest.raises(InputError, match="corpus is empty. Of 2 documents read: 2 empty"):
        load({"a.jsonl": '{"text": ""}\n{"text": "\\n"}\n'}, text_unit="document")


def test_a_long_document_with_many_starts_of_tagged_sentences_is_looked_through_at_once(tmp_path):
    sentences = [f"la kato numero {number} dormas sur la tablo" for number in range(50)]
    tagged = TaggedSentences(TaggedSentence(text.split(), ["X"], "a", [1]) for text in sentences)
    document = "la kato numero mil " * 20_000 + sentences[7]
    start = time.perf_counter()
    assert tagged.find(document) == {sentence_key(sentences[7])}
    assert time.perf_counter() - start < 10  # a look at all borders at each start took minutes

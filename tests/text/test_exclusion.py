"""Tagged sentences are found in running text, whole or inside, however they are spaced."""

import pytest

from electra_hf.errors import InputError
from electra_hf.text.corpus import CorpusArguments, format_report, load_corpus
from electra_hf.text.exclusion import TaggedSentences, sentence_key
from electra_hf.text.tagged_text import TaggedSentence


def of(*texts):
    return TaggedSentences(TaggedSentence(text.split(), ["X"] * len(text.split()), "a", [1]) for text in texts)


@pytest.mark.parametrize(
    ("tagged", "text"),
    [
        ("Li iris hejmen .", "Li iris hejmen."),
        ("Li iris hejmen .", "Kiam li iris hejmen, pluvis."),
        ("Li iris hejmen .", "«LI  IRIS\u00ad HEJMEN»"),
        ("Jes .", "Jes! Mi venos."),  # a short one, as a sentence of its own
        ("Jes . Ne .", "Jes. Ne."),
        ("3-a de majo 1999", "Tio okazis la 3-an; la 3-a de majo 1999 estis bela."),
        ("彼は昨日来ました 。", "そして彼は昨日来ましたと言う"),
        ("เขา มา เมื่อวาน นี้", "และเขามาเมื่อวานนี้ครับ"),
        ("Straße bei Nacht und Nebel", "Die STRASSE bei Nacht und Nebel."),
    ],
)
def test_a_tagged_sentence_is_found(tagged, text):
    sentences = of(tagged)
    assert sentences.find(text) == {sentence_key(tagged)}
    assert (sentences.number, sentences.number_found) == (1, 1)


@pytest.mark.parametrize(
    ("tagged", "text"),
    [
        ("Jes .", "Jes, mi venos."),  # short: part of too many sentences
        ("Li iris hejmen .", "Li iris hejmenen."),  # ends inside a word
        ("Li iris hejmen .", "Ili iris hejmen."),  # begins inside a word
        ("Li iris hejmen .", "Li iris."),
        (". . .", "..."),
        ("...", ""),
    ],
)
def test_what_is_not_there_is_not_found(tagged, text):
    sentences = of(tagged)
    assert not sentences.find(text) and sentences.number_found == 0


def test_of_the_scripts_without_blanks_every_character_may_begin_a_sentence():
    assert of("我们昨天去了学校").find("他说我们昨天去了学校吗")


def test_a_sentence_that_stands_twice_in_the_tagged_files_counts_twice():
    sentences = of("Li iris hejmen .", "Li iris hejmen !", "Nur unu fojon .")
    sentences.find("Li iris hejmen?")
    assert (sentences.number, sentences.number_found) == (3, 2)


VIETNAMESE = """\
Trả lời VERB
phỏng vấn VERB
, PUNCT
ông NOUN
nói VERB
. PUNCT

Nov Jorko PROPN
estas AUX
granda ADJ
"""
ROWS = [
    *("1-2 Del _", "1 De _", "2 el _", "3 Nova\u00a0Jorko SpaceAfter=No", "3.1 nenio _", "4 . _"),
]
CONLLU = "# text = Del Nova Jorko.\n" + "".join(
    "\t".join([number, form.replace("\u00a0", " "), *"_" * 7, misc]) + "\n"
    for number, form, misc in (row.split(" ") for row in ROWS)
)


@pytest.fixture
def load(tmp_path):
    def load(text, **files):
        for name, content in {"corpus_txt": text, **files}.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        exclude = [str(tmp_path / name.replace("_", ".")) for name in files]
        return load_corpus(
            CorpusArguments(
                [str(tmp_path / "corpus.txt")], exclude_files=exclude, test_share=0, data_cache_dir=str(tmp_path / "c")
            )
        )

    return load


def test_words_that_hold_blanks_are_read_as_the_tagger_reads_them_and_the_report_says_what_was_found(load):
    splits, report = load(
        "Trả lời phỏng vấn, ông nói.\nMi scias, ke Nov-Jorko estas granda.\nrestu\n", pos_txt=VIETNAMESE
    )
    assert splits["train"]["text"][:] == ["restu"]
    assert (report["excluded_sentences"], report["excluded_sentences_found"]) == (2, 2)
    assert report["total"]["excluded"] == 2
    assert "exclude_files: 2 of 2 tagged sentences were found in the corpus" in format_report(report)


def test_conllu_without_tags_excludes_by_the_text_that_it_stands_for(load):
    splits, report = load("Li venis del Nova Jorko, kaj restis\nde el Nova Jorko\n", x_conllu=CONLLU)
    assert splits["train"]["text"][:] == ["de el Nova Jorko"]
    assert (report["excluded_sentences"], report["excluded_sentences_found"]) == (1, 1)


def test_without_exclude_files_the_report_says_none_of_none(load):
    _, report = load("unu\n")
    assert (report["excluded_sentences"], report["excluded_sentences_found"]) == (0, 0)


def test_a_sentence_that_is_not_in_the_corpus_is_seen_in_the_report(load):
    _, report = load("unu\n", pos_txt=VIETNAMESE)
    assert (report["excluded_sentences"], report["excluded_sentences_found"]) == (2, 0)


def test_a_tagged_file_that_cannot_be_read_is_named_by_its_line(load):
    with pytest.raises(InputError, match="pos.txt, line 2: expected 3 columns"):
        load("unu\n", pos_txt="a b X\nc Y\n")

"""The tagged sample of the quickstart: consistent, apart, and hard for who looks at single words."""

from collections import Counter, defaultdict
from pathlib import Path

from electra_hf.text.tagged_text import read_tagged_sentences

DATA = Path(__file__).parents[2] / "recipes" / "quickstart" / "data"
TRAIN, TEST = (read_tagged_sentences(DATA / f"pos-{part}.txt") for part in ("train", "test"))

# Words that have one tag wherever they stand in these sentences.
ALWAYS = {
    "DET": "the a an every each any some all no another",
    "ADP": "of in from by at into with without between for on per during under through",
    "CCONJ": "and or",
    "AUX": "was were be been can may must should will would",
    "PRON": "it its they their them you your we our which who whose nothing",
    "PART": "not",
    "SCONJ": "if unless because whether when where",
    "PUNCT": ". , ; : ?",
}
CAN_BE_TWO = (
    "set return like that use call list name test sort copy load open close mean run start end to so this before"
)


def tags_of(sentences):
    tags = defaultdict(Counter)
    for sentence in sentences:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            tags[word.lower()][tag] += 1
    return tags


def test_there_are_some_hundred_sentences_and_none_stands_twice():
    assert len(TRAIN) >= 300 and len(TEST) >= 100
    texts = [" ".join(sentence.words).lower() for sentence in TRAIN + TEST]
    assert len(set(texts)) == len(texts)


def test_the_tags_are_those_of_the_labels_file_and_of_universal_dependencies():
    labels = (DATA / "pos-labels.txt").read_text().split()
    assert {tag for sentence in TRAIN + TEST for tag in sentence.tags} == set(labels) and labels == sorted(labels)
    universal = "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X"
    assert set(labels) <= set(universal.split())


def test_words_with_one_use_have_one_tag():
    tags = tags_of(TRAIN + TEST)
    for tag, words in ALWAYS.items():
        found = {word: set(tags[word]) for word in words.split() if word in tags}
        if tag in ("DET", "PRON"):  # "which line", and "some" alone
            found = {word: kinds - {"DET", "PRON"} or {tag} for word, kinds in found.items()}
        assert {word: kinds for word, kinds in found.items() if kinds != {tag}} == {}


def test_words_with_two_uses_are_met_in_both():
    tags = tags_of(TRAIN + TEST)
    assert [word for word in CAN_BE_TWO.split() if len(tags[word]) < 2] == []


def test_a_sentence_begins_with_a_capital_and_ends_with_a_mark():
    for sentence in TRAIN + TEST:
        assert sentence.words[0][0].isupper() and sentence.words[-1] in (".", "?"), sentence.words
        assert "PUNCT" not in sentence.tags[0]

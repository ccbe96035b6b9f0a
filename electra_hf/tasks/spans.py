"""Spans such as names and chunks: tags in one of four schemes, which one it is, and scores of whole spans."""

import re
from collections.abc import Iterable

from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from electra_hf.errors import InputError
from electra_hf.text.tagged_text import TaggedSentence

# The order is the one in which `recognise_scheme` tries them: tags that fit several are read by the first.
SCHEMES = {"iob2": IOB2, "iob1": IOB1, "iobes": IOBES, "bilou": BILOU}
_END_AND_SINGLE = {"iobes": ("E", "S"), "bilou": ("L", "U")}
Span = tuple[int, int, str]  # first word, word behind the last one, type


def read_spans(tags: list[str], scheme: str) -> list[Span]:
    """The spans of one sentence, by seqeval, in strict reading: tags that do not fit the scheme make no span."""
    prefixes = scheme.upper()  # the name of a scheme is the list of its prefixes
    # seqeval raises an error at a prefix that the scheme does not have.
    tags = [tag if tag[0] in prefixes else "O" for tag in tags]
    return [(span.start, span.end, span.tag) for span in Entities([tags], SCHEMES[scheme]).entities[0]]


def write_tags(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """The tags of a sentence of `length` words that has these spans."""
    tags, before = ["O"] * length, None
    for start, end, kind in sorted(spans):
        # All inside first; the first and the last word are then written over.
        tags[start:end] = [f"I-{kind}"] * (end - start)
        # In IOB1 a B only parts a span from one of the same type right before it.
        if scheme != "iob1" or before == (start, kind):
            tags[start] = f"B-{kind}"
        if scheme in _END_AND_SINGLE:
            last, single = _END_AND_SINGLE[scheme]
            tags[end - 1] = f"{single if end - start == 1 else last}-{kind}"
        before = (end, kind)
    return tags


def find_misfits(tags: list[str], scheme: str) -> list[int]:
    """The words whose tag does not fit the scheme: to read the spans and to write them again gives another tag."""
    # seqeval passes over such tags without a word, so they are found by what is lost on the way.
    again = write_tags(read_spans(tags, scheme), len(tags), scheme)
    return [word for word, (tag, fitting) in enumerate(zip(tags, again, strict=True)) if tag != fitting]


def recognise_scheme(sentences: list[TaggedSentence], tag_scheme: str = "auto") -> str | None:
    """The scheme of the tags, one of `SCHEMES`; None where they are bare tags, such as parts of speech.

    `tag_scheme` names it; "none" says that the tags are bare, and "auto" looks. Raises `InputError` where all tags are
    O, and where tags that look like spans do not keep to one scheme.
    """
    if tag_scheme == "none" or (tag_scheme == "auto" and not _look_like_spans(sentences)):
        return None
    if all(tag == "O" for sentence in sentences for tag in sentence.tags):
        raise InputError(f"{sentences[0].source}: every tag is O, so there is no span to learn or to find.")
    misfits = {}
    for scheme in SCHEMES if tag_scheme == "auto" else [tag_scheme]:
        misfits[scheme] = _first_misfit(sentences, scheme)
        if misfits[scheme] is None:
            return scheme
    # The scheme that fits most words before its first misfit is probably the one that was meant.
    scheme, (_, place) = max(misfits.items(), key=lambda item: item[1][0])
    expected = "one scheme for all spans (IOB1, IOB2, IOBES or BILOU)" if tag_scheme == "auto" else scheme.upper()
    raise InputError(
        f"{place} does not fit {scheme.upper()}. Expected {expected}. Correct the tag; or set tag_scheme: none if the "
        "tags are no spans."
    )


def _look_like_spans(sentences):
    tags = {tag for sentence in sentences for tag in sentence.tags}
    return all(re.match(r"O$|[BIESLU]-.", tag) for tag in tags)


def _first_misfit(sentences, scheme):
    """How many words fit before the first that does not, and where that one stands; None where all fit."""
    words = 0
    for sentence in sentences:
        for word in find_misfits(sentence.tags, scheme):
            return words + word, f"{sentence.source}, line {sentence.lines[word]}: the tag {sentence.tags[word]}"
        words += len(sentence.tags)
    return None


def score_each_type(
    predictions: list[list[str]], references: list[list[str]], scheme: str
) -> list[tuple[str, float, float, float, int]]:
    """Rows (type, precision, recall, F1, spans in the gold tags), the most frequent type first."""
    kinds = sorted({kind for tags in references + predictions for *_, kind in read_spans(tags, scheme)})
    columns = precision_recall_fscore_support(
        references, predictions, average=None, scheme=SCHEMES[scheme], zero_division=0
    )
    rows = zip(kinds, *(column.tolist() for column in columns), strict=True)
    return sorted(rows, key=lambda row: (-row[4], row[0]))

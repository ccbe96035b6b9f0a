"""Tagged text in files: `word TAG` lines, CoNLL columns and CoNLL-U; and files of labels."""

import re
from dataclasses import dataclass
from pathlib import Path

from electra_hf.errors import InputError
from electra_hf.text.readers import read_files
from electra_hf.text.sources import inner_name


@dataclass
class TaggedSentence:
    """Words and their tags; `lines` says where in `source` each word stands (rows for a Hub dataset)."""

    words: list[str]
    tags: list[str]
    source: str
    lines: list[int]


def read_tagged_sentences(name: str | Path) -> list[TaggedSentence]:
    """Read tagged text, local or by URL: CoNLL-U (words and UPOS), else the first column and the last of each line.

    A blank line ends a sentence. Columns stand between tabs or, in a line without tabs, spaces; every line has as many
    as the first. Where that is two, a word may hold spaces. Raises `InputError` with the line.
    """
    sentences = [sentence for source, lines in read_files(name) for sentence in _parse(source, lines)]
    if not sentences:
        raise InputError(
            f"{name} holds no tagged word. Expected lines like `hundo NOUN`, a blank line between sentences."
        )
    return sentences


def _parse(source, lines):
    is_conllu = inner_name(source).endswith(".conllu") or _looks_like_conllu(lines)
    read_row = _read_conllu_row if is_conllu else _read_columns
    sentences, rows, num_columns = [], [], None
    for number, line in enumerate([*lines, ""], start=1):
        if not line.strip(" \t"):
            if rows:
                numbers, words, tags = zip(*rows, strict=True)
                sentences.append(TaggedSentence(list(words), list(tags), source, list(numbers)))
            rows = []
            continue
        try:
            word, tag, num_columns = read_row(line, num_columns)
        except ValueError as error:
            raise InputError(f"{source}, line {number}: {error}") from None
        if word is not None:
            rows.append((number, word, tag))
    return sentences


def read_labels(name: str | Path) -> list[str]:
    """Read a labels file: one label per line, in the order of the model's outputs. Raises `InputError`."""
    labels = {}
    for source, number, line in ((s, n, line) for s, lines in read_files(name) for n, line in enumerate(lines, 1)):
        label = line.strip()
        if len(label.split()) > 1:
            raise InputError(f"{source}, line {number}: expected one label per line, found {label[:80]!r}.")
        if label in labels:
            raise InputError(f"{source}, line {number}: the label '{label}' stands in line {labels[label]} already.")
        if label:
            labels[label] = number
    if not labels:
        raise InputError(f"{name} holds no label. Expected one per line.")
    return list(labels)


def _read_columns(line, num_columns):
    line = line.strip(" \t")
    columns = re.split(r" *\t[ \t]*" if "\t" in line else " +", line)
    if num_columns == 2 and "\t" not in line:
        columns = re.split(r" +(?=[^ ]+$)", line)  # a word may hold a space: "t. e. SYM"
    expected = num_columns or max(2, len(columns))
    if len(columns) != expected:
        raise ValueError(
            f"expected {expected} columns (the word first, its tag last), found {len(columns)}: {line[:80]!r}."
        )
    word = None if columns[0] == "-DOCSTART-" else columns[0]  # CoNLL-2003's border between documents
    return word, columns[-1], expected


def _read_conllu_row(line, num_columns):
    if line.startswith("#"):
        return None, None, num_columns
    columns = line.split("\t")
    if len(columns) != 10:
        raise ValueError(f"expected the 10 columns of CoNLL-U, parted by tabs, found {len(columns)}: {line[:80]!r}.")
    identifier, word, tag = columns[0], columns[1], columns[3]
    if re.fullmatch(r"\d+[-.]\d+", identifier):  # a multiword range such as 1-2, an empty node such as 1.1
        return None, None, num_columns
    if not identifier.isdecimal():
        raise ValueError(
            f"expected a word's number, a range (1-2) or an empty node (1.1) first, found {identifier!r}."
        )
    if tag in ("_", ""):
        raise ValueError(f"the word {word!r} has no tag in column 4 (UPOS).")
    return word, tag, num_columns


def _looks_like_conllu(lines):
    rows = (line.split("\t") for line in lines if line.strip() and not line.startswith("#"))
    first = next(rows, [])
    return len(first) == 10 and re.fullmatch(r"\d+([-.]\d+)?", first[0])

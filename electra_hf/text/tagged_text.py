"""Tagged text in files: `word TAG` lines, CoNLL columns and CoNLL-U; and files of labels."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from electra_hf.errors import InputError
from electra_hf.text.names import inner_name, printable
from electra_hf.text.readers import read_files, read_source_files
from electra_hf.text.running_text import Span, divide, locate
from electra_hf.text.sources import Source

logger = logging.getLogger(__name__)


@dataclass
class TaggedSentence:
    """Words and their tags; `lines` says where in `source` each word stands (rows for a Hub dataset).

    `text` is the sentence as running text and `spans` are the characters of each word in it, where the source says how
    the words stand together; else both are None.
    """

    words: list[str]
    tags: list[str]
    source: str
    lines: list[int]
    text: str | None = None
    spans: list[Span] | None = None


@dataclass
class _Block:
    """The lines of one sentence, with their numbers in the file."""

    source: str
    lines: list[tuple[int, str]]


def read_tagged_sentences(name: str | Path) -> list[TaggedSentence]:
    """Read tagged text, local or by URL: CoNLL-U (words and UPOS), else the first column and the last of each line.

    A blank line ends a sentence. Columns stand between tabs or, in a line without tabs, spaces; every line has as many
    as most have. Where that is two, a word may hold spaces. A first column of running numbers is none of the words,
    and comments such as `# id 7` before a sentence are left out. Raises `InputError` with the line.
    """
    sentences = [sentence for source, lines in read_files(name) for sentence in _parse(source, lines, need_tags=True)]
    if not sentences:
        raise InputError(
            f"{name} holds no tagged word. Expected lines like `hundo NOUN`, a blank line between sentences."
        )
    return sentences


def read_source(source: Source, need_tags: bool = True) -> Iterator[TaggedSentence]:
    """Yield the sentences of one file or archive; without `need_tags`, words alone are enough. Raises `InputError`."""
    for name, lines in read_source_files(source):
        yield from _parse(name, lines, need_tags)


def _parse(source, lines, need_tags):
    is_conllu = inner_name(source).endswith(".conllu") or _looks_like_conllu(lines)
    blocks = list(_blocks(source, lines))
    sentences = _read_conllu_file(source, blocks, need_tags) if is_conllu else _read_columns(blocks, need_tags)
    return [sentence for sentence in sentences if sentence.words]


def _blocks(source, lines):
    block = []
    for number, line in enumerate([*lines, ""], start=1):  # the blank line at the end closes the last sentence
        if line.strip(" \t"):  # other white space, such as a no-break space, can be a word
            block.append((number, line))
        elif block:
            yield _Block(source, block)
            block = []


def _refuse(source, number, reason) -> NoReturn:
    raise InputError(f"{source}, line {number}: {reason}")


# Columns


def _read_columns(blocks, need_tags):
    """The sentences of a file of columns, whose layout is seen from all of its lines."""
    # The tags come first: they help to distinguish a word `#` from a comment.
    tags = {_split(line)[-1] for block in blocks for _, line in block.lines if not line.startswith("#")}
    blocks = [_Block(block.source, _without_comments(block.lines, tags)) for block in blocks]
    counts = Counter(len(_split(line)) for block in blocks for _, line in block.lines)
    # Of equally common numbers the first one counts: the error then names the line that deviates.
    expected = max(2 if need_tags else 1, counts.most_common(1)[0][0] if counts else 0)
    rows = [_read_rows(block, expected) for block in blocks]
    # With two columns the first one is all that could be words.
    word = 1 if expected > 2 and _are_running_numbers(blocks, rows) else 0
    for block, columns in zip(blocks, rows, strict=True):
        lines = [number for number, _ in block.lines]
        yield TaggedSentence([row[word] for row in columns], [row[-1] for row in columns], block.source, lines)


def _split(line):
    line = line.strip(" \t")
    # Several tabs in a row part two columns, as several spaces do where there are no tabs.
    return re.split(r" *\t[ \t]*" if "\t" in line else " +", line)


def _without_comments(lines, tags):
    start = next((index for index, (_, line) in enumerate(lines) if not _is_comment(line, tags)), len(lines))
    # CoNLL-2003 begins each document with such a line.
    return [(number, line) for number, line in lines[start:] if not line.startswith("-DOCSTART-")]


def _is_comment(line, tags):
    """Whether this is `# id 7 domain=eo` or `#begin document 3`: its last column is a tag of no other word."""
    return re.match(r"#( |begin |end )", line) is not None and len(line.split()) > 2 and _split(line)[-1] not in tags


def _read_rows(block, expected):
    rows = []
    for number, line in block.lines:
        columns = _split(line)
        if "\t" not in line and expected < 3:  # a word may hold a space: "t. e. SYM"
            columns = re.split(r" +(?=[^ ]+$)", line.strip()) if expected == 2 else [line.strip()]
        if len(columns) != expected:
            reason = (
                f"expected {expected} columns (the word first, its tag last), found {len(columns)}: {line[:80]!r}."
            )
            _refuse(block.source, number, reason)
        rows.append(columns)
    return rows


def _are_running_numbers(blocks, rows):
    """Whether the first column numbers the words. Raises `InputError` where it holds nothing but other numbers."""
    columns = [[row[0] for row in sentence] for sentence in rows]
    # A single word may well be a number.
    if sum(map(len, columns)) < 2 or not all(_is_number(word) for column in columns for word in column):
        return False
    for block, column in zip(blocks, columns, strict=True):
        for (number, _), before, after in zip(block.lines[1:], column[:-1], column[1:], strict=True):
            if int(after) != int(before) + 1:
                reason = f"expected words in the first column, found numbers only, here {after} after {before}."
                _refuse(block.source, number, f"{reason} Remove the column.")
    return True


def _is_number(word):
    return word.isdecimal() and len(word) < 10  # no sentence has more words, and int() refuses thousands of digits


# CoNLL-U


def _looks_like_conllu(lines):
    # The first row decides: a later one that is no CoNLL-U is then refused with its line.
    rows = (line.split("\t") for line in lines if line.strip() and not line.startswith("#"))
    first = next(rows, [])
    return len(first) == 10 and re.fullmatch(r"\d+([-.]\d+)?", first[0])


@dataclass
class _Unit:
    """What stands in the text for one word, or for several: `du` for the words `de` and `le`."""

    form: str
    blank_after: str
    words: list[str] = field(default_factory=list)


def _read_conllu_file(source, blocks, need_tags):
    read = [(block, *_read_conllu(block, need_tags)) for block in blocks]
    # A file that joins no two words anywhere says nothing about blanks, unless it has the text itself.
    joins = any(not unit.blank_after or len(unit.words) != 1 for _, _, units in read for unit in units)
    misfits = []
    for block, sentence, units in read:
        text = next((line.partition("=")[2].strip() for _, line in block.lines if re.match(r"# *text *=", line)), None)
        spans = text and locate([unit.form for unit in units], text)
        if text and not spans:
            misfits.append(block.lines[0][0])
        # SpaceAfter is the second choice: `# text` is the sentence as it was written.
        if not spans and joins:
            text = "".join(unit.form + unit.blank_after for unit in units).strip()
            spans = locate([unit.form for unit in units], text)
        if spans:
            sentence.text = text
            sentence.spans = [
                one for span, unit in zip(spans, units, strict=True) for one in divide(span, text, unit.words)
            ]
        yield sentence
    if misfits:
        instead = "how SpaceAfter joins the words" if joins else "each word by itself"
        logger.warning(
            "%s: the `# text` of %s sentences, the one at line %s first, does not hold their words in their order. "
            "There, %s is taken.",
            *(printable(source), len(misfits), misfits[0], instead),
        )


def _read_conllu(block, need_tags):
    """The sentence, without its text, and the units of that text."""
    sentence, units = TaggedSentence([], [], block.source, []), []
    covered = 0  # the last word of the range before
    for number, line in block.lines:
        if line.startswith("#"):
            continue
        identifier, form, tag, blank_after = _read_conllu_row(block.source, number, line)
        first, _, last = identifier.partition("-")
        # "3-4 du" stands for the words 3 and 4, "de le"; "8.1" is an empty node, which no text shows.
        if last or (first.isdecimal() and int(first) > covered):
            units.append(_Unit(form, blank_after))
            covered = int(last or 0) or covered
        if identifier.isdecimal():
            if need_tags and tag in ("_", ""):
                _refuse(block.source, number, f"the word {form!r} has no tag in column 4 (UPOS).")
            units[-1].words.append(form)
            sentence.words.append(form)
            sentence.tags.append(tag)
            sentence.lines.append(number)
    return sentence, units


def _read_conllu_row(source, number, line):
    columns = line.split("\t")
    if len(columns) != 10:
        reason = f"expected the 10 columns of CoNLL-U, parted by tabs, found {len(columns)}: {line[:80]!r}."
        _refuse(source, number, reason)
    identifier = columns[0]
    if not re.fullmatch(r"\d{1,9}([-.]\d{1,9})?", identifier):
        reason = f"expected a word's number, a range (1-2) or an empty node (1.1) first, found {identifier[:20]!r}."
        _refuse(source, number, reason)
    return identifier, columns[1], columns[3], "" if "SpaceAfter=No" in columns[9].split("|") else " "


# Labels


def read_labels(name: str | Path) -> list[str]:
    """Read a labels file: one label per line, in the order of the model's outputs. Raises `InputError`."""
    labels = {}  # with their lines; in the order of the file, which is the order of the model's outputs
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

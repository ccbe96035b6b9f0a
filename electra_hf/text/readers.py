"""From a stream of bytes to lines of text: plain, Leipzig, JSON Lines, CSV, TSV and Parquet, in bounded memory.

Every reader yields (line number, bytes), so that one place decodes, and every error can name the line.
"""

import codecs
import csv
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from electra_hf.errors import InputError
from electra_hf.text.columns import require_column, text_batches, texts_of_tables
from electra_hf.text.names import TAGGED_SUFFIXES, inner_suffix, is_sentences
from electra_hf.text.prepared import cache_folder
from electra_hf.text.sources import Source, find_sources, open_texts

# A line longer than this is cut, at a blank where there is one: ten thousand words are no sentence.
LONGEST_LINE = 1 << 16  # bytes
LONGEST_RECORD = 1 << 26  # bytes: a line of JSON or CSV, which cannot be cut, or a document of a text file
CHUNK = 1 << 18  # bytes
LINES_TO_JUDGE = 1_000  # of a file, to see whether its lines are numbered


def read_sentences(
    source: Source, text_column: str, encoding_errors: str, counts: Counter, text_unit: str = "line"
) -> Iterator[str]:
    """Yield every text of a file or archive, decoded but not yet normalised.

    `text_unit` says what a text is. "line": each line, also of a record. "document": each record; of a text file, the
    lines between two blank ones, or a line alone where lines are numbered: those of a Leipzig archive stand in no
    order. `encoding_errors`: strict | replace | skip, for each line or record. `counts` gains "read", "undecodable",
    "cut" and "numbered". Raises `InputError`.
    """
    for name, stream in open_texts(source):
        if read := _record_reader(name, stream):
            records = _texts_of_records(read(name, stream, text_column), text_unit, counts)
            yield from decode(records, name, encoding_errors, counts)
        elif text_unit == "line":
            lines = decode(_split(read_lines(stream, counts), counts), name, encoding_errors, counts)
            yield from _drop_numbers(lines, is_sentences(name), counts)
        else:
            yield from _read_documents(name, stream, encoding_errors, counts)


def read_dataset(
    dataset: Dataset, name: str, text_column: str, counts: Counter, text_unit: str = "line"
) -> Iterator[str]:
    """Yield every text of a `datasets.Dataset` as `read_sentences` does for a file. Raises `InputError`."""
    records = _number(text_batches(dataset, name, text_column))
    return decode(_texts_of_records(records, text_unit, counts), name, "strict", counts)


def _texts_of_records(records, text_unit, counts):
    return _split(records, counts) if text_unit == "line" else records


def _read_documents(name, stream, encoding_errors, counts):
    of_lines = Counter()  # of lines; the report counts documents
    lines = decode(read_lines(stream, of_lines), name, encoding_errors, of_lines)
    # A stream can be read once: the lines that are looked at are put in front of the rest again.
    start = list(islice(lines, LINES_TO_JUDGE))
    lines = chain(start, lines)
    if is_sentences(name) or are_numbered(start):
        texts = _without_numbers(lines, counts)
    else:
        texts = _join_documents(lines, name)
    for text in texts:
        counts["read"] += 1
        yield text
    counts["undecodable"] += of_lines["undecodable"]


def _join_documents(lines, name):
    """The lines between blank ones as one text. A very long line comes in pieces, which have no line end between."""
    document, size, number, first = [], 0, 1, 1
    for line in lines:
        number += line.endswith(("\n", "\r"))
        if not line.isspace():
            document.append(line)
            size += len(line)
            if size > LONGEST_RECORD:
                raise InputError(
                    f"{name}: the document that begins at line {first} has more than {LONGEST_RECORD >> 20} million "
                    "characters. Put blank lines between documents, or set text_unit: line."
                )
            continue
        if document:
            yield "".join(document)
        document, size, first = [], 0, number
    if document:
        yield "".join(document)


def _record_reader(name, stream):
    """The reader for a file that holds records, or None for lines of text."""
    # Parquet by its first bytes, whatever the file is called; JSON and CSV are text and have only their names.
    if stream.peek(4)[:4] == b"PAR1":
        return _read_parquet
    return {
        **dict.fromkeys((".json", ".jsonl", ".ndjson"), _read_json_lines),
        **dict.fromkeys((".csv", ".tsv"), _read_csv),
    }.get(inner_suffix(name))


def read_lines(stream: BinaryIO, counts: Counter) -> Iterator[tuple[int, bytes]]:
    r"""Yield (number, line) for lines ended by \n, \r\n or \r; a very long line comes in pieces of one number."""
    number, pending = 1, b""
    while chunk := stream.read(CHUNK):
        # bytes.splitlines knows these three ends only: U+2028 and U+0085 stay inside their sentence.
        *lines, pending = (pending + chunk).splitlines(keepends=True)  # the last may go on, and so may its \r\n
        for line in lines:
            yield number, line
            number += 1
        if len(pending) > LONGEST_LINE:
            *pieces, pending = cut(pending, counts)
            yield from ((number, piece) for piece in pieces)
    if pending:
        yield number, pending


def cut(line: bytes, counts: Counter) -> Iterator[bytes]:
    """Yield pieces of at most `LONGEST_LINE` bytes, cut after a blank or else between characters; counts["cut"]."""
    start = 0
    while len(line) - start > LONGEST_LINE:
        limit = start + LONGEST_LINE
        end = line.rfind(b" ", start, limit) + 1
        if not end:
            # UTF-8 goes on with up to three bytes 10xxxxxx.
            end = next((at for at in range(limit, limit - 4, -1) if line[at] & 0xC0 != 0x80), limit)
        yield line[start:end]
        counts["cut"] += 1
        start = end
    yield line[start:] if start else line


def _split(texts, counts):
    """One sentence per line, also where a record is a whole document, and none beyond the limit."""
    for number, text in texts:
        for line in text.splitlines() or [b""]:
            if len(line) <= LONGEST_LINE:  # nearly all: a generator for each would cost a twentieth of the whole
                yield number, line
            else:
                yield from ((number, piece) for piece in cut(line, counts))


def _read_records(name, stream):
    """Yield (number, line) for readers that need a line whole, however long, up to the limit of memory."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_RECORD + 1), b""), 1):
        if len(line) > LONGEST_RECORD:
            raise InputError(f"{name}, line {number}: longer than {LONGEST_RECORD >> 20} MB. Give the text as .txt.")
        # Here and not in `decode`: a JSON object does not begin with a byte-order mark, nor a column's name.
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _read_json_lines(name, stream, text_column):
    for number, line in _read_records(name, stream):
        if not line.strip():
            continue
        try:
            # Through str and back: a wrong byte, and a lone "\\ud800", reach `decode` and are counted there.
            record = json.loads(line.decode(errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: not one JSON object per line ({error}).") from None
        if not isinstance(record, dict):
            raise InputError(f"{name}, line {number}: a JSON {type(record).__name__} where an object is expected.")
        require_column("text_column", text_column, record, f"{name}, line {number}")
        text = record[text_column]
        if not isinstance(text, (str, type(None))):
            raise InputError(f"{name}, line {number}: {text_column!r} is not text but {type(text).__name__}.")
        yield number, (text or "").encode(errors="surrogatepass")


def _read_csv(name, stream, text_column):
    csv.field_size_limit(LONGEST_RECORD)  # a setting of the whole process; csv has no other
    # In a .tsv a quotation mark is text, as in the files of GLUE and UD; in a .csv it holds a field together.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if inner_suffix(name) == ".tsv" else {"strict": True}
    rows = csv.reader((line.decode(errors="surrogateescape") for _, line in _read_records(name, stream)), **style)
    try:
        header = next(rows, None)
        if header is None:
            return
        require_column("text_column", text_column, header, name)
        column = header.index(text_column)
        for row in rows:
            if row and len(row) <= column:
                raise InputError(
                    f"{name}, line {rows.line_num}: {len(row)} columns where the header has {len(header)}."
                )
            if row:
                yield rows.line_num, row[column].encode(errors="surrogateescape")
    except csv.Error as error:
        raise InputError(f"{name}, line {rows.line_num}: not valid CSV ({error}).") from None


def _read_parquet(name, stream, text_column):
    with tempfile.TemporaryFile() as file:
        # Parquet begins at its end, and a stream has none.
        if not stream.seekable():
            shutil.copyfileobj(stream, file)
            stream = file
        stream.seek(0)
        try:
            parquet = pq.ParquetFile(stream)
            require_column("text_column", text_column, parquet.schema_arrow.names, name)
            # The one column: the others are not even decompressed.
            tables = parquet.iter_batches(1000, columns=[text_column])
            yield from _number(texts_of_tables(tables, name, text_column))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name}: not a whole Parquet file ({error}).") from None


def _number(batches):
    """Yield (number, text) for arrays of texts, a missing one as an empty one."""
    return enumerate((text or b"" for texts in batches for text in texts.to_pylist()), start=1)


def read_files(name: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, lines) of every text that a path, glob, folder or URL of tagged files or labels names.

    The lines have no line ends. Raises `InputError`.
    """
    for source in find_sources([str(name)], cache_folder() / "downloads", TAGGED_SUFFIXES):
        yield from read_source_files(source)


def read_source_files(source: Source) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, lines) of every text in one file or archive, as `read_files` does. Raises `InputError`."""
    for name, stream in open_texts(source):
        counts = Counter()
        lines = decode(read_lines(stream, counts), name, "strict", counts)
        yield name, [line.rstrip("\r\n") for line in lines]


def decode(lines: Iterable[tuple[int, bytes]], name: str, encoding_errors: str, counts: Counter) -> Iterator[str]:
    """Yield the lines as text; `counts` gains "read" and "undecodable". Raises `InputError` at bytes not in UTF-8."""
    for number, line in lines:
        counts["read"] += 1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            counts["undecodable"] += 1
            # A message about the first byte of such a file would not say what is wrong with all of it.
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise InputError(f"{name}: is in UTF-16. Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW") from None
            if encoding_errors == "strict":
                raise InputError(
                    f"{name}, line {number}, byte {error.start + 1}: 0x{line[error.start]:02x} is not UTF-8. Convert "
                    "the file with iconv; for a corpus you may also set encoding_errors to replace or skip."
                ) from None
            if encoding_errors == "skip":
                continue
            text = line.decode(errors="replace")
        yield text.removeprefix("\ufeff") if number == 1 else text


def _drop_numbers(texts, is_leipzig, counts):
    """Take the numbers away where lines are numbered; counts["numbered"] says of how many lines."""
    start = list(islice(texts, LINES_TO_JUDGE))
    texts = chain(start, texts)
    return _without_numbers(texts, counts) if is_leipzig or are_numbered(start) else texts


def are_numbered(lines: list[str]) -> bool:
    """Whether 49 of 50 lines, and two at least, are a number, a tab and a text, with numbers that rise."""
    # Rising, since the first column of a table may hold any numbers.
    numbers = [int(number) for number in map(_number_of, lines) if number]
    rising = sum(low < high for low, high in zip(numbers, numbers[1:], strict=False)) + 1
    return len(numbers) > 1 and min(len(numbers), rising) >= 0.98 * sum(map(bool, map(str.strip, lines)))


def _number_of(line):
    number, tab, _ = line.partition("\t")
    number = number.strip()
    # A longer one is no line number, and int() would refuse one of thousands of digits.
    return number if tab and number.isdecimal() and len(number) < 19 else ""


def _without_numbers(texts, counts):
    numbered = 0
    for text in texts:
        number, tab, rest = text.partition("\t")
        if tab and number.strip().isdecimal():
            numbered += 1
            text = rest
        yield text
    counts["numbered"] += numbered

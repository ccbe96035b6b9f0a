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
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from electra_hf.errors import InputError
from electra_hf.text.sources import TAGGED_SUFFIXES, Source, default_cache, find_sources, inner_name, open_texts

# A line longer than this is cut, at a blank where there is one: ten thousand words are no sentence.
LONGEST_LINE = 1 << 16  # bytes
LONGEST_RECORD = 1 << 26  # bytes: a line of JSON or CSV, which cannot be cut
CHUNK = 1 << 18  # bytes


def read_sentences(source: Source, text_column: str, encoding_errors: str, counts: Counter) -> Iterator[str]:
    """Yield every line of a file or archive as text, decoded but not yet normalised.

    `encoding_errors`: strict | replace | skip. `counts` gains "read", "undecodable" and "cut". Raises `InputError`.
    """
    for name, stream in open_texts(source):
        lines = _split(_read_texts(name, stream, text_column, counts), counts)
        texts = decode(lines, name, encoding_errors, counts)
        yield from _drop_index(texts) if inner_name(name).endswith("-sentences.txt") else texts


def read_dataset(dataset: Dataset, name: str, text_column: str, counts: Counter) -> Iterator[str]:
    """Yield every line of a `datasets.Dataset` as `read_sentences` does for a file. Raises `InputError`."""
    _require(text_column, dataset.column_names, name)
    tables = dataset.select_columns(text_column).with_format("arrow").iter(1000)
    return decode(_split(_texts_of_tables(tables, name, text_column), counts), name, "strict", counts)


def _read_texts(name, stream, text_column, counts):
    suffix = PurePosixPath(inner_name(name)).suffix
    if stream.peek(4)[:4] == b"PAR1":
        return _read_parquet(name, stream, text_column)
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _read_json_lines(name, stream, text_column)
    if suffix in (".csv", ".tsv"):
        return _read_csv(name, stream, text_column, is_tab_separated=suffix == ".tsv")
    return read_lines(stream, counts)


def read_lines(stream, counts: Counter) -> Iterator[tuple[int, bytes]]:
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
            for piece in cut(line, counts):
                yield number, piece


def _read_records(name, stream):
    """Yield (number, line) for readers that need a line whole, however long, up to the limit of memory."""
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_RECORD + 1), b""), 1):
        if len(line) > LONGEST_RECORD:
            raise InputError(f"{name}, line {number}: longer than {LONGEST_RECORD >> 20} MB. Give the text as .txt.")
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _require(text_column, columns, place):
    if text_column not in columns:
        raise InputError(f"{place}: no column {text_column!r}, only {', '.join(columns)}. Set text_column.")


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
        _require(text_column, record, f"{name}, line {number}")
        text = record[text_column]
        if not isinstance(text, (str, type(None))):
            raise InputError(f"{name}, line {number}: {text_column!r} is not text but {type(text).__name__}.")
        yield number, (text or "").encode(errors="surrogatepass")


def _read_csv(name, stream, text_column, is_tab_separated):
    csv.field_size_limit(LONGEST_RECORD)  # a setting of the whole process; csv has no other
    # In a .tsv a quotation mark is text, as in the files of GLUE and UD; in a .csv it holds a field together.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tab_separated else {"strict": True}
    rows = csv.reader((line.decode(errors="surrogateescape") for _, line in _read_records(name, stream)), **style)
    try:
        header = next(rows, None)
        if header is None:
            return
        _require(text_column, header, name)
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
            _require(text_column, parquet.schema_arrow.names, name)
            yield from _texts_of_tables(parquet.iter_batches(1000, columns=[text_column]), name, text_column)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name}: not a whole Parquet file ({error}).") from None


def _texts_of_tables(tables, name, text_column):
    number = 0
    for table in tables:
        column = table[text_column]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(f"{name}: the column {text_column!r} is not text but {column.type}.")
        # As bytes: Arrow does not look whether its strings are UTF-8.
        for text in column.cast(pa.large_binary()).to_pylist():
            number += 1
            yield number, text or b""


def read_files(name: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, lines) of every text that a path, glob, folder or URL of tagged files or labels names.

    The lines have no line ends. Raises `InputError`.
    """
    for source in find_sources([str(name)], default_cache() / "downloads", TAGGED_SUFFIXES):
        for text_name, stream in open_texts(source):
            counts = Counter()
            lines = decode(read_lines(stream, counts), text_name, "strict", counts)
            yield text_name, [line.rstrip("\r\n") for line in lines]


def decode(lines: Iterable[tuple[int, bytes]], name: str, encoding_errors: str, counts: Counter) -> Iterator[str]:
    """Yield the lines as text; `counts` gains "read" and "undecodable". Raises `InputError` at bytes not in UTF-8."""
    for number, line in lines:
        counts["read"] += 1
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            counts["undecodable"] += 1
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


def _drop_index(texts):
    for text in texts:
        index, tab, sentence = text.partition("\t")
        yield sentence if tab and index.strip().isdecimal() else text

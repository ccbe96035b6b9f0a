"""Tables in files and datasets, read row by row: TSV, CSV, JSON Lines and Parquet, compressed or not.

A row knows where it stands, so that whoever refuses its content can name the file and the line.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset
from datasets.table import InMemoryTable

from electra_hf.errors import InputError
from electra_hf.text.names import inner_suffix
from electra_hf.text.prepared import cache_folder
from electra_hf.text.readers import decode
from electra_hf.text.sources import find_sources, open_texts

TABLE_SUFFIXES = {".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".parquet"}
LARGEST_FIELD = 1 << 26  # bytes of a CSV field


@dataclass
class Row:
    """One row: its cells by column, and where it stands, for a message: `FILE, line 3` or `DATASET, row 3`."""

    place: str
    cells: dict[str, Any]
    fault: str | None = None  # what is wrong with the row as a whole


def read_table(name: str | Path, columns_without_header: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of every file that a path, glob, folder or URL names. Raises `InputError` with file and line.

    In a .tsv (and .txt) a quotation mark is text; in a .csv it holds a field together. `columns_without_header` are
    the columns of a .tsv whose first line is a row already; it has a header after all if one of them stands in it.
    """
    for source in find_sources([str(name)], cache_folder() / "downloads", TABLE_SUFFIXES):
        for text_name, stream in open_texts(source):
            yield from _read_rows(text_name, stream, columns_without_header)


def _read_rows(name, stream, columns_without_header):
    suffix = inner_suffix(name)
    # By content first: Parquet under another name would be refused as broken text.
    if stream.peek(4)[:4] == b"PAR1":
        return _read_parquet(name, stream)
    # `strict`: a label with a wrong letter is another label, so nothing is replaced here.
    lines = decode(enumerate(stream, start=1), name, "strict", Counter())
    if suffix in (".json", ".jsonl", ".ndjson"):
        return _read_json_lines(name, lines)
    if suffix == ".csv":
        return _with_header(name, _read_csv(name, lines))
    if suffix in (".tsv", ".txt"):
        return _with_header(name, _read_tsv(lines), columns_without_header)
    raise InputError(f"{name}: expected a table in .tsv, .csv, .jsonl or .parquet, compressed or not.")


def _read_tsv(lines):
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        # A line of tabs is a row of empty cells and no blank line: it is kept, so that it can be reported.
        if line.strip(" "):
            yield number, line.split("\t")


def _read_csv(name, lines):
    csv.field_size_limit(LARGEST_FIELD)  # a setting of the whole process; csv has no other
    # Lenient, it would take half a file for one field after a lost quotation mark.
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if cells:
                # A row of CSV may span lines; this is the last one of it, the one an editor shows as broken.
                yield reader.line_num, cells
    except csv.Error as error:
        raise InputError(
            f"{name}, line {reader.line_num}: not valid CSV ({error}). Put a field with a comma, a quotation mark or "
            'a line end between quotation marks, and write a quotation mark in it twice ("").'
        ) from None


def _with_header(name, rows, columns_without_header=()):
    header = list(columns_without_header)
    for number, cells in rows:
        # CoLA has no header. A copy whose maker added one is still read right.
        if number == 1 and (not header or set(header) & set(cells)):
            header = [cell.strip() for cell in cells]
            twice = [column for column, count in Counter(header).items() if count > 1]
            if twice:
                raise InputError(f"{name}, line 1: the column {twice[0]!r} stands there twice. Rename one.")
            continue
        if not header:
            raise InputError(f"{name}, line 1: expected the names of the columns, found an empty line.")
        # Not an error here: QQP's official file has such lines, and the task decides.
        fault = None
        if len(cells) != len(header):
            fault = f"expected {len(header)} columns ({', '.join(header)}), found {len(cells)}"
        yield Row(f"{name}, line {number}", dict(zip(header, cells, strict=False)), fault)


def _read_json_lines(name, lines):
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: expected one JSON object per line ({error}).") from None
        if not isinstance(cells, dict):
            raise InputError(
                f"{name}, line {number}: expected one JSON object per line, found a {type(cells).__name__}."
            )
        yield Row(f"{name}, line {number}", cells)


def _read_parquet(name, stream):
    try:
        table = pq.read_table(io.BytesIO(stream.read()))  # Parquet begins at its end, and a stream has none
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}: not a whole Parquet file ({error}). Fetch or make it again.") from None
    return read_dataset_rows(Dataset(InMemoryTable(table)), name)


def read_dataset_rows(dataset: Dataset, name: str) -> Iterator[Row]:
    """Yield the rows of a dataset, with the names of its class labels in place of their numbers; -1 becomes None."""
    classes = {column: kind for column, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
    for number, cells in enumerate(dataset.with_format(None), start=1):
        for column, kind in classes.items():
            label = cells[column]
            cells[column] = None if label is None or label < 0 else kind.int2str(label)
        yield Row(f"{name}, row {number}", cells)

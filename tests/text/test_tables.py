import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text.tables import read_dataset_rows, read_table

ROWS = [{"text": 'He said "no', "label": "1"}, {"text": "a, b; ĉu?", "label": "zwei"}]


def write(path, suffix, rows):
    if suffix == ".tsv":
        lines = ["\t".join(rows[0])] + ["\t".join(row.values()) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif suffix == ".csv":
        quoted = [[cell.replace('"', '""') for cell in row.values()] for row in rows]
        path.write_text("\n".join([",".join(rows[0])] + [",".join(f'"{cell}"' for cell in row) for row in quoted]))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix, compressed):
    path = tmp_path / f"rows{suffix}"
    write(path, suffix, ROWS)
    if compressed:
        zipped = tmp_path / f"rows{suffix}.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        path = zipped
    assert [row.cells for row in read_table(path)] == ROWS


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cells=st.lists(st.text(st.characters(exclude_characters="\t\r\n", codec="utf-8"), min_size=1), min_size=1))
def test_what_stands_between_tabs_is_text_whatever_it_is(tmp_path, cells):
    path = tmp_path / "any.tsv"
    path.write_text("id\ttext\n" + "".join(f"1\t{cell}\n" for cell in cells), newline="\n")
    rows = list(read_table(path))
    assert [row.cells["text"] for row in rows] == cells
    assert [row.place for row in rows] == [f"{path}, line {number}" for number in range(2, len(cells) + 2)]


def test_a_byte_order_mark_and_windows_line_ends_do_not_stay_in_a_cell(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffQuality\tString\r\n1\tSaluton\r\n".encode())
    assert [row.cells for row in read_table(path)] == [{"Quality": "1", "String": "Saluton"}]


def test_a_file_without_a_header_has_the_columns_that_are_named_and_one_with_a_header_its_own(tmp_path):
    (tmp_path / "bare.tsv").write_text("gj04\t1\t\tA text.\n")
    (tmp_path / "headed.tsv").write_text("sentence\tlabel\nA text.\t1\n")
    columns = ("source", "label", "mark", "sentence")
    (bare,), (headed,) = (list(read_table(tmp_path / name, columns)) for name in ("bare.tsv", "headed.tsv"))
    assert bare.cells == {"source": "gj04", "label": "1", "mark": "", "sentence": "A text."}
    assert headed.cells == {"sentence": "A text.", "label": "1"}


def test_a_ragged_line_says_what_was_expected(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\ngood\t1\nbad\n")
    good, bad = read_table(tmp_path / "a.tsv")
    assert good.fault is None
    assert bad.place.endswith("line 3") and "expected 2 columns (text, label), found 1" in bad.fault


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\nno\n', "line 2: expected one JSON object"),
        ("a.jsonl", b"[1]\n", "line 1: expected one JSON object per line, found a list"),
        ("a.csv", b'text,label\n"never closed,1\n', "not valid CSV"),
        ("a.tsv", b"text\ttext\na\tb\n", "the column 'text' stands there twice"),
        ("a.tsv", b"text\tlabel\n\xff\t1\n", "line 2, byte 1: 0xff is not UTF-8"),
        ("a.parquet", b"PAR1 and nothing more", "not a whole Parquet file"),
        ("a.doc", b"text", "expected a table in .tsv, .csv, .jsonl or .parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="a\\.") as refusal:
        list(read_table(tmp_path / name))
    assert words in str(refusal.value)


def test_class_labels_become_their_names_and_minus_one_becomes_none():
    features = Features({"label": ClassLabel(names=["no", "yes"]), "text": Value("string")})
    dataset = Dataset.from_dict({"label": [1, -1, 0], "text": ["a", "b", "c"]}, features=features)
    rows = list(read_dataset_rows(dataset, "glue[test]"))
    assert [row.cells["label"] for row in rows] == ["yes", None, "no"]
    assert rows[1].place == "glue[test], row 2"

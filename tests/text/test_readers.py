"""Bytes to lines: what ends a line, what is refused with its place, and what the record formats hold."""

import io
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text import readers
from electra_hf.text.columns import texts_of_tables
from electra_hf.text.readers import LONGEST_LINE, cut, read_dataset, read_lines, read_sentences
from electra_hf.text.sources import Source


def read(tmp_path, content, name="a.txt", text_column="text", encoding_errors="strict"):
    (tmp_path / name).write_bytes(content)
    counts = Counter()
    texts = list(read_sentences(Source(name, tmp_path / name), text_column, encoding_errors, counts))
    return texts, counts


def test_lines_end_at_lf_crlf_and_cr_only(tmp_path):
    separators = "unu\u2028du\u2029tri\u0085kvar\x0bkvin\x0cses\x1csep"
    texts, counts = read(tmp_path, f"a\nb\r\nc\rd\n\ne{separators}".encode())
    assert texts == ["a", "b", "c", "d", "", f"e{separators}"]
    assert counts["read"] == 6


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_a_line_end_may_fall_on_the_border_of_two_chunks(monkeypatch, chunk):
    monkeypatch.setattr(readers, "CHUNK", chunk)
    lines = list(read_lines(io.BytesIO(b"ab\r\ncd\r\r\nef\n\ngh\r"), Counter()))
    assert [(number, line.rstrip(b"\r\n")) for number, line in lines] == list(
        enumerate([b"ab", b"cd", b"", b"ef", b"", b"gh"], 1)
    )


def test_a_byte_order_mark_goes_at_the_start_of_the_file_and_nowhere_else(tmp_path):
    assert read(tmp_path, "\ufeffunu\n\ufeffdu\n".encode())[0] == ["unu", "\ufeffdu"]
    assert read(tmp_path, '\ufeff{"text": "unu"}\n'.encode(), "a.jsonl")[0] == ["unu"]
    assert read(tmp_path, "\ufefftext,n\nunu,1\n".encode(), "a.csv")[0] == ["unu"]


def test_strict_names_file_line_and_byte(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt, line 2, byte 4: 0xe9 is not UTF-8.*encoding_errors"):
        read(tmp_path, b"bona\n" + "café\n".encode("latin-1"))


@pytest.mark.parametrize("wrong", [b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_a_lone_surrogate_and_whatever_else_utf8_forbids_is_named(tmp_path, wrong):
    with pytest.raises(InputError, match=r"a\.txt, line 1, byte 2: 0x.. is not UTF-8"):
        read(tmp_path, b"a" + wrong + b"\n")


def test_replace_and_skip_count_the_lines_that_are_not_utf8(tmp_path):
    content = b"bona\ncaf\xe9\nfino\n"
    assert read(tmp_path, content, encoding_errors="replace") == (
        ["bona", "caf\ufffd", "fino"],
        {"read": 3, "undecodable": 1},
    )
    assert read(tmp_path, content, encoding_errors="skip") == (["bona", "fino"], {"read": 3, "undecodable": 1})


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("encoding_errors", ["strict", "replace"])
def test_utf16_is_refused_with_the_command_that_converts_it(tmp_path, encoding, encoding_errors):
    with pytest.raises(InputError, match="iconv -f UTF-16"):
        read(tmp_path, "\ufeffsaluton\n".encode(encoding), encoding_errors=encoding_errors)


def test_leipzig_loses_its_index_and_only_there(tmp_path):
    content = b"1\tUnu.\n22\t1\tdu\nsen indekso\n"
    assert read(tmp_path, content, "x-sentences.txt")[0] == ["Unu.", "1\tdu", "sen indekso"]
    assert read(tmp_path, content, "x.txt")[0] == ["1\tUnu.", "22\t1\tdu", "sen indekso"]


def test_a_line_of_30_mb_comes_in_pieces_and_loses_nothing(tmp_path):
    line = "vorto ĉ " * (30_000_000 // 9)
    texts, counts = read(tmp_path, f"unu\n{line}\ndu\n".encode())
    assert texts[0] == "unu" and texts[-1] == "du" and "".join(texts[1:-1]) == line
    assert all(len(text.encode()) <= LONGEST_LINE for text in texts)
    assert counts["cut"] == len(texts) - 3 == counts["read"] - 3
    assert all(text.endswith(" ") for text in texts[1:-2])  # no word is broken


def test_without_a_blank_the_cut_falls_between_two_characters():
    line = ("a" + "ĉ" * 100_000).encode()
    pieces = list(cut(line, Counter()))
    assert b"".join(pieces) == line and len(pieces) == 4
    assert [piece.decode()[-1] for piece in pieces] == ["ĉ"] * 4


def test_json_lines(tmp_path):
    records = [{"text": "unu ĉ"}, {"text": None}, {"text": "du\ntri\r\nkvar", "id": 3}]
    content = "\n".join(map(json.dumps, records)) + "\n\n"
    assert read(tmp_path, content.encode(), "a.jsonl")[0] == ["unu ĉ", "", "du", "tri", "kvar"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: not one JSON object"),
        (b'{"text": "a"}\n["text"]\n', "line 2: a JSON list"),
        (b'{"body": "a"}\n', "line 1: no column 'text', only body"),
        (b'{"text": 3}\n', "line 1: 'text' is not text but int"),
        (b'{"text": "a\\ud800"}\n', "line 1, byte 2"),
        (b'{"text": "a\xff"}\n', "line 1, byte 2"),
        (b"[" * 100_000, "line 1: not one JSON object"),
    ],
)
def test_wrong_json_is_named_by_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, "a.jsonl")


def test_a_record_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_RECORD", 1000)
    with pytest.raises(InputError, match="line 2: longer than"):
        read(tmp_path, b'{"text": "a"}\n{"text": "' + b"a" * 1000 + b'"}\n', "a.jsonl")


def test_csv_with_quotes_and_tsv_without(tmp_path):
    content = b'id,text\r\n1,"unu, ""du""\r\ntri"\r\n2,kvar\r\n'
    assert read(tmp_path, content, "a.csv")[0] == ['unu, "du"', "tri", "kvar"]
    content = b'#1 String\tlabel\n"unu\t1\ndu"\t0\n'
    assert read(tmp_path, content, "a.tsv", text_column="#1 String")[0] == ['"unu', 'du"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,body\n1,a\n", "no column 'text', only id, body"),
        (b"id,text\n1,a\n2\n", "line 3: 1 columns where the header has 2"),
        (b'id,text\n1,"a\n', "not valid CSV"),
        (b"id,text\n1,a\xff\n", "line 2, byte 2: 0xff is not UTF-8"),
    ],
)
def test_wrong_csv_is_named_by_its_line(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, "a.csv")


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize("codec", [None, "gzip", "zstd"])
def test_parquet_compressed_or_not(tmp_path, kind, codec):
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2, 3], "text": pa.array(["unu", None, "du\ntri"]).cast(kind)}), file)
    content = pa.compress(file.getvalue(), codec=codec, asbytes=True) if codec else file.getvalue()
    assert read(tmp_path, content, "a.parquet")[0] == ["unu", "", "du", "tri"]


def test_wrong_parquet_is_named(tmp_path):
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2]}), file)
    for column, content, message in [
        ("text", file.getvalue(), "no column 'text', only id"),
        ("id", file.getvalue(), "'id' is not text but int64"),
        ("id", file.getvalue()[:-9], "not a whole Parquet file"),
    ]:
        with pytest.raises(InputError, match=message):
            read(tmp_path, content, "a.parquet", text_column=column)


def test_a_dataset_is_read_like_a_file():
    dataset = Dataset.from_dict({"body": ["unu\ndu", None], "n": [1, 2]}).select([1, 0])
    assert list(read_dataset(dataset, "me/corpus", "body", Counter())) == ["", "unu", "du"]
    with pytest.raises(InputError, match="me/corpus: no column 'text', only body, n"):
        list(read_dataset(dataset, "me/corpus", "text", Counter()))


STARTS = [
    b"",
    b"\x1f\x8b\x08\x00",
    b"BZh91AY&SY",
    b"\xfd7zXZ\x00",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    b"text,n\n",
    b'{"text": ',
]
NAMES = ["a.txt", "x-sentences.txt", "a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.tar", "a.tar.gz"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STARTS),
    st.binary(max_size=600),
    st.sampled_from(NAMES),
    st.sampled_from(["strict", "replace", "skip"]),
)
def test_arbitrary_bytes_give_texts_or_an_input_error(tmp_path, start, content, name, encoding_errors):
    try:
        texts, counts = read(tmp_path, start + content, name, encoding_errors=encoding_errors)
    except InputError as error:
        assert name in str(error)
    else:
        assert all(text.encode() is not None for text in texts)  # no lone surrogate, which Arrow could not hold
        assert counts["read"] == len(texts) + (counts["undecodable"] if encoding_errors == "skip" else 0)


@pytest.mark.parametrize("name", ["a.txt", "numbers", "x-sentences.txt"])
def test_numbered_lines_lose_their_numbers_under_any_name(tmp_path, name):
    content = "".join(f"{3 * number}\tFrazo {number}.\n" for number in range(1, 2_000)) + "sen numero\n"
    texts, counts = read(tmp_path, content.encode(), name)
    assert texts == [f"Frazo {number}." for number in range(1, 2_000)] + ["sen numero"]
    assert counts["numbered"] == 1_999


@pytest.mark.parametrize(
    "content",
    [
        "1\tunu\n",  # one line shows nothing
        "7\tunu\n3\tdu\n5\ttri\n",  # they do not rise
        "1\tunu\n2\tdu\ntri\nkvar\n",  # half
        "1 unu\n2 du\n",
        "1\n2\n",
        f"{'9' * 5000}\tunu\n{'9' * 5000}\tdu\n",
    ],
)
def test_other_numbers_are_text(tmp_path, content):
    assert read(tmp_path, content.encode())[0] == content.splitlines()


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.dictionary(pa.int8(), pa.large_string()), pa.dictionary(pa.int32(), pa.string_view())],
)
def test_any_string_type_of_arrow_is_text(kind):
    values = pa.array(["unu", "du"]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    column = (
        pa.DictionaryArray.from_arrays(pa.array([0, None, 1], kind.index_type), values)
        if pa.types.is_dictionary(kind)
        else values
    )
    (texts,) = texts_of_tables([pa.table({"text": column})], "x", "text")
    assert [text or b"" for text in texts.to_pylist()] == (
        [b"unu", b"", b"du"] if len(column) == 3 else [b"unu", b"du"]
    )


# Documents


def read_documents(tmp_path, content, name="a.txt", **settings):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    counts = Counter()
    settings = {"text_column": "text", "encoding_errors": "strict"} | settings
    texts = read_sentences(Source(name, tmp_path / name), **settings, counts=counts, text_unit="document")
    return [" ".join(text.split()) for text in texts], counts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_document_is_what_stands_between_blank_lines(tmp_path, end):
    content = end.join(["", "unu", "du", "", " \t\u3000", "tri", "", ""])
    assert read_documents(tmp_path, content) == (["unu du", "tri"], {"read": 2, "undecodable": 0})


def test_a_record_is_a_document_in_every_format(tmp_path):
    rows = ["unu\ndu\n\ntri", "kvar", ""]
    texts = ["unu du tri", "kvar", ""]
    content = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    assert read_documents(tmp_path, content, "a.jsonl") == (texts, {"read": 3})
    assert read_documents(tmp_path, 'n,text\n1,"unu\ndu\n\ntri"\n2,kvar\n3,\n', "a.csv")[0] == texts
    pq.write_table(pa.table({"text": rows}), tmp_path / "b.parquet")
    assert read_documents(tmp_path, (tmp_path / "b.parquet").read_bytes(), "a.parquet")[0] == texts
    counts = Counter()
    found = read_dataset(Dataset.from_dict({"text": rows}), "set", "text", counts, "document")
    assert list(found) == rows and counts == {"read": 3}


def test_numbered_sentences_stand_in_no_order_and_stay_texts_of_their_own(tmp_path):
    content = "1\tUnu.\n2\tDu.\n3\tTri.\n"
    for name in ("x-sentences.txt", "x.txt"):
        assert read_documents(tmp_path, content, name) == (
            ["Unu.", "Du.", "Tri."],
            {"read": 3, "numbered": 3, "undecodable": 0},
        )


def test_a_document_longer_than_any_line_may_be_is_not_cut(tmp_path):
    words = "vorto ĉ " * 30_000  # a line of 270 kB: it is read in pieces
    texts, counts = read_documents(tmp_path, f"unu\n{words}\ndu\n\ntri\n")
    assert texts == [f"unu {words}du", "tri"] and counts["cut"] == 0
    assert read_documents(tmp_path, json.dumps({"text": words}), "a.jsonl")[0] == [words.strip()]


def test_a_file_without_blank_lines_that_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_RECORD", 100)
    with pytest.raises(InputError, match=r"a\.txt: the document that begins at line 4 has more.*text_unit: line"):
        read_documents(tmp_path, "unu\n\n\n" + "vorto\n" * 30)


def test_a_line_that_is_not_utf8_is_named_or_skipped_alone(tmp_path):
    content = b"unu\ncaf\xe9\ndu\n\n\xff\n\ntri\n"
    with pytest.raises(InputError, match=r"a\.txt, line 2, byte 4: 0xe9 is not UTF-8"):
        read_documents(tmp_path, content)
    assert read_documents(tmp_path, content, encoding_errors="skip") == (
        ["unu du", "tri"],
        {"read": 2, "undecodable": 2},
    )


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_documents_of_any_lines_come_back_as_they_were(tmp_path, documents):
    documents = [[line for line in lines if line.strip()] for lines in documents]
    documents = [[f"x{line}" for line in lines] for lines in documents if lines]  # no numbers, no byte-order mark
    content = "\n\n".join("\n".join(lines) for lines in documents)
    assert read_documents(tmp_path, content)[0] == [" ".join(" ".join(lines).split()) for lines in documents]

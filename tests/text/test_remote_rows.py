"""Rows in rented storage are copied once, file by file, and a copy that is not whole is never trained from."""

import json
import sys

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from tiny import make_packed_rows

from electra_hf.errors import InputError
from electra_hf.files import digest_folder
from electra_hf.text.packed_rows import open_packed_rows
from electra_hf.text.remote_rows import find_packed_rows

ADDRESS = "memory://bucket/rows"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    texts = [f"la {a} {b} {c} estas." for a in "abcdefg" for b in "hijklm" for c in "nopqrst"]
    return make_packed_rows(tmp_path_factory.mktemp("rows") / "rows", texts)


@pytest.fixture
def storage(rows):
    """Rented storage that holds the rows, and forgets them after the test."""
    files = fsspec.filesystem("memory")
    files.put(str(rows), "/bucket/rows", recursive=True)
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def asked(monkeypatch):
    """The names of the files that were fetched; `asked.last` is the last one that is still given."""

    class Asked(list):
        last = None

    asked, fetch = Asked(), MemoryFileSystem.get_file

    def get_file(self, source, *arguments, **keywords):
        if asked.last is not None and len(asked) == asked.last:
            raise ConnectionError("the line is down")
        asked.append(source.removeprefix("/bucket/rows/"))
        return fetch(self, source, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    return asked


def find(tmp_path, address=ADDRESS):
    return find_packed_rows(address, str(tmp_path / "cache"))


def test_rows_at_an_address_are_copied_once_and_are_the_same(rows, storage, asked, tmp_path):
    folder = find(tmp_path)
    copied = digest_folder(rows)
    assert digest_folder(folder) == copied and sorted(asked) == sorted({*copied} - {"manifest.json"})
    assert len(open_packed_rows(folder).train) == len(open_packed_rows(rows).train)
    asked.clear()
    assert find(tmp_path, f"{ADDRESS}/") == folder and asked == []
    # A file that was damaged is removed by hand, and it alone is copied again.
    (folder / "train" / "00001.arrow").unlink()
    assert find(tmp_path) == folder and asked == ["train/00001.arrow"]
    assert digest_folder(folder) == copied


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_copy_that_was_stopped_goes_on_with_the_files_that_are_missing(rows, storage, asked, tmp_path, number):
    asked.last = number
    with pytest.raises(InputError, match="cannot be read .the line is down.*Check the address, the network"):
        find(tmp_path)
    before, asked.last = list(asked), None
    (unfinished,) = (path for path in (tmp_path / "cache" / "packed_rows").iterdir() if path.is_dir())
    with pytest.raises(InputError, match="no manifest.json"):
        open_packed_rows(unfinished)
    assert find(tmp_path) == unfinished and digest_folder(unfinished) == digest_folder(rows)
    assert len(before) == number and len(asked) == len(set(asked)) == len(digest_folder(rows)) - 1


def test_rows_made_anew_at_the_same_address_are_another_copy(storage, tmp_path):
    first = find(tmp_path)
    manifest = json.loads(storage.cat_file("/bucket/rows/manifest.json"))
    storage.pipe_file("/bucket/rows/manifest.json", json.dumps(manifest | {"tasks": 9}).encode())
    assert find(tmp_path) != first


def change_manifest(storage, **changes):
    manifest = json.loads(storage.cat_file("/bucket/rows/manifest.json"))
    storage.pipe_file("/bucket/rows/manifest.json", json.dumps(manifest | changes).encode())


def cut(storage):
    path = "/bucket/rows/train/00001.arrow"
    storage.pipe_file(path, storage.cat_file(path)[:-9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "rows/train/00001.arrow is cut or changed: it is not as manifest.json says"),
        (lambda storage: storage.rm("/bucket/rows/test/00000.arrow"), r"\(test/00000.arrow is not there\)"),
        (lambda storage: storage.rm("/bucket/rows/manifest.json"), r"\(manifest.json is not there\)"),
        (lambda storage: storage.pipe_file("/bucket/rows/manifest.json", b"\xff{"), "manifest.json names no shards"),
        (lambda storage: change_manifest(storage, shards={"a": {"bytes": 1}}), "manifest.json names no shards"),
        (lambda storage: change_manifest(storage, shards={"a": 1}), "manifest.json names no shards"),
        (lambda storage: change_manifest(storage, files={"../x": "0"}), "outside of its folder, '../x'"),
        (lambda storage: change_manifest(storage, files={"/etc/x": "0"}), "outside of its folder, '/etc/x'"),
    ],
)
def test_rows_that_are_not_whole_there_are_refused_with_the_name_of_the_file(storage, tmp_path, damage, message):
    damage(storage)
    with pytest.raises(InputError, match=f"packed_rows: .*{message}"):
        find(tmp_path)
    assert not list(tmp_path.rglob("manifest.json")) and not list(tmp_path.rglob("*.incomplete"))


def test_what_cannot_be_asked_is_told_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(InputError, match="s3://bucket/rows cannot be opened .Install s3fs to access S3.*with pip"):
        find(tmp_path, "s3://bucket/rows")
    with pytest.raises(InputError, match="cloud://rows cannot be opened .Protocol not known: cloud"):
        find(tmp_path, "cloud://rows")
    with pytest.raises(InputError, match="holds no packed rows .manifest.json is not there"):
        find(tmp_path, "memory://nowhere")

    def refuse(*_):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    with pytest.raises(InputError, match="cannot be read .Access Denied.*whether this account may read it"):
        find(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_told_as_one(storage, tmp_path, monkeypatch, full_disk):
    def get_file(self, source, target):
        with open(full_disk, "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    with pytest.raises(InputError, match="cannot be written .*No space left on device.*data_cache_dir"):
        find(tmp_path)

"""Files are whole or not there."""

import json
import os

import pytest

from electra_hf.errors import InputError
from electra_hf.files import digest_folder, new_folder, read_json, replaced_files, write_json, write_text


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_write_that_the_disk_refuses_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    write_json(tmp_path / "state.json", {"step": 1})
    monkeypatch.setattr(step, refuse)
    with pytest.raises(OSError):
        write_json(tmp_path / "state.json", {"step": 2})
    assert json.loads((tmp_path / "state.json").read_text()) == {"step": 1}
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize("content", ["", '{"step": ', "[1]", "\x00" * 40, "null"])
def test_a_file_that_is_empty_cut_or_something_else_is_named(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(InputError, match="state.json cannot be read"):
        read_json(tmp_path / "state.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="state.json cannot be read: No such file"):
        read_json(tmp_path / "state.json")


def test_a_folder_is_made_as_a_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "corpus") as folder:
        write_text(folder / "text", "la")
        raise KeyError
    assert os.listdir(tmp_path) == []
    for text in ("unu", "du"):
        with new_folder(tmp_path / "corpus") as folder:
            write_text(folder / "text", text)
    assert (tmp_path / "corpus" / "text").read_text() == "du"
    assert os.listdir(tmp_path) == ["corpus"]


def test_files_come_into_a_folder_as_wholes_and_what_else_lies_there_stays(tmp_path):
    write_text(tmp_path / "README.md", "mine")
    write_text(tmp_path / "weights", "old")
    (tmp_path / ".incomplete").mkdir()
    write_text(tmp_path / ".incomplete" / ".tmpOfAKilledRun", "half")
    with pytest.raises(KeyError), replaced_files(tmp_path) as folder:
        write_text(folder / "weights", "half")
        raise KeyError
    assert (tmp_path / "weights").read_text() == "old"
    with replaced_files(tmp_path) as folder:
        write_text(folder / "weights", "new")
    assert (tmp_path / "weights").read_text() == "new" and (tmp_path / "README.md").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["README.md", "weights"]


def test_the_digest_of_a_folder_tells_content_and_names_apart(tmp_path):
    write_text(tmp_path / "a", "x")
    first = digest_folder(tmp_path)
    write_text(tmp_path / "a", "y")
    assert digest_folder(tmp_path) != first and list(first) == ["a"]

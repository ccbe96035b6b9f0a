"""What a disk refuses, as each library tells it: /dev/full takes no byte, a file-size limit takes so many."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from electra_hf.errors import InputError, disk_fault

WRITERS = {
    "python": lambda path: Path(path).write_text("x" * 2000),
    "torch": lambda path: torch.save({"weight": torch.zeros(1000)}, path),
    "safetensors": lambda path: save_file({"weight": torch.zeros(1000)}, path),
    "tokenizers": lambda path: Tokenizer(WordLevel({str(i): i for i in range(1000)}, unk_token="0")).save(str(path)),
}


@pytest.mark.parametrize("library", ["python", "torch", "tokenizers"])  # safetensors writes beside, then renames
def test_a_full_disk_is_known_whichever_library_writes(library, full_disk):
    with pytest.raises(Exception) as caught:
        WRITERS[library](full_disk)
    assert disk_fault(caught.value)
    outer = RuntimeError("while generating")
    outer.__cause__ = caught.value
    assert disk_fault(outer) == disk_fault(caught.value)


@pytest.mark.parametrize("library", WRITERS)
def test_a_limit_on_the_size_of_files_is_known_whichever_library_writes(library, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(Exception) as caught:
            WRITERS[library](tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert disk_fault(caught.value)


def test_a_file_where_a_folder_should_be_is_told_with_its_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        (tmp_path / "file" / "inside").mkdir()
    assert disk_fault(caught.value) == f"{tmp_path}/file/inside: Not a directory"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory"), FileNotFoundError(errno.ENOENT, "No such file"), InputError("x"), None],
)
def test_anything_else_is_not_the_disks_fault(error):
    assert disk_fault(error) is None

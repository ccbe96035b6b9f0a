"""What a disk refuses, as each library tells it: /dev/full takes no byte."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from electra_hf.errors import InputError, disk_fault

FULL = Path("/dev/full")
WRITERS = {
    "python": lambda: FULL.write_text("x"),
    "torch": lambda: torch.save({"weight": torch.zeros(10)}, FULL),
    "tokenizers": lambda: Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(FULL)),
}


@pytest.mark.skipif(not FULL.exists(), reason="Linux has /dev/full")
@pytest.mark.parametrize("library", WRITERS)
def test_a_full_disk_is_known_whichever_library_writes(library):
    with pytest.raises(Exception) as caught:
        WRITERS[library]()
    assert disk_fault(caught.value)
    outer = RuntimeError("while generating")
    outer.__cause__ = caught.value
    assert disk_fault(outer) == disk_fault(caught.value)


def test_a_limit_met_by_safetensors_is_known(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SafetensorError) as caught:
            save_file({"weight": torch.zeros(1000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in disk_fault(caught.value)


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

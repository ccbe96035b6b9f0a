"""What tests share, and the scripts that they start: sizes of the tiny pair, its rows, and draws by the row alone.

It is no part of conftest.py, because each folder of tests may have a file of that name.
"""

import torch

VOCAB_SIZE = 40
LENGTH = 16


def packed(ids):
    """Rows of ids as the trainer takes them."""
    from electra_hf.text.packing import PackedRows

    return PackedRows.from_array(ids.numpy().astype("uint16"))


def by_row(size, device=None):
    """In place of `torch.rand`: draws that depend on the row alone, so that a batch and its parts see the same."""
    return torch.full(size, 0.5) if size[-1] == 1 else torch.linspace(0, 0.999, size[-1]).expand(size)

"""What tests share, and the scripts that they start: sizes of the tiny pair, its rows, and draws by the row alone.

It is no part of conftest.py, because each folder of tests may have a file of that name.
"""

import pyarrow as pa
import torch

VOCAB_SIZE = 40
LENGTH = 16


def packed(ids):
    """Rows of ids as the trainer takes them."""
    from electra_hf.text.packing import PackedRows

    return PackedRows.from_array(ids.numpy().astype("uint16"))


def sharded(ids, folder, sizes):
    """The same rows in Arrow files of so many rows each, as a folder of shards has them."""
    from datasets import concatenate_datasets

    from electra_hf.text.packed_rows import ShardedRows
    from electra_hf.text.prepared import read_arrow

    shards = []
    for number, part in enumerate(ids.split(sizes)):
        table, path = packed(part).dataset.data.table, folder / f"{number}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        shards.append(read_arrow(path, path.name))
    return ShardedRows(concatenate_datasets(shards))


def by_row(size, device=None):
    """In place of `torch.rand`: draws that depend on the row alone, so that a batch and its parts see the same."""
    return torch.full(size, 0.5) if size[-1] == 1 else torch.linspace(0, 0.999, size[-1]).expand(size)

"""Texts to rows of exactly L token ids, written once, memory-mapped, and fetched a batch at a time."""

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from electra_hf.errors import InputError


def pack_dataset(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, num_proc: int | None = None
) -> "PackedRows":
    """Turn the "text" column into rows of exactly `max_length` ids, cached by text, tokenizer and length.

    Raises `InputError` where the texts together do not fill one row.
    """
    if max_length < 3:
        raise InputError(f"max_length: expected at least 3, [CLS] and [SEP] included, got {max_length}.")
    # A copy without what earlier calls left behind (truncation, padding): only the vocabulary may decide the rows.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    rows = dataset.map(
        pack_texts,
        fn_kwargs={
            "tokenizer": backend,
            "cls_token_id": tokenizer.cls_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "max_length": max_length,
            "dtype": dtype,
        },
        batched=True,
        batch_size=10_000,
        writer_batch_size=100_000,
        remove_columns=dataset.column_names,
        features=Features({"input_ids": List(Value(dtype), length=max_length)}),
        num_proc=num_proc,
        desc=f"Packing rows of {max_length}",
    )
    if len(rows) == 0:
        raise InputError(
            f"The {len(dataset)} texts do not fill one row of max_length {max_length} tokens. "
            "Add text, or choose a smaller max_length."
        )
    return PackedRows(rows)


def pack_texts(batch, tokenizer, cls_token_id, sep_token_id, max_length, dtype):
    """Pack a batch of texts into rows [CLS] text [SEP] text … [SEP] (ELECTRA's layout with more than two texts).

    A text may go on in the next row. The last row reaches back so that it is full too: its first ids also stand in the
    row before it. Texts that together do not fill a row give none. Returns input_ids (rows, max_length).
    """
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text about BERT is text
    separator = np.array([sep_token_id], dtype)
    pieces = []
    for start in range(0, len(batch["text"]), 1_000):  # by the thousand, so that documents fit into memory as well
        for encoding in tokenizer.encode_batch_fast(batch["text"][start : start + 1_000], add_special_tokens=False):
            if encoding.ids:
                pieces += [np.array(encoding.ids, dtype), separator]
    stream = np.concatenate(pieces) if pieces else np.empty(0, dtype)
    starts = _row_starts(stream, max_length - 2, sep_token_id)
    rows = np.empty((len(starts), max_length), dtype)
    rows[:, 0], rows[:, -1] = cls_token_id, sep_token_id
    rows[:, 1:-1] = stream[starts[:, None] + np.arange(max_length - 2)]
    return {"input_ids": rows}


def _row_starts(stream, size, sep_token_id):
    starts, start = [], 0
    end = len(stream) - 1  # the row's own [SEP] stands for the last separator
    while start + size <= end:
        starts.append(start)
        start += size
        if stream[start] == sep_token_id:  # that row has closed with it
            start += 1
    if starts and start < end:
        starts.append(end - size)
    return np.array(starts, dtype=np.int64)


class PackedRows(torch.utils.data.Dataset):
    """Rows of exactly L ids in a memory-mapped table; a batch is gathered without a Python object per token."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._open()

    def _open(self):
        # Zero-copy views (rows, L), one per chunk of the Arrow table.
        chunks = self.dataset.data.column("input_ids").chunks
        self.max_length = self.dataset.features["input_ids"].length
        self._chunks = [chunk.flatten().to_numpy().reshape(-1, self.max_length) for chunk in chunks]
        self._starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    def __getstate__(self):
        return {"dataset": self.dataset}  # a worker process maps the file itself

    def __setstate__(self, state):
        self.__init__(**state)

    def __len__(self):
        return len(self.dataset)

    @property
    def num_tokens(self) -> int:
        """Ids in all rows, [CLS] and [SEP] included: the positions that one epoch trains on."""
        return len(self) * self.max_length

    def __getitem__(self, index: int) -> dict:
        """`{"input_ids": (L,) int64}`."""
        return {"input_ids": self.__getitems__([index])[0]}

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """Gather rows as (B, L) int64: the data loader's fetcher asks for a whole batch."""
        chunks = np.searchsorted(self._starts, indices, side="right") - 1
        rows = np.asarray(indices) - self._starts[chunks]
        return torch.from_numpy(
            np.stack([self._chunks[c][r] for c, r in zip(chunks, rows, strict=True)]).astype(np.int64)
        )


def collate_rows(batch: torch.Tensor) -> dict:
    """The batch is whole already: name it. `{"input_ids": (B, L) int64}`."""
    return {"input_ids": batch}

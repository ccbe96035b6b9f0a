"""Texts to rows of exactly L token ids, written once, memory-mapped, and fetched a batch at a time."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from electra_hf.errors import InputError


def pack_dataset(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> "PackedRows":
    """Turn the "text" column into rows of exactly `max_length` ids, cached by text, tokenizer and length.

    Ids are uint16, or uint32 where the vocabulary needs it. Raises `InputError` where the texts together do not fill
    one row.
    """
    if max_length < 3:
        raise InputError(f"max_length: expected at least 3, [CLS] and [SEP] included, got {max_length}.")
    # A copy without what earlier calls may have left behind: truncation and padding must not reach the rows.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    settings = {
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "max_length": max_length,
        "dtype": dtype,
    }
    # Left alone, datasets hashes an imported function by its name: rows packed by an older version would be found.
    source = Path(__file__).read_text(encoding="utf-8")
    fingerprint = Hasher.hash([dataset._fingerprint, backend.to_str(), settings, source])
    rows = dataset.map(
        pack_texts,
        fn_kwargs={"tokenizer": backend, **settings},
        batched=True,
        batch_size=10_000,
        writer_batch_size=100_000,  # one chunk of the table per batch
        remove_columns=dataset.column_names,
        features=Features({"input_ids": List(Value(dtype), length=max_length)}),
        new_fingerprint=fingerprint,
        desc=f"Packing rows of {max_length} ids",
    )
    if len(rows) == 0:
        raise InputError(
            f"The {len(dataset)} texts together do not fill one row of max_length {max_length}. "
            "Give more text (a larger test_share, if these are the ones held out), or choose a smaller max_length."
        )
    return PackedRows(rows)


def pack_texts(batch, tokenizer, cls_token_id, sep_token_id, max_length, dtype):
    """Pack a batch of texts into rows `[CLS] text [SEP] text [SEP] … [SEP]`, a `datasets.map` function.

    As in the original ELECTRA, [CLS] and [SEP] frame a row and [SEP] parts its texts; but a row holds as many texts as
    it takes, all of token type 0, and a text may go on in the next row. The last row reaches back to be full too: it
    begins with ids that also stand in the row before it. Texts that together do not fill a row give none. Returns
    input_ids (rows, max_length).
    """
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text about BERT is text
    ids = (encoding.ids for encoding in _encode(batch["text"], tokenizer))
    stream = np.fromiter(chain.from_iterable(text_ids + [sep_token_id] for text_ids in ids if text_ids), dtype)
    starts = _row_starts(stream, max_length - 2, sep_token_id)
    rows = np.empty((len(starts), max_length), dtype)
    rows[:, 0], rows[:, -1] = cls_token_id, sep_token_id
    rows[:, 1:-1] = stream[starts[:, None] + np.arange(max_length - 2)]
    return {"input_ids": rows}


def _encode(texts, tokenizer):
    for start in range(0, len(texts), 1_000):  # an encoding is large: a whole batch of documents would not fit
        yield from tokenizer.encode_batch_fast(texts[start : start + 1_000], add_special_tokens=False)


def _row_starts(stream, size, sep_token_id):
    """Where in the stream the inside of each row begins."""
    end = len(stream) - 1  # the last separator is the [SEP] that closes the last row
    starts, start = [], 0
    while start + size <= end:
        starts.append(start)
        start += size
        if stream[start] == sep_token_id:  # that row is closed by it: the next one begins with a text
            start += 1
    if starts and start < end:
        starts.append(end - size)
    return np.array(starts, dtype=np.int64)


class PackedRows(torch.utils.data.Dataset):
    """Rows of exactly L ids in a memory-mapped table, gathered a batch at a time without a Python object per token.

    `dataset` has one column, input_ids of a fixed length, and no indices mapping (`torch.utils.data.Subset` selects).
    """

    def __init__(self, dataset: Dataset):
        assert dataset._indices is None, (
            "the rows would be read in the order of the file: call flatten_indices() first"
        )
        self.dataset = dataset
        self.max_length = dataset.features["input_ids"].length
        # Zero-copy views (rows, L), one per chunk of the table, and the number of each one's first row.
        chunks = dataset.data.column("input_ids").chunks
        self._chunks = [chunk.flatten().to_numpy().reshape(-1, self.max_length) for chunk in chunks]
        self._first_rows = np.cumsum([0] + [len(chunk) for chunk in self._chunks])

    @classmethod
    def from_array(cls, rows) -> "PackedRows":
        """Rows in memory, from integers (rows, L)."""
        rows = np.asarray(rows)
        features = Features({"input_ids": List(Value(str(rows.dtype)), length=rows.shape[1])})
        return cls(Dataset.from_dict({"input_ids": rows}, features=features))

    def __getstate__(self):
        return {"dataset": self.dataset}  # pickles as the name of its file: a worker maps it again

    def __setstate__(self, state):
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_tokens(self) -> int:
        """Ids in all rows, [CLS] and [SEP] included: the positions that an epoch trains on."""
        return len(self) * self.max_length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row, `{"input_ids": (L,) int64}`."""
        return {"input_ids": self.__getitems__([index])[0]}

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        """Gather a batch of rows, (B, L) int64; the fetcher of `DataLoader` calls this rather than `__getitem__`."""
        chunks = np.searchsorted(self._first_rows, indices, side="right") - 1
        offsets = indices - self._first_rows[chunks]
        batch = np.empty((len(indices), self.max_length), np.int64)
        # A copy per row is twice as fast as a fancy index per chunk: most rows of a shuffled batch are alone there.
        for row, chunk, offset in zip(batch, chunks.tolist(), offsets.tolist(), strict=True):
            row[:] = self._chunks[chunk][offset]
        return torch.from_numpy(batch)


def check_rows(rows: PackedRows, batch_size: int):
    """Raise `InputError` where there are fewer rows than one batch over all processes takes: nothing would train."""
    if len(rows) < batch_size:
        raise InputError(
            f"The corpus fills {len(rows)} rows of {rows.max_length} tokens, fewer than one batch of {batch_size}. "
            "Add text, or lower per_device_train_batch_size or max_length."
        )


def collate_rows(batch: torch.Tensor | list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the batch that `PackedRows` gathered: `{"input_ids": (B, L) int64}`."""
    if isinstance(batch, list):  # `Trainer` has taken it apart to drop unused columns (remove_unused_columns=True)
        batch = torch.stack(batch)
    return {"input_ids": batch}

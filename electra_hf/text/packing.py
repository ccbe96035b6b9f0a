"""Texts to rows of exactly L token ids, written once, memory-mapped, and fetched a batch at a time."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from datasets.utils import tqdm
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from electra_hf.errors import InputError
from electra_hf.files import digest
from electra_hf.text.columns import text_batches
from electra_hf.text.fingerprint import fingerprint_of, fingerprint_texts
from electra_hf.text.prepared import cache_folder, prepared_folder, read_arrow

ROWS = "rows.arrow"
ENCODED = 1 << 21  # characters that are encoded at a time


def pack_dataset(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, data_cache_dir: str | Path | None = None
) -> "PackedRows":
    """Turn the "text" column into rows of exactly `max_length` ids, kept in the data cache and found again there.

    What is found belongs to the same texts, tokenizer and length, wherever they came from, and is compared with its
    manifest (`prepared_folder`). Ids are uint16, or uint32 where the vocabulary needs it. `data_cache_dir`: default in
    the cache of datasets. Raises `InputError` where the texts together do not fill one row, or the disk refuses.
    """
    backend, settings = row_settings(tokenizer, max_length)

    def prepare(folder):
        if not write_rows(folder / ROWS, dataset, backend, len(tokenizer), settings):
            raise InputError(
                f"The {len(dataset)} texts together do not fill one row of max_length {max_length}. Give more text "
                "(a larger test_share, if these are the ones held out), or choose a smaller max_length."
            )

    texts = fingerprint_texts(dataset, "The dataset")
    # With this file in it, so that rows packed by an older version are not used again.
    identity = fingerprint_of(texts, backend.to_str(), len(tokenizer), settings, digest(__file__))
    folder = prepared_folder(cache_folder(data_cache_dir), f"rows-{identity}", prepare)
    return PackedRows(read_arrow(folder / ROWS, identity))


def row_settings(tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Tokenizer, dict]:
    """What decides how texts become rows: the tokenizer as it cuts them, and the other arguments of `pack_texts`.

    Raises `InputError` for a length that no row can have.
    """
    if max_length < 3:
        raise InputError(f"max_length: expected at least 3, [CLS] and [SEP] included, got {max_length}.")
    # A copy without what earlier calls may have left behind: truncation and padding must not reach the rows.
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend, {
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "max_length": max_length,
        "dtype": "uint16" if len(tokenizer) <= 2**16 else "uint32",
    }


def write_rows(path: Path, dataset: Dataset, backend: Tokenizer, vocab_size: int, settings: dict) -> int:
    """Pack the "text" column into an Arrow file of rows, and return how many there are; there may be none.

    `backend` and `settings` are those of `row_settings`.
    """
    max_length = settings["max_length"]
    schema = Features({"input_ids": List(Value(settings["dtype"]), length=max_length)}).arrow_schema
    number = 0
    with pa.OSFile(str(path), "wb") as file, tqdm(desc=f"packing rows of {max_length} ids", unit=" texts") as progress:
        writer = pa.ipc.new_stream(file, schema)
        for texts in _texts(dataset):
            rows = _pack_checked(texts, backend, vocab_size, settings)
            if len(rows):  # one chunk of the table per batch
                column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), max_length)
                writer.write_table(pa.table([column], schema))
            number += len(rows)
            progress.update(len(texts))
        writer.close()  # not where something was raised: on a full disk the end of the stream would fail once more
    return number


def _texts(dataset):
    """The texts in lists of `BATCH`, however the table is cut: no row reaches over the border of two."""
    for texts in text_batches(dataset, "The dataset", "text"):
        yield [text or "" for text in texts.cast(pa.large_string()).to_pylist()]


def _pack_checked(texts, backend, vocab_size, settings):
    """Rows (N, L) of one batch. Raises `InputError` at an id that the vocabulary does not have: no model takes it."""
    try:
        rows = pack_texts({"text": texts}, backend, **settings)["input_ids"]
        largest = int(rows.max(initial=0))
    except OverflowError:  # an id is too large for uint16, and numpy does not say which
        largest = 2**16
    if largest >= vocab_size:
        raise InputError(
            f"The tokenizer has {vocab_size} entries, but gives ids up to {largest} or beyond: there are gaps in its "
            "vocabulary. Number it without gaps, or take another tokenizer."
        )
    return rows


def pack_texts(
    batch: dict[str, list[str]],
    tokenizer: Tokenizer,
    cls_token_id: int,
    sep_token_id: int,
    max_length: int,
    dtype: str,
) -> dict[str, np.ndarray]:
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
    # One look-up for all rows: (rows, 1) starts plus (max_length - 2,) offsets.
    rows[:, 1:-1] = stream[starts[:, None] + np.arange(max_length - 2)]
    return {"input_ids": rows}


def _encode(texts: list[str], tokenizer: Tokenizer) -> Iterator[Encoding]:
    # An encoding is large: a whole batch of documents would not fit.
    number = max(1, min(1_000, ENCODED * len(texts) // max(1, sum(map(len, texts)))))
    for start in range(0, len(texts), number):
        yield from tokenizer.encode_batch_fast(texts[start : start + number], add_special_tokens=False)


def _row_starts(stream, size, sep_token_id):
    """Where in the stream the inside of each row begins."""
    end = len(stream) - 1  # the last separator is the [SEP] that closes the last row
    starts, start = [], 0
    while start + size <= end:
        starts.append(start)
        start += size
        if stream[start] == sep_token_id:  # that row is closed by it: the next one begins with a text
            start += 1
    if starts and start < end:  # what is left fills no row: the last one takes ids of the row before it
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
    def from_array(cls, rows: np.ndarray | list[list[int]]) -> "PackedRows":
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

    def digest(self) -> str:
        """The SHA-256 of all ids in their order, however the table is cut: a second for two gigabytes."""
        sha256 = hashlib.sha256()
        for chunk in self._chunks:
            sha256.update(chunk)
        return sha256.hexdigest()

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


def unigram_entropy(batches: Iterable[torch.Tensor], ignored_ids: list[int]) -> float:
    """The entropy of a single token, in nats: the loss of a model that knows how frequent each token is, no more.

    `batches` hold ids of any shape, int64, of which `ignored_ids` do not count. Few rows give a little less than the
    truth, because rare tokens are missing there.
    """
    counts = torch.zeros(max(ignored_ids) + 1, dtype=torch.long)
    for ids in batches:
        more = torch.bincount(ids.flatten(), minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    counts[ignored_ids] = 0
    return torch.special.entr(counts / counts.sum()).sum().item()


def check_rows(rows: PackedRows, batch_size: int) -> None:
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

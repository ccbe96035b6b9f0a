"""The identity of texts: it depends on what they say, not on the file, batches or types that hold them."""

import json

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset

from electra_hf.text.columns import text_batches


class TextFingerprint:
    """Takes in columns of texts in their order; equal sequences of texts have equal fingerprints, however batched."""

    def __init__(self):
        # Two streams: the bytes alone would be the same for "ab", "c" and for "a", "bc".
        self._lengths, self._bytes = xxhash.xxh3_128(), xxhash.xxh3_128()

    def update(self, texts: pa.LargeBinaryArray) -> None:
        """Add the texts of one array (N,), as bytes; a missing one counts as an empty one."""
        texts = texts.fill_null(b"")
        _, offsets, values = texts.buffers()
        # An array may be a part of a larger one, and its buffers are those of the whole.
        offsets = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        self._lengths.update(np.diff(offsets).tobytes())
        if values is not None:  # texts that are all empty have no bytes
            self._bytes.update(memoryview(values)[offsets[0] : offsets[-1]])

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest(self._lengths.digest() + self._bytes.digest())


def fingerprint_texts(dataset: Dataset, name: str, text_column: str = "text") -> str:
    """The fingerprint of a dataset's texts, several gigabytes a second; `name` is how an `InputError` calls it."""
    fingerprint = TextFingerprint()
    for texts in text_batches(dataset, name, text_column):
        fingerprint.update(texts)
    return fingerprint.hexdigest()


def fingerprint_of(*settings: object) -> str:
    """One fingerprint of values that JSON can hold."""
    # Sorted, since two dictionaries are equal in whatever order they were filled.
    return xxhash.xxh3_128_hexdigest(json.dumps(settings, sort_keys=True).encode())

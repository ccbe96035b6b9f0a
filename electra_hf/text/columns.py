"""Columns of text in Arrow tables, of whatever string type, and datasets of the Hub that hold them."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
from datasets import Dataset, DatasetDict, load_dataset

from electra_hf.errors import InputError, disk_fault
from electra_hf.text.names import printable

BATCH = 10_000  # texts
LARGEST_BATCH = 1 << 26  # bytes, where documents are long


def load_hub_dataset(path: str, **settings: str | None) -> Dataset | DatasetDict:
    """`datasets.load_dataset(path, **settings)`, of the Hub or a local folder. Raises `InputError` with the reason."""
    try:
        return load_dataset(path, **settings)
    except Exception as error:  # a broken file raises whatever its reader does: pandas', pyarrow's and own classes
        if disk_fault(error):
            raise
        # The library says "an error occurred" where the cause says which.
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise InputError(f"dataset_name: {printable(path)} cannot be loaded ({printable(reason)}).") from None


def require_column(key: str, column: str, columns: Iterable[str], place: str) -> None:
    """Raise `InputError` unless `columns`, which stand at `place`, have the one that the setting `key` names."""
    columns = list(columns)
    if column not in columns:
        raise InputError(f"{place}: no column {column!r}, only {', '.join(columns)}. Set {key}.")


def text_batches(dataset: Dataset, name: str, text_column: str) -> Iterator[pa.LargeBinaryArray]:
    """The texts of a dataset in its order, as UTF-8, `BATCH` in an array, or fewer long ones. Raises `InputError`."""
    require_column("text_column", text_column, dataset.column_names, name)
    dataset = dataset.select_columns(text_column)
    texts = max(1, LARGEST_BATCH * len(dataset) // max(1, dataset.data.nbytes))
    tables = dataset.with_format("arrow").iter(min(BATCH, texts))
    return texts_of_tables(tables, name, text_column)


def texts_of_tables(
    tables: Iterable[pa.Table | pa.RecordBatch], name: str, text_column: str
) -> Iterator[pa.LargeBinaryArray]:
    """The column of each table as bytes: Arrow does not look whether its strings are UTF-8. Raises `InputError`.

    One array per table, however many chunks that has.
    """
    try:
        for table in tables:
            column = table[text_column]
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            yield pa.concat_arrays([_as_bytes(chunk, name, text_column) for chunk in chunks])
    except (pa.ArrowException, OSError) as error:
        if disk_fault(error):
            raise
        raise InputError(f"{name}: damaged ({printable(str(error))}). Fetch or make it again.") from None


def _as_bytes(chunk, name, text_column):
    kind = chunk.type.value_type if pa.types.is_dictionary(chunk.type) else chunk.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"{name}: the column {text_column!r} is not text but {chunk.type}.")
    if pa.types.is_dictionary(chunk.type):
        return chunk.dictionary.cast(pa.large_binary()).take(chunk.indices)  # a cast does not know string views
    return chunk.cast(pa.large_binary())

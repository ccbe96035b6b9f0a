"""Rows are full, nothing of a text is lost, the cache answers at once, and a batch is what the table holds."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from electra_hf.errors import InputError
from electra_hf.text import packing
from electra_hf.text.packing import PackedRows, collate_rows, pack_dataset, pack_texts
from electra_hf.text.tokenization import train_tokenizer

CLS, SEP, FIRST = 2, 3, 5


def tokenizer_of_numbers(size=1_000):
    """Every number is a word, and its id is the number itself."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": 4}
    vocabulary |= {str(number): number for number in range(FIRST, size)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


TOKENIZER = tokenizer_of_numbers()


def rows_of(texts, max_length, tokenizer=TOKENIZER):
    batch = {"text": texts}
    return pack_texts(batch, tokenizer.backend_tokenizer, CLS, SEP, max_length, "uint16")["input_ids"]


def texts_of(lengths):
    """Texts of so many words; no number comes twice."""
    numbers = iter(range(FIRST, 1_000))
    return [" ".join(str(next(numbers)) for _ in range(length)) for length in lengths]


@pytest.fixture
def on_disk(tmp_path):
    """A dataset that has a file, as a prepared corpus does: only then can datasets cache beside it."""
    Dataset.from_dict({"text": texts_of([4, 7, 1, 12, 9])}).save_to_disk(tmp_path / "corpus")
    return load_from_disk(tmp_path / "corpus")


def test_rows_are_laid_out_as_by_hand():
    rows = rows_of(["5 6 7", "8", "9 10 11 12", "13 14", "15 16"], 6)
    assert rows.tolist() == [
        [CLS, 5, 6, 7, SEP, SEP],
        [CLS, 8, SEP, 9, 10, SEP],  # the third text goes on in the next row
        [CLS, 11, 12, SEP, 13, SEP],
        [CLS, 14, SEP, 15, 16, SEP],
    ]


def test_a_separator_at_the_end_of_a_row_is_its_closing_one():
    assert rows_of(["5 6 7 8", "9 10 11 12"], 6).tolist() == [[CLS, 5, 6, 7, 8, SEP], [CLS, 9, 10, 11, 12, SEP]]


def test_the_last_row_reaches_back_to_be_full():
    assert rows_of(["5 6 7 8 9 10"], 6).tolist() == [[CLS, 5, 6, 7, 8, SEP], [CLS, 7, 8, 9, 10, SEP]]


@given(st.lists(st.integers(0, 20), max_size=15), st.integers(3, 12))
@settings(deadline=None)
def test_every_token_stands_in_a_row_in_its_order(lengths, max_length):
    texts = texts_of(lengths)
    rows = rows_of(texts, max_length)
    assert rows.dtype == np.uint16 and rows.shape[1:] == (max_length,)
    seen = [number for row in rows.tolist() for number in row if number not in (CLS, SEP)]
    if len(rows) == 0:
        words = [text.split() for text in texts if text]
        assert len([number for text in words for number in text]) + len(words) - 1 < max_length - 2
    else:
        assert list(dict.fromkeys(seen)) == list(range(FIRST, FIRST + sum(lengths)))
        assert (rows[:, 0] == CLS).all() and (rows[:, -1] == SEP).all()


@given(st.lists(st.integers(1, 20), max_size=15), st.integers(3, 12))
@settings(deadline=None)
def test_texts_are_parted_and_only_the_last_row_repeats(lengths, max_length):
    rows = rows_of(texts_of(lengths), max_length).tolist()
    unique = [number for row in rows[:-1] for number in row if number >= FIRST]
    assert len(unique) == len(set(unique))
    assert all(row[1] != SEP for row in rows[:-1])
    ends_of_texts = set((np.cumsum(lengths) + FIRST - 1).tolist())
    for row in rows:
        inside = row[1:-1]
        for left, right in zip(inside, inside[1:], strict=False):
            assert (right == SEP) == (left in ends_of_texts)


@pytest.mark.parametrize("tokenizer_type", ["wordpiece", "bpe"])
def test_a_special_token_written_in_a_text_is_text(tokenizer_type):
    text = "a [MASK] and a [SEP] and a [CLS]"
    tokenizer = train_tokenizer([text] * 5, 64, tokenizer_type)
    row = rows_of([text], 10, tokenizer)[0]
    assert not set(row[1:-1].tolist()) & set(tokenizer.all_special_ids)
    assert "".join(tokenizer.decode(row[1:-1]).split()).startswith("a[MASK")


def test_an_earlier_truncation_or_padding_does_not_reach_the_rows(on_disk):
    tokenizer = tokenizer_of_numbers()
    before = pack_dataset(on_disk, tokenizer, 8)
    tokenizer(["5 6 7", "8"], truncation=True, max_length=3, padding="max_length")
    after = pack_dataset(on_disk, tokenizer, 8)
    assert after.dataset.cache_files == before.dataset.cache_files
    assert "[MASK]" in tokenizer.tokenize("5 [MASK]")  # and packing left the tokenizer as it was


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(size, dtype):
    dataset = Dataset.from_dict({"text": [f"{size - 1} 5 6"]})
    rows = pack_dataset(dataset, tokenizer_of_numbers(size), 5)
    assert rows.dataset.features["input_ids"].feature.dtype == dtype
    assert rows[0]["input_ids"].tolist() == [CLS, size - 1, 5, 6, SEP]


@pytest.mark.parametrize("texts", [[], ["", " "], ["5 6 7"]])
def test_texts_that_fill_no_row_are_refused(texts):
    dataset = Dataset.from_dict({"text": texts})
    with pytest.raises(InputError, match="do not fill one row of max_length 8"):
        pack_dataset(dataset, TOKENIZER, 8)


def test_a_row_needs_room_for_more_than_its_frame(on_disk):
    with pytest.raises(InputError, match="max_length.*at least 3.*got 2"):
        pack_dataset(on_disk, TOKENIZER, 2)


def test_the_second_call_reads_the_cache_and_a_change_does_not(on_disk, monkeypatch):
    first = pack_dataset(on_disk, TOKENIZER, 8)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_encode", None)  # whoever packs again breaks here
        again = pack_dataset(on_disk, tokenizer_of_numbers(), 8)
        for tokenizer, max_length in ((TOKENIZER, 9), (tokenizer_of_numbers(999), 8)):
            with pytest.raises(TypeError):
                pack_dataset(on_disk, tokenizer, max_length)
    assert again.dataset.cache_files == first.dataset.cache_files
    assert torch.equal(again.__getitems__([0, 2]), first.__getitems__([0, 2]))


@pytest.mark.slow
def test_another_process_reads_the_same_cache(on_disk, tmp_path):
    rows = pack_dataset(on_disk, TOKENIZER, 8, tmp_path / "cache")
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    script = """if True:
        import sys
        from datasets import load_from_disk
        from electra_hf.text import packing
        from electra_hf.text.tokenization import load_tokenizer
        packing._encode = None
        dataset, tokenizer = load_from_disk(sys.argv[1]), load_tokenizer(sys.argv[2])
        print(packing.pack_dataset(dataset, tokenizer, 8, sys.argv[3]).dataset.cache_files[0]["filename"])
    """
    command = [sys.executable, "-c", script, *(str(tmp_path / name) for name in ("corpus", "tokenizer", "cache"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == rows.dataset.cache_files[0]["filename"]


@pytest.fixture
def chunked():
    """Rows in three chunks of the table, and the same as one array."""
    array = np.arange(70).reshape(10, 7).astype("uint16")
    parts = [PackedRows.from_array(array[cut]).dataset for cut in (slice(0, 3), slice(3, 4), slice(4, 10))]
    rows = PackedRows(concatenate_datasets(parts))
    assert len(rows._chunks) == 3
    return rows, array


def test_a_batch_is_gathered_across_chunks(chunked):
    rows, array = chunked
    indices = [9, 0, 3, 2, 4, 4]
    batch = rows.__getitems__(indices)
    assert batch.dtype == torch.int64
    assert batch.tolist() == array[indices].tolist()
    assert rows[3]["input_ids"].tolist() == array[3].tolist()
    assert len(rows) == 10 and rows.max_length == 7 and rows.num_tokens == 70
    with pytest.raises(IndexError):
        rows[10]


def test_a_part_of_a_table_begins_at_its_own_row(chunked):
    rows, array = chunked
    assert PackedRows(rows.dataset.select(range(2, 9))).__getitems__([0, 6]).tolist() == array[[2, 8]].tolist()


def test_a_table_with_an_order_of_its_own_is_not_read_in_the_wrong_one(chunked):
    rows, _ = chunked
    with pytest.raises(AssertionError, match="flatten_indices"):
        PackedRows(rows.dataset.select([3, 1]))


def test_pickled_rows_name_their_file_and_hold_no_ids(on_disk):
    rows = pack_dataset(on_disk, TOKENIZER, 8)
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.dataset.cache_files == rows.dataset.cache_files
    assert torch.equal(copy.__getitems__([1, 0]), rows.__getitems__([1, 0]))
    assert rows._chunks[0].tobytes() not in pickle.dumps(rows)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_yields_every_row_once(chunked, num_workers):
    rows, array = chunked
    loader = torch.utils.data.DataLoader(
        rows, batch_size=4, shuffle=True, collate_fn=collate_rows, num_workers=num_workers
    )
    batches = [batch["input_ids"] for batch in loader]
    assert [tuple(batch.shape) for batch in batches] == [(4, 7), (4, 7), (2, 7)]
    assert sorted(torch.cat(batches).tolist()) == array.tolist()


def test_a_subset_is_gathered_in_one_go_too(chunked):
    rows, array = chunked
    subset = torch.utils.data.Subset(rows, [5, 1, 8])
    (batch,) = torch.utils.data.DataLoader(subset, batch_size=3, collate_fn=collate_rows)
    assert batch["input_ids"].tolist() == array[[5, 1, 8]].tolist()


class MeanOfIds(torch.nn.Module):
    """Counts how often it sees each row by the row's first id."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, input_ids):
        self.seen += input_ids[:, 0].tolist()
        return {"loss": self.weight * input_ids.float().mean()}


@pytest.mark.parametrize("remove_unused_columns", [False, True])
def test_the_trainer_takes_rows_as_they_are(chunked, tmp_path, remove_unused_columns):
    rows, array = chunked
    model = MeanOfIds()
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=5,
        num_train_epochs=1,
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=remove_unused_columns,
    )
    Trainer(model, arguments, train_dataset=rows, data_collator=collate_rows).train()
    assert sorted(model.seen) == array[:, 0].tolist()

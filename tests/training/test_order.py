"""The computed order: each row once, another order for each seed and epoch, and no list of all rows."""

import tracemalloc

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from tiny import sharded
from torch.utils.data import DataLoader

from electra_hf.text.packing import collate_rows
from electra_hf.training.order import ComputedOrder


def order(size, seed=0, epoch=0):
    sampler = ComputedOrder(size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


@given(st.integers(0, 3000), st.integers(0, 2**32), st.integers(0, 100))
def test_each_row_comes_once(size, seed, epoch):
    assert sorted(order(size, seed, epoch)) == list(range(size))


def test_the_order_is_that_of_its_seed_and_epoch():
    # Pinned: with another one a run would not go on where its checkpoint stopped.
    assert order(10, seed=42, epoch=1) == [0, 8, 3, 4, 6, 1, 5, 2, 7, 9]
    orders = [tuple(order(1000, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("size", [99_999, 100_000, 2**16 + 1])
def test_the_order_is_as_even_as_chance_has_it(size):
    numbers = np.array(order(size, seed=3))
    # Neighbours of a random order are a third of the whole apart, and a part of it holds its share of each tenth.
    assert np.abs(np.diff(numbers)).mean() == pytest.approx(size / 3, rel=0.02)
    tenths = np.histogram2d(np.arange(size), numbers, bins=10)[0]
    chi_square = ((tenths - size / 100) ** 2 / (size / 100)).sum()
    assert 40 < chi_square < 140  # 81 expected, standard deviation 12.7
    assert abs(np.corrcoef(np.arange(size), numbers)[0, 1]) < 0.02


def test_the_order_of_a_billion_rows_takes_a_few_megabytes():
    tracemalloc.start()
    rows = iter(ComputedOrder(10**9, 0))
    some = [next(rows) for _ in range(10_000)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(some)) == 10_000 and max(some) > 9 * 10**8 and peak < 20e6


def test_processes_share_the_rows_of_an_epoch_and_skip_to_where_they_stopped(rows, tmp_path):
    PartialState(cpu=True)
    ids = rows(32)
    shards = sharded(ids, tmp_path, [20, 12])

    def epochs(process, processes, batch_size):
        loader = DataLoader(
            *(shards, batch_size), sampler=ComputedOrder(32, 5), collate_fn=collate_rows, drop_last=True
        )
        loader = prepare_data_loader(loader, num_processes=processes, process_index=process)
        return loader, [[batch["input_ids"] for batch in loader] for _ in range(2)]

    _, (first, second) = epochs(0, 1, 8)
    _, mine = epochs(0, 2, 4)
    loader, others = epochs(1, 2, 4)
    for epoch, one, other in zip((first, second), mine, others, strict=True):
        assert torch.equal(torch.cat(epoch).unique(dim=0), ids.unique(dim=0)) and len(torch.cat(epoch)) == 32
        assert torch.equal(torch.cat(epoch), torch.cat([torch.cat(pair) for pair in zip(one, other, strict=True)]))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    loader.iteration = 1
    loader.set_epoch(1)
    rest = [batch["input_ids"] for batch in skip_first_batches(loader, 3)]
    assert torch.equal(torch.cat(rest), torch.cat(others[1][3:]))


def test_the_trainer_takes_it_for_shards_and_leaves_other_rows_as_they_were(make_trainer, rows, tmp_path):
    trainer = make_trainer(train_rows=sharded(rows(64), tmp_path, [64]), data_seed=7)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, ComputedOrder) and (sampler.size, sampler.seed) == (64, 7)
    assert not isinstance(make_trainer()._get_train_sampler(), ComputedOrder)

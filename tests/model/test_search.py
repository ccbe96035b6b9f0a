"""Look-ups in two levels against those in one."""

import pytest
import torch
from scipy.stats import binomtest, chisquare

from electra_hf.model.corruption import draw, find_highest, look_up, race

SIZES = [1, 7, 64, 65, 200, 640]
WAYS = [look_up, race]
DRAWN_BEFORE = [140, 174, 58, 71, 110, 158]  # with seed 0, before there were two ways


@pytest.mark.parametrize("size", SIZES)
def test_the_highest_entry_is_that_of_argmax_and_the_first_of_equals(size):
    torch.manual_seed(0)
    for values in (torch.randn(3, 50, size), torch.randint(3, (3, 50, size)).float(), torch.full((2, size), -1e30)):
        assert torch.equal(find_highest(values), values.argmax(-1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_entries_are_drawn_in_proportion_to_their_weights_in_whatever_block(size, way):
    torch.manual_seed(0)
    weights = torch.rand(size) * (torch.arange(size) % 3 > 0)  # a third of them, the first one too, weigh nothing
    weights[-1] = 3.0
    draws = 200_000
    counts = torch.bincount(way(weights.expand(draws, size)), minlength=size)
    assert counts[weights == 0].sum() == 0
    expected = weights.double() / weights.double().sum() * draws
    if size > 1:  # Pearson's chi-square: a wrong law would be found, a right one fails once in 100,000 seeds
        assert chisquare(counts[weights > 0].numpy(), expected[weights > 0].numpy()).pvalue > 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_rare_entries_of_a_long_vocabulary_are_drawn_as_often_as_they_weigh(way):
    torch.manual_seed(0)
    weights = torch.full((2_000,), 2.5e-5)
    weights[7], weights[1_999] = 0.5, 0.45
    drawn = torch.cat([way(weights.expand(2_000, -1)) for _ in range(10)])
    of_two, rare = (drawn == 7).sum() + (drawn == 1_999).sum(), (drawn != 7) & (drawn != 1_999)
    assert binomtest(int(of_two), 20_000, 0.95 / weights.double().sum().item()).pvalue > 1e-5
    quarters = torch.bincount(drawn[rare] // 500, minlength=4)
    assert chisquare(quarters.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_certain_is_always_drawn(way):
    torch.manual_seed(0)
    for entry in (0, 63, 64, 129):
        weights = torch.zeros(1000, 130)
        weights[:, entry] = 1.0
        assert (way(weights) == entry).all()


def test_a_cpu_draws_as_it_always_has(monkeypatch):
    torch.manual_seed(0)
    assert draw(torch.arange(1.0, 200.0).expand(6, -1)).tolist() == DRAWN_BEFORE
    monkeypatch.setattr("electra_hf.model.corruption.race", lambda weights: pytest.fail("that is for other devices"))
    draw(torch.ones(2, 3))


def test_the_shape_before_the_entries_stays():
    assert race(torch.ones(2, 3, 70)).shape == (2, 3)
    assert draw(torch.ones(2, 3, 70)).shape == (2, 3) == find_highest(torch.ones(2, 3, 70)).shape

"""Look-ups in two levels against those in one."""

import pytest
import torch

from electra_hf.model.corruption import draw, find_highest

SIZES = [1, 7, 64, 65, 200, 640]


@pytest.mark.parametrize("size", SIZES)
def test_the_highest_entry_is_that_of_argmax_and_the_first_of_equals(size):
    torch.manual_seed(0)
    for values in (torch.randn(3, 50, size), torch.randint(3, (3, 50, size)).float(), torch.full((2, size), -1e30)):
        assert torch.equal(find_highest(values), values.argmax(-1))


@pytest.mark.parametrize("size", SIZES)
def test_entries_are_drawn_in_proportion_to_their_weights_in_whatever_block(size):
    torch.manual_seed(0)
    weights = torch.rand(size) * (torch.arange(size) % 3 > 0)  # a third of them, the first one too, weigh nothing
    weights[-1] = 3.0
    draws = 200_000
    counts = torch.bincount(draw(weights.expand(draws, size)), minlength=size)
    expected = weights.double() / weights.double().sum()
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((counts / draws - expected).abs() <= 5 * deviation).all()


def test_one_that_is_certain_is_always_drawn():
    torch.manual_seed(0)
    for entry in (0, 63, 64, 129):
        weights = torch.zeros(1000, 130)
        weights[:, entry] = 1.0
        assert (draw(weights) == entry).all()


def test_the_shape_before_the_entries_stays():
    assert draw(torch.ones(2, 3, 70)).shape == (2, 3) == find_highest(torch.ones(2, 3, 70)).shape

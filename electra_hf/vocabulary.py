"""Looking for one entry among those of a vocabulary, in two levels: first its block, then its place in that.

A cumulative sum or an argmax over the whole goes number by number; sums and maxima of blocks do not.
"""

import torch
from torch import Tensor

_BLOCK = 64


@torch.no_grad()
def find_highest(values: Tensor) -> Tensor:
    """As `values.argmax(-1)`, the first of equals: (..., V) -> (...) int64."""
    block = _by_block(values, torch.amax).argmax(-1, keepdim=True)
    return _find(values, block, float("-inf"), lambda inside: inside.argmax(-1, keepdim=True))


@torch.no_grad()
def draw(weights: Tensor) -> Tensor:
    """Draw entries in proportion to `weights` >= 0: (..., V) floating -> (...) int64, one uniform number for each."""
    sums = _by_block(weights, torch.sum)
    cumulative = sums.cumsum(-1)
    threshold = torch.rand(weights.shape[:-1] + (1,), device=weights.device) * cumulative[..., -1:]
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=sums.shape[-1] - 1)
    rest = threshold - (cumulative - sums).gather(-1, block)
    return _find(weights, block, 0.0, lambda inside: torch.searchsorted(inside.cumsum(-1), rest, right=True))


def _by_block(values, reduce):
    """Sums or maxima of blocks of entries, the last block being what is left over: (..., V) -> (..., blocks)."""
    size = values.shape[-1]
    whole = size // _BLOCK * _BLOCK
    parts = [reduce(values[..., :whole].unflatten(-1, (whole // _BLOCK, _BLOCK)), -1)]
    if whole < size:
        parts.append(reduce(values[..., whole:], -1, keepdim=True))
    return torch.cat(parts, -1)


def _find(values, block, outside, place_in):
    """The entry at `place_in` the numbers of the given block, (..., 1) int64; `outside` stands behind the last one."""
    size = values.shape[-1]
    places = block * _BLOCK + torch.arange(_BLOCK, device=values.device)
    inside = values.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, outside)
    place = place_in(inside).clamp(max=_BLOCK - 1)
    return (block * _BLOCK + place).clamp(max=size - 1).squeeze(-1)

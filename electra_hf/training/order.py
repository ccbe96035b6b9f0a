"""The order of rows in an epoch, computed as it is needed: no list of a billion numbers in every process."""

from collections.abc import Iterator
from math import isqrt

import numpy as np
from torch.utils.data import Sampler

# Four rounds are the least for what looks like a random order (Luby, Rackoff 1988); two more for safety.
ROUNDS = 6
# NumPy is fast on many numbers at once, and so many take half a megabyte.
AT_A_TIME = 1 << 16  # numbers


class ComputedOrder(Sampler):
    """A permutation of `size` rows for each seed and epoch, the same on every machine.

    A Feistel network shuffles a square that is hardly larger than the rows, (left, right) -> (right, left + f(right)):
    each round can be undone, so each number comes once. Numbers past the last row are left out.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """The next iteration has the order of this epoch; accelerate calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # The smallest square that holds all rows: the fewer numbers beyond the last row, the less work is thrown away.
        side = isqrt(self.size - 1) + 1 if self.size else 0
        # Seed and epoch alone decide: a resumed run has the same order without a saved state.
        keys = np.random.SeedSequence([self.seed, self.epoch]).generate_state(ROUNDS, np.uint64)
        for start in range(0, side**2, AT_A_TIME):
            numbers = np.arange(start, min(start + AT_A_TIME, side**2), dtype=np.uint64)
            shuffled = shuffle(numbers, np.uint64(side), keys)
            yield from shuffled[shuffled < self.size].tolist()


def shuffle(numbers: np.ndarray, side: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Where each of the numbers (N,) uint64 below side² goes, (N,) uint64 below side²; `keys` (rounds,) uint64."""
    # Unsigned numbers wrap around where they overflow, as the mixing needs it; NumPy does not warn for arrays.
    left, right = np.divmod(numbers, side)
    for key in keys:
        left, right = right, (left + _mix(right + key) % side) % side
    return left * side + right


def _mix(values):
    """SplitMix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

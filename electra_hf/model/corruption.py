"""The idea of ELECTRA as pure functions of tensors: select, mask, sample, corrupt.

Shapes: B rows, L tokens a row, K selected positions a row, V vocabulary entries. All random numbers come from the
default stream of the tensors' device, so a checkpoint of that stream makes a run repeatable.
Rules are those of Clark et al. 2020 as the authors' code has them (numbered in the tests).
"""

import torch
from torch import Tensor

KEEP_PROBABILITY = 0.15  # share of the selected tokens that the generator sees as they are (rule 1)
_BLOCK = 64  # vocabulary entries of a block, see `find_highest`


@torch.no_grad()
def select_positions(
    input_ids: Tensor,
    is_real: Tensor,
    special_token_ids: list[int],
    mask_probability: float,
    continues_word: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw the positions that the generator must guess: distinct, never special, never padding.

    `input_ids` (B, L) int64, `is_real` (B, L) bool, False on padding. Returns `positions` (B, K) int64 and
    `is_selected` (B, K) bool with K = max(1, round(mask_probability * L)). A row with n < L real tokens has only
    round(mask_probability * n) selected positions (rule 16); its spare slots repeat the first one and are False.
    The authors draw with replacement, about 17.7 distinct of 19; we draw without (rule 3).
    With `continues_word` (V,) bool, True for vocabulary entries that go on with a word, whole words are drawn, the
    last one only as far as the number of positions allows.
    """
    is_candidate = is_real
    for token_id in special_token_ids:
        is_candidate = is_candidate & (input_ids != token_id)
    # One number of slots for all rows: shapes that depend on the data would make the compiler start anew.
    num_slots = max(1, round(mask_probability * input_ids.shape[1]))
    # The K highest of random scores are a draw without replacement, in one operation and without a loop.
    scores = torch.rand(input_ids.shape, device=input_ids.device)
    if continues_word is not None:  # all tokens of a word score what one of them drew
        word_of_token = (~continues_word[input_ids]).cumsum(1).clamp(max=input_ids.shape[1] - 1)
        scores = scores.gather(1, word_of_token)
    positions = scores.masked_fill(~is_candidate, -1.0).topk(num_slots, dim=1).indices

    # A short row gets its share of its own length (rule 16), and never more than it has candidates.
    budget = (is_real.sum(1, keepdim=True) * mask_probability).round().clamp(min=1)
    budget = torch.minimum(budget, is_candidate.sum(1, keepdim=True))
    is_selected = torch.arange(num_slots, device=input_ids.device) < budget
    return torch.where(is_selected, positions, positions[:, :1]), is_selected


@torch.no_grad()
def mask_tokens(input_ids: Tensor, positions: Tensor, is_selected: Tensor, mask_token_id: int) -> Tensor:
    """The generator's input (B, L): 85 % of the selected tokens become [MASK], 15 % stay (rule 1)."""
    # Each token draws by itself, as in the authors' code: the 15 % hold on average, not in each row.
    is_masked = torch.rand(positions.shape, device=positions.device) >= KEEP_PROBABILITY
    return _write(input_ids, positions, is_selected & is_masked, torch.full_like(positions, mask_token_id))


@torch.no_grad()
def sample_tokens(logits: Tensor, probabilities: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw one token per position from softmax(logits / temperature), (..., V) -> (...) int64 (rule 5).

    `probabilities` (..., V), fp32, are those at temperature 1, which the loss has computed already. The law is that of
    the authors' Gumbel noise.
    """
    return draw(probabilities if temperature == 1 else (logits.float() / temperature).softmax(-1))


@torch.no_grad()
def corrupt(input_ids: Tensor, positions: Tensor, is_selected: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Write the generator's samples over the original row, and say which tokens changed, both (B, L).

    The row holds no [MASK] and the kept 15 % are overwritten too (rule 6); a lucky sample, equal to the original,
    counts as original (rule 7).
    """
    corrupted_ids = _write(input_ids, positions, is_selected, samples)
    # By comparison and not by position: that is rule 7.
    return corrupted_ids, corrupted_ids != input_ids


@torch.no_grad()
def mark_positions(positions: Tensor, where: Tensor, length: int) -> Tensor:
    """True at the `positions` (B, K) of a row for which `where` (B, K) holds: (B, length) bool."""
    nowhere = torch.zeros(positions.shape[0], length, dtype=torch.bool, device=positions.device)
    return _write(nowhere, positions, where, torch.ones_like(where))


def _write(input_ids, positions, where, values):
    """A copy of `input_ids` (B, L) with `values` (B, K) at the `positions` (B, K) for which `where` (B, K) holds."""
    # Slots that write nothing go to a spare column, which keeps every shape static.
    length = input_ids.shape[1]
    spare = torch.nn.functional.pad(input_ids, (0, 1))
    return spare.scatter(1, torch.where(where, positions, length), values)[:, :length]


@torch.no_grad()
def find_highest(values: Tensor) -> Tensor:
    """The index of the highest entry, as `values.argmax(-1)`, the first of equals: (..., V) -> (...) int64.

    One entry among V is looked for in two levels, here and in `look_up`: first its block of 64, then its place in the
    block. A cumulative sum or an argmax over all of V goes number by number; sums and maxima of blocks do not.
    Measured on two CPU cores, 304 × 52,032 entries: argmax 13.9 ms, in two levels 2.5 ms (recipes/benchmark/LOG.md).
    """
    block = _by_block(values, torch.amax).argmax(-1, keepdim=True)
    return _find(values, block, float("-inf"), lambda inside: inside.argmax(-1, keepdim=True))


@torch.no_grad()
def draw(weights: Tensor) -> Tensor:
    """Draw entries in proportion to `weights` >= 0: (..., V) fp32 -> (...) int64. Two ways of one law, by the device.

    On a CPU one uniform number is looked up, since drawing V of them would cost more than all the rest. On other
    devices each entry gets a number of its own and the first one wins: PyTorch's cumulative sum has no fixed order
    there, which `full_determinism` forbids.
    """
    return look_up(weights) if weights.device.type == "cpu" else race(weights)


@torch.no_grad()
def look_up(weights: Tensor) -> Tensor:
    """`draw` by one uniform number for each, looked up in the cumulative distribution."""
    sums = _by_block(weights, torch.sum)
    cumulative = sums.cumsum(-1)
    # The weights need not add up to 1, so the uniform number is stretched to their sum.
    threshold = torch.rand(weights.shape[:-1] + (1,), device=weights.device) * cumulative[..., -1:]
    # `right=True` passes over entries of weight 0, even for a threshold of exactly 0.
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=sums.shape[-1] - 1)
    # What the blocks before it leave of the threshold: the place inside of the block is looked up with it.
    rest = threshold - (cumulative - sums).gather(-1, block)
    return _find(weights, block, 0.0, lambda inside: torch.searchsorted(inside.cumsum(-1), rest, right=True))


@torch.no_grad()
def race(weights: Tensor) -> Tensor:
    """`draw` by an exponential number for each entry, its arrival: the first of arrival / weight wins.

    In a compiled step the numbers never reach memory. In fp32 an arrival is no less than 6e-8: an entry of a smaller
    share than that wins too rarely, all such entries together by less than V times that share.
    """
    # Weight over arrival, so that the first to arrive has the highest speed and a weight of 0 never wins.
    speed = torch.empty_like(weights).exponential_().reciprocal_().mul_(weights)
    return speed.argmax(-1)


def _by_block(values, reduce):
    """Sums or maxima of blocks of entries, the last block being what is left over: (..., V) -> (..., blocks)."""
    size = values.shape[-1]
    whole = size // _BLOCK * _BLOCK
    # A view of the whole blocks: to pad the last one would copy all values.
    parts = [reduce(values[..., :whole].unflatten(-1, (whole // _BLOCK, _BLOCK)), -1)]
    if whole < size:
        parts.append(reduce(values[..., whole:], -1, keepdim=True))
    return torch.cat(parts, -1)


def _find(values, block, outside, place_in):
    """The entry at `place_in` the numbers of the given block, (..., 1) int64; `outside` stands behind the last one."""
    size = values.shape[-1]
    # Behind the last entry of the last block there is nothing: clamped to be readable, then filled with `outside`.
    places = block * _BLOCK + torch.arange(_BLOCK, device=values.device)
    inside = values.gather(-1, places.clamp(max=size - 1)).masked_fill(places >= size, outside)
    place = place_in(inside).clamp(max=_BLOCK - 1)
    return (block * _BLOCK + place).clamp(max=size - 1).squeeze(-1)

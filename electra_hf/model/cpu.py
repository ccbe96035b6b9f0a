"""What makes training on a CPU cheaper: its memory, and its layers. On a GPU the layers are PyTorch's own.

recipes/benchmark/LOG.md has what each of them is worth.
"""

import ctypes

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_LEVELS = 256  # values of a byte
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors. Training on a CPU then takes a fifth less time.

    By default glibc returns the memory of large tensors to the system, and fetches fresh pages for the next ones.
    Other C libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    # Without mappings of their own, large tensors come from the heap; -1 then never trims it.
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


@torch.library.custom_op("electra_hf::random_bytes", mutates_args=())
def random_bytes(seed: Tensor, count: int) -> Tensor:
    """`count` independent bytes, int8, that follow from `seed`, () int64, in less time than PyTorch's take.

    An operator of its own, because the compiler would draw them number by number (recipes/benchmark/LOG.md). The seed
    is an argument, because the compiler merges equal calls: all layers would drop the same elements.
    """
    # SFC64 is the fastest of NumPy's generators, and each number of it gives eight bytes.
    return torch.from_numpy(np.random.SFC64(seed.item()).random_raw((count + 7) // 8)).view(torch.int8)[:count]


@random_bytes.register_fake
def _(seed, count):
    return seed.new_empty(count, dtype=torch.int8)


def drop_out(values: Tensor, p: float) -> Tensor:
    """`values` of any shape with each element zero with probability `p`, the others multiplied by 1 / (1 - p).

    PyTorch draws a number for each element, a sixth of a training step on a CPU; a byte of one is enough. A byte knows
    `p` to the nearest 1/256 only, so each call rounds it up or down by chance, such that the mean is `p`.
    """
    if values.device.type != "cpu" or p * _LEVELS > _LEVELS - 1:
        return F.dropout(values, p)
    # From PyTorch's own stream: a checkpoint of that stream repeats the bytes, too.
    seed = torch.randint(2**63 - 1, (), device=values.device)
    levels = random_bytes(seed, values.numel()).view(values.shape)
    threshold = (p * _LEVELS - _LEVELS // 2 + torch.rand((), device=values.device)).floor()
    if torch.compiler.is_compiling():  # its kernels compare bytes one by one
        return values * torch.where(levels.float() >= threshold, 1 / (1 - p), 0.0).to(values.dtype)
    # One kernel compares and converts; values times bool would convert in each of the passes, forward and backward.
    noise = torch.ge(levels, threshold.to(torch.int8), out=values.new_empty(values.shape))
    return values * noise.mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`drop_out` while training."""

    def forward(self, input: Tensor) -> Tensor:
        """`input` of any shape -> the same shape."""
        return drop_out(input, self.p) if self.training and self.p else input


class Linear(nn.Linear):
    """A compiled step on a CPU adds the bias in the kernel that comes next, not in a pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """`input` (..., in_features) -> (..., out_features)."""
        if self.bias is None or input.device.type != "cpu" or not torch.compiler.is_compiling():
            return super().forward(input)
        product = input @ self.weight.t()
        return product + self.bias.to(product.dtype)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The library's attention, except with dropout on a CPU, where no fused kernel has dropout.

    `query`, `key`, `value` (B, heads, L, D), `attention_mask` (B, 1, L, L) bool, True where to attend, or None ->
    (B, L, heads, D), and None for the weights.
    """
    if not dropout or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        # The smallest number instead of -inf: a row that is all padding stays finite.
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return (drop_out(scores.softmax(-1), dropout) @ value).transpose(1, 2), None


AttentionInterface.register("sdpa_dropout", attend)
AttentionMaskInterface.register("sdpa_dropout", sdpa_mask)


def use_cpu_layers(network: PreTrainedModel) -> None:
    """Let a Hugging Face network compute this way; its attention only if it was asked for none other than `sdpa`."""
    stand_ins = {nn.Dropout: Dropout, nn.Linear: Linear}
    for module in network.modules():
        # The class alone changes: parameters, names and hooks stay, so checkpoints are those of the plain model.
        module.__class__ = stand_ins.get(type(module), type(module))
    if network.config._attn_implementation == "sdpa":
        network.set_attn_implementation("sdpa_dropout")

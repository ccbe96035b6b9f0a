"""The five objectives of the paper's ablation (table 5) as three choices each, and the losses they choose from.

Shapes: N positions, V vocabulary entries. Every loss comes per position, in fp32, for the caller to average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from electra_hf.model.corruption import find_highest

POSITIONS_A_CHUNK = 1024  # vocabulary logits that exist at once: 213 MB of fp32 for 52,000 entries


@dataclass(frozen=True)
class Objective:
    """What the encoder that is kept (`discriminator`) reads, what it says about a token, and where that counts.

    encoder_input: the row with the generator's samples written in, or with `[MASK]`s; only samples need a generator.
    head: `detection` (was this token replaced?), `tokens` (which token stood here?), or `tokens_or_copy`: the same,
    mixed with a learned probability that the token read is the right one.
    """

    encoder_input: Literal["corrupted", "masked"]
    head: Literal["detection", "tokens", "tokens_or_copy"]
    positions: Literal["all", "selected"]

    @property
    def has_generator(self) -> bool:
        """Whether a generator writes what the encoder reads."""
        return self.encoder_input == "corrupted"

    @property
    def predicts_tokens(self) -> bool:
        """Whether the encoder says which token stood there, and not only whether it was replaced."""
        return self.head != "detection"

    @property
    def discriminator_weight(self) -> float:
        """The default weight of its loss beside the generator's.

        The paper's 50 lifts the small loss of a yes or no to the height of the generator's; a loss over tokens is as
        high without it.
        """
        return 1.0 if self.predicts_tokens else 50.0


OBJECTIVES = {
    # The paper's names: ELECTRA, ELECTRA 15 %, All-Tokens MLM, Replace MLM and, for the last, BERT.
    "electra": Objective("corrupted", "detection", "all"),
    "electra_15": Objective("corrupted", "detection", "selected"),
    "all_tokens_mlm": Objective("corrupted", "tokens_or_copy", "all"),
    "replace_mlm": Objective("corrupted", "tokens", "selected"),
    "mlm": Objective("masked", "tokens", "selected"),
}


def mean_where(values: Tensor, where: Tensor) -> Tensor:
    """The mean of `values` where `where` holds; rows without padding make it a mean over a fixed number (rule 9)."""
    # A product and not `values[where]`, whose length would depend on the data: the device would have to be asked.
    where = where.to(values.dtype)
    # At least 1: where nothing counts the mean is 0 and not NaN.
    return (values * where).sum() / where.sum().clamp(min=1)


def detection_losses(logits: Tensor, is_replaced: Tensor) -> Tensor:
    """Binary cross-entropy per token, any shape; a logit above 0 says "replaced"."""
    return F.binary_cross_entropy_with_logits(logits, is_replaced.float(), reduction="none")


def token_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`logits` (N, V), `targets` (N,) -> cross-entropy (N,), whether the most probable token is right (N,), and the
    probabilities (N, V), fp32, without gradient. The backward pass writes the gradient of `logits` over them.
    """
    # In fp32 also under autocast: the 8 bits of bf16 are too few for a sum over a vocabulary.
    logits = logits.float()
    if torch.compiler.is_compiling():  # the compiler has its own way to keep little, and stumbles over this one
        log_probabilities = logits.log_softmax(-1)
        losses = F.nll_loss(log_probabilities, targets, reduction="none")
        best, probabilities = logits.detach().argmax(-1), log_probabilities.detach().exp()
    else:
        losses, best, probabilities = _CrossEntropy.apply(logits, targets)
    return losses, best == targets, probabilities


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy that keeps one tensor over the vocabulary beside the logits.

    PyTorch's own, and a softmax to sample from, would keep four.
    """

    @staticmethod
    def forward(ctx, logits, targets):
        probabilities = logits.softmax(-1)
        best = find_highest(logits)
        # The logarithm of the sum of exponentials, from the highest entry, whose probability is rounded the least.
        log_probability = probabilities.gather(1, best[:, None]).log()
        log_sum = logits.gather(1, best[:, None]) - log_probability
        ctx.save_for_backward(probabilities, targets)
        # The sampling reads the probabilities; no gradient may come back from there (rule 5).
        ctx.mark_non_differentiable(best, probabilities)
        # Else PyTorch would make a tensor of zeros, as large as the probabilities, for their missing gradient.
        ctx.set_materialize_grads(False)
        return (log_sum - logits.gather(1, targets[:, None])).squeeze(1), best, probabilities

    @staticmethod
    def backward(ctx, gradient, *_):
        probabilities, targets = ctx.saved_tensors
        gradient = gradient[:, None]
        # In place: the probabilities are not read again, and a new tensor over the vocabulary would be as large.
        return probabilities.mul_(gradient).scatter_add_(1, targets[:, None], -gradient), None


def token_or_copy_losses(
    logits: Tensor, copy_logits: Tensor, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """As `token_losses` for the mixture D · [the token read] + (1 - D) · softmax(logits), D = sigmoid(copy_logits).

    `copy_logits`, `inputs` (what was read) and `targets` are (N,). Paper, section 3.4, All-Tokens MLM.
    """
    log_softmax = logits.float().log_softmax(-1)
    # In logarithms throughout: the product of two small probabilities would round to zero.
    copied, predicted = F.logsigmoid(copy_logits.float()), F.logsigmoid(-copy_logits.float())
    by_prediction = predicted + log_softmax.gather(-1, targets[:, None]).squeeze(-1)
    # Where another token was read, copying it cannot be right, so only the prediction counts.
    losses = -torch.where(inputs == targets, torch.logaddexp(copied, by_prediction), by_prediction)
    with torch.no_grad():
        # The copy adds to one entry only, the token that was read: either that one is the most probable or the head's.
        highest = log_softmax.max(-1)
        read = torch.logaddexp(copied, predicted + log_softmax.gather(-1, inputs[:, None]).squeeze(-1))
        guesses = torch.where(read >= predicted + highest.values, inputs, highest.indices)
    return losses, guesses == targets


def in_chunks(function: Callable, *tensors: Tensor) -> tuple[Tensor, ...]:
    """`function(*tensors)` over N positions in chunks, each computed again in the backward pass.

    What `function` makes on its way, such as logits over the vocabulary, exists for one chunk at a time.
    """
    chunks = zip(*(tensor.split(POSITIONS_A_CHUNK) for tensor in tensors), strict=True)
    # The form of checkpointing that PyTorch recommends; it also runs where no input needs a gradient.
    parts = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))

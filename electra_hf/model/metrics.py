"""Replaced-token detection and generator metrics as running sums on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from electra_hf.model.modeling import ElectraForPretrainingOutput

# The AUC comes from two histograms of the logits: its memory does not grow with the evaluation set, and histograms
# of several processes simply add up. The bins are those of the first 16 bits of a float32, so they are the narrower
# the nearer a logit is to the centre: whatever the spread and the shift of the logits, a bin is below 1 % of a logit's
# distance from the centre (tests compare with scikit-learn).
_BINS, _DROPPED_BITS = 2**16, 16
_SUMS = (
    *("batches", "tokens"),
    *("selected", "generator_loss", "generator_correct", "replaced"),  # with a generator
    *("scored", "discriminator_loss"),
    *("tokens_correct",),  # where the discriminator predicts tokens
    *("detected", "correct", "truly_replaced", "predicted_replaced", "correctly_replaced"),  # where it detects
)


class PretrainingMetrics:
    """Counts over many batches: `update` after each, `compute` once, `reset`. Nothing waits for the device."""

    def __init__(self, device: torch.device | str):
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.histograms = torch.zeros(2 * _BINS, dtype=torch.float64, device=device)  # original, replaced
        # Of the bins: the mean logit of the first batch, NaN before it.
        self.center = torch.full((), float("nan"), device=device)

    @torch.no_grad()
    def update(self, output: ElectraForPretrainingOutput) -> None:
        """Add one batch, the output of the pair; padding counts nowhere (rule 17)."""
        scored = output.is_scored.sum()
        counts = {
            "batches": torch.ones_like(scored),
            "tokens": output.is_real.sum(),
            "scored": scored,
            "discriminator_loss": output.discriminator_loss.detach().double() * scored,
        }
        if output.generator_loss is not None:
            selected = output.is_selected.sum()
            counts["selected"] = selected
            counts["generator_loss"] = output.generator_loss.detach().double() * selected
            counts["generator_correct"] = (output.generator_is_right & output.is_selected).sum()
            counts["replaced"] = (output.is_replaced & output.is_real).sum()
        if output.is_right is not None:
            counts["tokens_correct"] = (output.is_right & output.is_scored).sum()
        if output.discriminator_logits is not None:
            counts |= self._count_detected(output)
        nothing = torch.zeros_like(scored)
        self.sums += torch.stack([counts.get(name, nothing).double() for name in _SUMS])

    def _count_detected(self, output):
        is_replaced = output.is_replaced & output.is_scored
        predicted = (output.discriminator_logits > 0) & output.is_scored
        logits = output.discriminator_logits.float().nan_to_num(0.0)
        mean = (logits * output.is_scored).sum() / output.is_scored.sum().clamp(min=1)
        self.center = torch.where(self.center.isnan(), mean, self.center)
        bins = _bin_of(logits - self.center) + _BINS * is_replaced
        self.histograms.index_add_(0, bins.flatten(), output.is_scored.flatten().double())
        return {
            "detected": output.is_scored.sum(),
            "correct": ((predicted == is_replaced) & output.is_scored).sum(),
            "truly_replaced": is_replaced.sum(),
            "predicted_replaced": predicted.sum(),
            "correctly_replaced": (predicted & is_replaced).sum(),
        }

    def reduce(self, accelerator: Accelerator) -> None:
        """Add up the sums of all processes."""
        self.sums = accelerator.reduce(self.sums, reduction="sum")
        if accelerator.num_processes > 1:
            self._share_center(accelerator.gather(self.center[None]))
        self.histograms = accelerator.reduce(self.histograms, reduction="sum")

    def _share_center(self, centers):
        """Move the counts to bins around a centre that all processes have in common."""
        common = centers.nanmean()
        shift = (self.center - common).nan_to_num(0.0)
        moved = _bin_of((_middle_of_bins(self.histograms.device) + shift).float())
        histograms = torch.zeros_like(self.histograms).view(2, _BINS)
        self.histograms = histograms.index_add_(1, moved, self.histograms.view(2, _BINS)).flatten()
        self.center = common

    def reset(self) -> None:
        """Begin anew."""
        self.sums.zero_()
        self.histograms.zero_()
        self.center = torch.full_like(self.center, float("nan"))

    def compute(self) -> dict[str, float]:
        """The metrics by name; the only place that waits for the device. What was not counted gives no number.

        Detection metrics are over the tokens that the loss counts: all, or the selected ones (`electra_15`).
        """
        count = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        metrics = {}
        if count["selected"]:
            metrics["generator_loss"] = count["generator_loss"] / count["selected"]
            metrics["generator_accuracy"] = count["generator_correct"] / count["selected"]
            metrics["replaced_share"] = count["replaced"] / count["tokens"]
        if count["scored"]:
            metrics["discriminator_loss"] = count["discriminator_loss"] / count["scored"]
        if count["detected"]:
            replaced_share = count["truly_replaced"] / count["detected"]
            metrics |= {
                "rtd_accuracy": count["correct"] / count["detected"],
                "rtd_majority_baseline": max(replaced_share, 1 - replaced_share),
                "rtd_auc": _area_under_curve(*self.histograms.view(2, _BINS)),
                "rtd_precision": _divide(count["correctly_replaced"], count["predicted_replaced"]),
                "rtd_recall": _divide(count["correctly_replaced"], count["truly_replaced"]),
            }
        elif count["scored"]:
            metrics["token_accuracy"] = count["tokens_correct"] / count["scored"]
        return metrics


def _bin_of(values: Tensor) -> Tensor:
    """The bin of each float32, any shape -> int64, in the order of the values: their first 16 bits decide."""
    bits = (values + 0.0).view(torch.int32)  # + 0.0 makes -0.0 positive
    # Negative floats count downwards in their bits; flipping those makes integers of the same order as the floats.
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered >> _DROPPED_BITS).long() + _BINS // 2


def _middle_of_bins(device) -> Tensor:
    """A value in the middle of each bin, (_BINS,) float64; 0 for bins of what is not finite."""
    ordered = (torch.arange(_BINS, device=device, dtype=torch.int32) - _BINS // 2) << _DROPPED_BITS
    ordered = ordered + (1 << (_DROPPED_BITS - 1))
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32).double().nan_to_num(0.0, 0.0, 0.0)


def _divide(part, whole):
    return part / whole if whole else 0.0


def _area_under_curve(original: Tensor, replaced: Tensor) -> float:
    """The chance that a replaced token scores above an original one, ties counted half; 0.5 where one is missing."""
    pairs = original.sum() * replaced.sum()
    originals_below = original.cumsum(0) - original
    wins = (replaced * (originals_below + original / 2)).sum()
    return (wins / pairs).item() if pairs > 0 else 0.5


# What is told when a finding of `diagnose` is over.
FINDING_IS_OVER = {
    "no better than the majority": "The discriminator has become better than always giving the more frequent answer.",
    "generator too good": "The generator is no longer too good: there is enough to detect again.",
}


def diagnose(metrics: dict[str, float]) -> dict[str, str]:
    """What the numbers say where the pair does not learn (REFERENCE section 1, the usual failures).

    Returns findings in plain words by their kind, one of `FINDING_IS_OVER`.
    """
    findings = {}
    auc = metrics.get("rtd_auc", 1.0)
    if auc < 0.6 and metrics["rtd_accuracy"] <= metrics["rtd_majority_baseline"]:
        accuracy, baseline = metrics["rtd_accuracy"], metrics["rtd_majority_baseline"]
        findings["no better than the majority"] = (
            f"The discriminator is no better than always giving the more frequent answer (accuracy {accuracy:.3f}, "
            f"majority {baseline:.3f}; AUC {auc:.2f}, chance 0.50): it would teach a tagger little. Train longer, or "
            "look at the learning rate, the vocabulary and `initializer_range` (recipes/README.md has a table of what "
            "helped)."
        )
    if metrics.get("generator_accuracy", 0.0) > 0.8 or metrics.get("replaced_share", 1.0) < 0.02:
        findings["generator too good"] = (
            f"The generator has become too good: it guesses {metrics['generator_accuracy']:.0%} of the tokens, so "
            f"only {metrics['replaced_share']:.1%} of the row are replaced and little is left to detect. Make the "
            "generator smaller (`generator`), or check the corpus for repeated text."
        )
    return findings

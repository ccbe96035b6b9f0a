"""Replaced-token detection and generator metrics as running sums on the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

from electra_hf.model.modeling import ElectraForPretrainingOutput

# The AUC comes from two histograms of the logits: its memory does not grow with the evaluation set, and histograms
# of several processes simply add up. Bins are even in asinh((logit - centre) / scale), with the centre and the scale
# of the first batch: they are narrow around the centre and grow with the distance from it. So the AUC holds for any
# spread and shift of the logits (tests compare with scikit-learn).
_BINS, _FARTHEST = 2**17, 12.0  # asinh of 80,000 times the scale
_SUMS = (
    *("batches", "tokens"),
    *("selected", "generator_loss", "generator_correct", "replaced"),  # with a generator
    *("scored", "discriminator_loss"),
    *("tokens_correct",),  # where the discriminator predicts tokens
    *("detected", "correct", "truly_replaced", "predicted_replaced", "correctly_replaced"),  # where it detects
    # With a generator: where it read [MASK]. Elsewhere it may copy what it reads, and its loss falls by copying alone.
    *("masked", "mask_loss"),  # last: checkpoints of earlier versions hold the sums before
)


class PretrainingMetrics:
    """Counts over many batches: `update` after each, `compute` once, `reset`. Nothing waits for the device."""

    def __init__(self, device: torch.device | str, width: int = 0):
        """`width`: of the encoder's states, where their rank is to be measured; 0 where it is not."""
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self.histograms = torch.zeros(2 * _BINS, dtype=torch.float64, device=device)  # original, replaced
        # Mean logit of the first batch, and mean distance from it; NaN before that batch.
        self.center_and_scale = torch.full((2,), float("nan"), device=device)
        # Sums of the products of every two dimensions of a state, and of each with 1: the covariance, whatever the
        # number of tokens. In float64, for a collapsed layer is a small spread around a large mean.
        self.moments = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=device)

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
            counts["masked"] = output.is_masked.sum()
            counts["mask_loss"] = (output.generator_losses.double() * output.is_masked).sum()
        if output.is_right is not None:
            counts["tokens_correct"] = (output.is_right & output.is_scored).sum()
        if output.discriminator_logits is not None:
            counts |= self._count_detected(output)
        if len(self.moments) > 1 and output.encoder_states is not None:
            self._add_moments(output.encoder_states, output.is_real)
        # One stacked sum instead of a sum for each name: every operation is a launch on a GPU.
        nothing = torch.zeros_like(scored)
        self.sums += torch.stack([counts.get(name, nothing).double() for name in _SUMS])

    def _count_detected(self, output):
        is_replaced = output.is_replaced & output.is_scored
        predicted = (output.discriminator_logits > 0) & output.is_scored
        # A NaN has no bin, and an index made of it would be out of range; the loss tells of it.
        logits = output.discriminator_logits.float().nan_to_num(0.0)
        self.center_and_scale = torch.where(
            self.center_and_scale.isnan(), _center_and_scale(logits, output.is_scored), self.center_and_scale
        )
        bins = _bin_of(logits, self.center_and_scale) + _BINS * is_replaced
        self.histograms.index_add_(0, bins.flatten(), output.is_scored.flatten().double())
        return {
            "detected": output.is_scored.sum(),
            "correct": ((predicted == is_replaced) & output.is_scored).sum(),
            "truly_replaced": is_replaced.sum(),
            "predicted_replaced": predicted.sum(),
            "correctly_replaced": (predicted & is_replaced).sum(),
        }

    def _add_moments(self, states, is_real):
        with_one = torch.cat([states, torch.ones_like(states[..., :1])], dim=-1).double()
        with_one = (with_one * is_real[..., None]).flatten(0, 1)
        self.moments += with_one.T @ with_one

    def reduce(self, accelerator: Accelerator) -> None:
        """Add up the sums of all processes."""
        self.sums = accelerator.reduce(self.sums, reduction="sum")
        if accelerator.num_processes > 1:
            self._share_bins(accelerator.gather(self.center_and_scale[None]))
        self.histograms = accelerator.reduce(self.histograms, reduction="sum")
        self.moments = accelerator.reduce(self.moments, reduction="sum")

    def _share_bins(self, of_processes):
        """Move the counts to bins that all processes have in common; `of_processes` (processes, 2) has their own."""
        # Each process has seen other logits first, so their bins differ; a process without a batch has NaN.
        common = of_processes.nanmean(0)
        nothing_counted = torch.tensor([0.0, 1.0], device=common.device)
        common = torch.where(common.isnan(), nothing_counted, common)
        own = torch.where(self.center_and_scale.isnan(), common, self.center_and_scale)
        moved = _bin_of(_middle_of_bins(own), common)
        histograms = torch.zeros_like(self.histograms).view(2, _BINS)
        self.histograms = histograms.index_add_(1, moved, self.histograms.view(2, _BINS)).flatten()
        self.center_and_scale = common

    def reset(self) -> None:
        """Begin anew."""
        self.sums.zero_()
        self.histograms.zero_()
        self.moments.zero_()
        self.center_and_scale = torch.full_like(self.center_and_scale, float("nan"))

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
        if count["masked"]:
            metrics["generator_mask_loss"] = count["mask_loss"] / count["masked"]
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
        if self.moments[-1, -1] > 0:
            metrics["effective_rank"] = _effective_rank(self.moments)
        return metrics


def _center_and_scale(logits, is_scored):
    number = is_scored.sum().clamp(min=1)
    center = (logits * is_scored).sum() / number
    distance = ((logits - center).abs() * is_scored).sum() / number
    return torch.stack([center, torch.where(distance > 0, distance, torch.ones_like(distance))])


def _bin_of(logits: Tensor, center_and_scale: Tensor) -> Tensor:
    """The bin of each logit, any shape -> int64."""
    center, scale = center_and_scale
    place = torch.asinh((logits - center) / scale) / _FARTHEST  # -1 to 1
    return ((place + 1) * (_BINS / 2)).clamp(0, _BINS - 1).long()


def _middle_of_bins(center_and_scale: Tensor) -> Tensor:
    """The logit in the middle of each bin, (_BINS,) float64."""
    center, scale = center_and_scale.double()
    place = (torch.arange(_BINS, device=center.device, dtype=torch.float64) + 0.5) / (_BINS / 2) - 1
    return center + scale * torch.sinh(place * _FARTHEST)


def _effective_rank(moments: Tensor) -> float:
    """In how many directions the states differ: exp of the entropy of the covariance's spectrum (Roy, Vetterli 2007).

    `moments` (width + 1, width + 1), the last row and column those of the constant 1. From 1 to the width.
    """
    if not moments.isfinite().all():
        return float("nan")
    moments = moments / moments[-1, -1]
    mean = moments[-1, :-1]
    variances = torch.linalg.eigvalsh(moments[:-1, :-1] - mean.outer(mean)).clamp(min=0)
    shares = variances / variances.sum().clamp(min=1e-30)  # all states alike: one direction
    return torch.special.entr(shares).sum().exp().item()


def _divide(part, whole):
    return part / whole if whole else 0.0


def _area_under_curve(original: Tensor, replaced: Tensor) -> float:
    """The chance that a replaced token scores above an original one, ties counted half; 0.5 where one is missing."""
    pairs = original.sum() * replaced.sum()
    # Counts are whole numbers, and whole numbers are added up in any order alike, as `full_determinism` asks.
    originals_below = original.long().cumsum(0) - original
    wins = (replaced * (originals_below + original / 2)).sum()
    return (wins / pairs).item() if pairs > 0 else 0.5


_OFF_THE_PLATEAU = 0.25  # nats below the unigram entropy; a discriminator begins to learn then (esperanto_small)
_COLLAPSED = 2.0  # effective rank below which a last layer says little more than one number of each token

# What is told when a finding of `diagnose` is over.
FINDING_IS_OVER = {
    "plateau": "The generator has left the unigram plateau: it guesses from context now.",
    "no better than the majority": "The discriminator has become better than always giving the more frequent answer.",
    "generator too good": "The generator is no longer too good: there is enough to detect again.",
    "collapsed": "The discriminator's last layer tells tokens apart in several directions again.",
}


def diagnose(metrics: dict[str, float]) -> dict[str, str]:
    """What the numbers say where the pair does not learn (REFERENCE section 1, the usual failures).

    `metrics` may hold `unigram_entropy`, in nats: where a generator should have learned more than how frequent each
    token is. Returns findings in plain words by their kind, one of `FINDING_IS_OVER`.
    """
    findings = {}
    loss, entropy = metrics.get("generator_mask_loss", 0.0), metrics.get("unigram_entropy", float("inf"))
    if loss > entropy - _OFF_THE_PLATEAU:
        findings["plateau"] = (
            f"The generator is on the unigram plateau: where it reads [MASK] its loss is {loss:.2f}, and to know "
            f"nothing but how frequent each token is gives {entropy:.2f}. Nothing that it writes can be told by its "
            "context yet. If it stays there: shorter rows (`max_length: 32`) together with an `initializer_range` of "
            "1/sqrt(hidden_size) for the generator ended this for 52,000 words, with 2,048 tokens a step and a rate "
            "of 1e-3 (recipes/esperanto_small/README.md)."
        )
    auc = metrics.get("rtd_auc", 1.0)
    if auc < 0.6 and metrics["rtd_accuracy"] <= metrics["rtd_majority_baseline"]:
        accuracy, baseline = metrics["rtd_accuracy"], metrics["rtd_majority_baseline"]
        findings["no better than the majority"] = (
            f"The discriminator is no better than always giving the more frequent answer (accuracy {accuracy:.3f}, "
            f"majority {baseline:.3f}; AUC {auc:.2f}, chance 0.50): it would teach a tagger little. Train longer, or "
            "let the generator learn first (`generator_only_steps`) and the rate rise slowly after it "
            "(`discriminator_warmup_steps`); recipes/README.md has tables of what helped."
        )
    if metrics.get("generator_accuracy", 0.0) > 0.8 or metrics.get("replaced_share", 1.0) < 0.02:
        findings["generator too good"] = (
            f"The generator has become too good: it guesses {metrics['generator_accuracy']:.0%} of the tokens, so "
            f"only {metrics['replaced_share']:.1%} of the row are replaced and little is left to detect. Make the "
            "generator smaller (`generator`), or check the corpus for repeated text."
        )
    if metrics.get("effective_rank", _COLLAPSED) < _COLLAPSED:
        findings["collapsed"] = (
            "The discriminator's last layer has collapsed: its states differ in little more than one direction "
            f"(effective rank {metrics['effective_rank']:.1f}). It has learned little from context yet: this is a "
            "plateau. Train on; recipes/README.md has what ends a plateau."
        )
    return findings

from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from electra_hf.model.metrics import FINDING_IS_OVER, PretrainingMetrics, _area_under_curve, diagnose


def batch(rows=8, length=32, seed=0, spread=2.0):
    """What the metrics read of a forward pass, with random logits that know a little about the labels."""
    torch.manual_seed(seed)
    is_replaced = torch.rand(rows, length) < 0.2
    logits = torch.randn(rows, length) * spread + is_replaced * spread
    positions = torch.stack([torch.randperm(length)[:5] for _ in range(rows)])
    is_right = torch.ones_like(positions, dtype=torch.bool)
    is_right[:, 0] = False  # one guess in five is wrong
    output = SimpleNamespace(
        generator_loss=torch.tensor(3.0 + seed),
        discriminator_loss=torch.tensor(0.3),
        selected_positions=positions,
        is_selected=torch.ones_like(positions, dtype=torch.bool),
        generator_is_right=is_right,
        generator_losses=torch.full(positions.shape, 4.0),
        is_masked=torch.ones_like(positions, dtype=torch.bool),
        is_replaced=is_replaced,
        discriminator_logits=logits,
        is_scored=torch.ones_like(is_replaced),
        is_right=None,
        is_real=torch.ones_like(is_replaced),
    )
    return output


def test_the_metrics_equal_those_of_scikit_learn_over_all_batches():
    metrics, logits, labels = PretrainingMetrics("cpu"), [], []
    for seed in range(3):
        output = batch(seed=seed)
        metrics.update(output)
        logits.append(output.discriminator_logits.flatten())
        labels.append(output.is_replaced.flatten())
    logits, labels = torch.cat(logits), torch.cat(labels)
    values = metrics.compute()
    assert values["rtd_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-4)
    assert values["rtd_precision"] == pytest.approx(precision_score(labels, logits > 0))
    assert values["rtd_recall"] == pytest.approx(recall_score(labels, logits > 0))
    assert values["rtd_accuracy"] == pytest.approx(((logits > 0) == labels).double().mean().item())
    assert values["rtd_majority_baseline"] == pytest.approx(1 - labels.double().mean().item())
    assert values["replaced_share"] == pytest.approx(labels.double().mean().item())
    assert values["generator_loss"] == values["generator_mask_loss"] == pytest.approx(4.0)
    assert values["generator_accuracy"] == pytest.approx(0.8)


def test_rule_17_padding_counts_nowhere():
    output = batch()
    output.is_real[:, 20:] = output.is_scored[:, 20:] = False
    output.discriminator_logits[:, 20:] = -9.0  # easy negatives, if they counted
    metrics = PretrainingMetrics("cpu")
    metrics.update(output)
    values = metrics.compute()
    labels, logits = output.is_replaced[:, :20].flatten(), output.discriminator_logits[:, :20].flatten()
    assert values["rtd_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)
    assert values["rtd_accuracy"] == pytest.approx(((logits > 0) == labels).double().mean().item())


def test_where_only_the_selected_tokens_are_detected_only_they_count():
    output = batch()
    output.is_scored = torch.zeros_like(output.is_real).scatter(1, output.selected_positions, True)
    metrics = PretrainingMetrics("cpu")
    metrics.update(output)
    values = metrics.compute()
    labels, logits = output.is_replaced[output.is_scored], output.discriminator_logits[output.is_scored]
    assert values["rtd_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)
    assert values["rtd_accuracy"] == pytest.approx(((logits > 0) == labels).double().mean().item())
    assert values["replaced_share"] == pytest.approx(output.is_replaced.double().mean().item())


def test_where_tokens_are_predicted_their_accuracy_stands_in_place_of_detection():
    output = batch()
    output.discriminator_logits = output.generator_loss = None  # the objective `mlm`
    output.is_right, output.is_scored = output.generator_is_right, output.is_selected
    output.is_scored[0] = False  # padding, say
    metrics = PretrainingMetrics("cpu")
    metrics.update(output)
    assert metrics.compute() == {"discriminator_loss": pytest.approx(0.3), "token_accuracy": pytest.approx(0.8)}
    assert diagnose(metrics.compute()) == {}


def test_nothing_counted_gives_no_number():
    assert PretrainingMetrics("cpu").compute() == {}


def healthy(**changes):
    return {
        "rtd_accuracy": 0.95,
        "rtd_majority_baseline": 0.9,
        "rtd_auc": 0.9,
        "generator_accuracy": 0.4,
        "replaced_share": 0.1,
        **changes,
    }


def test_a_healthy_pair_gets_no_warning():
    assert diagnose(healthy()) == {}


def test_a_discriminator_at_the_majority_is_named():
    (finding,) = diagnose(healthy(rtd_accuracy=0.9, rtd_auc=0.53)).values()
    assert "no better than always giving the more frequent answer" in finding


def test_a_generator_that_leaves_nothing_to_detect_is_named():
    (finding,) = diagnose(healthy(generator_accuracy=0.9, replaced_share=0.01)).values()
    assert "too good" in finding


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0, 50.0])
@pytest.mark.parametrize("shift", [0.0, -20.0, 300.0])
def test_the_area_under_the_curve_holds_for_any_spread_and_shift_of_the_logits(spread, shift):
    metrics, logits, labels = PretrainingMetrics("cpu"), [], []
    for seed in range(3):
        output = batch(rows=64, seed=seed, spread=spread)
        output.discriminator_logits = output.discriminator_logits + shift
        metrics.update(output)
        logits.append(output.discriminator_logits.flatten())
        labels.append(output.is_replaced.flatten())
    expected = roc_auc_score(torch.cat(labels), torch.cat(logits))
    assert metrics.compute()["rtd_auc"] == pytest.approx(expected, abs=1e-3)


class TwoProcesses:
    """Stands in for an accelerator of two processes whose metrics are given."""

    num_processes = 2

    def __init__(self, *metrics):
        self.metrics = metrics
        self.bins = torch.stack([each.center_and_scale for each in metrics])

    def gather(self, bins):
        return self.bins

    def reduce(self, tensor, reduction):
        return tensor


@pytest.mark.parametrize("shift", [0.0, -20.0])
def test_counts_of_processes_with_other_centres_add_up(shift):
    parts, logits, labels = [], [], []
    for seed in range(2):
        output = batch(rows=64, seed=seed, spread=0.1)
        output.discriminator_logits = output.discriminator_logits + shift + seed * 0.3
        parts.append(PretrainingMetrics("cpu"))
        parts[-1].update(output)
        logits.append(output.discriminator_logits.flatten())
        labels.append(output.is_replaced.flatten())
    both = TwoProcesses(*parts)
    for part in parts:
        part.reduce(both)
    total = parts[0]
    total.sums, total.histograms = total.sums + parts[1].sums, total.histograms + parts[1].histograms
    expected = roc_auc_score(torch.cat(labels), torch.cat(logits))
    assert total.compute()["rtd_auc"] == pytest.approx(expected, abs=1e-3)


def states_batch(states, is_real=None):
    """A batch whose encoder states are `states` (B, L, D)."""
    output = batch(*states.shape[:2])
    output.encoder_states = states
    output.is_real = torch.ones(states.shape[:2], dtype=torch.bool) if is_real is None else is_real
    return output


def rank_of(*outputs, width=6):
    metrics = PretrainingMetrics("cpu", width)
    for output in outputs:
        metrics.update(output)
    return metrics.compute()["effective_rank"]


def test_the_effective_rank_is_the_number_of_directions_in_which_the_states_differ():
    torch.manual_seed(0)
    states = torch.randn(64, 32, 6)
    assert rank_of(states_batch(states)) == pytest.approx(6, abs=0.05)
    assert rank_of(states_batch(states * torch.tensor([1, 0, 1, 0, 1, 0]))) == pytest.approx(3, abs=0.02)
    one_line = torch.randn(64, 32, 1) * torch.randn(6) + 1000.0  # a small spread far from zero
    assert rank_of(states_batch(one_line)) == pytest.approx(1, abs=0.02)
    assert rank_of(states_batch(torch.ones(64, 32, 6))) == pytest.approx(1)


def test_the_effective_rank_is_over_all_batches_and_no_padding():
    torch.manual_seed(0)
    states = torch.randn(3, 8, 32, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) + torch.randn(3, 1, 1, 6)
    is_real = torch.rand(3, 8, 32) < 0.7
    singular = torch.linalg.svdvals(states[is_real] - states[is_real].mean(0)).double()  # numpy's way, on all at once
    shares = singular**2 / (singular**2).sum()
    expected = torch.exp(-(shares * shares.log()).sum()).item()
    states[~is_real] = 9.0
    assert rank_of(*map(states_batch, states, is_real)) == pytest.approx(expected, rel=1e-4)


def test_a_collapsed_layer_is_told_in_plain_words_and_no_number_is_no_finding():
    collapsed = diagnose({"effective_rank": 1.2})
    assert list(collapsed) == ["collapsed"] and "1.2" in collapsed["collapsed"]
    assert set(collapsed) <= set(FINDING_IS_OVER)
    assert diagnose({"effective_rank": 12.0}) == diagnose({}) == {}


def test_the_area_under_the_curve_takes_no_running_sum_of_floating_point_numbers_which_cuda_may_refuse(monkeypatch):
    real = torch.Tensor.cumsum
    summed = []
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, *args: summed.append(self.dtype) or real(self, *args))
    original, replaced = torch.tensor([3.0, 1.0, 0.0]).double(), torch.tensor([0.0, 1.0, 2.0]).double()
    # Of 12 pairs the one in the middle wins 3 and is even in 1, the two on the right win 4 each.
    assert _area_under_curve(original, replaced) == pytest.approx((3 + 0.5 + 2 * 4) / 12)
    assert summed == [torch.int64]


def test_the_loss_where_the_generator_reads_a_mask_counts_apart():
    output = batch()
    output.generator_losses = torch.arange(output.is_selected.numel(), dtype=torch.float32).view_as(output.is_selected)
    output.is_masked = output.generator_losses % 3 == 0
    metrics = PretrainingMetrics("cpu")
    metrics.update(output)
    expected = output.generator_losses[output.is_masked].double().mean().item()
    assert metrics.compute()["generator_mask_loss"] == pytest.approx(expected)


def test_a_generator_that_knows_only_how_frequent_tokens_are_is_named_with_what_ends_it():
    (finding,) = diagnose(healthy(generator_mask_loss=7.2, unigram_entropy=7.3)).values()
    assert "7.20" in finding and "7.30" in finding and "max_length: 32" in finding and "initializer_range" in finding
    assert diagnose(healthy(generator_mask_loss=7.0, unigram_entropy=7.3)) == {}
    assert diagnose(healthy(generator_mask_loss=7.2)) == {}  # too early to say

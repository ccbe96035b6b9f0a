from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from electra_hf.metrics import PretrainingMetrics, diagnose


def batch(rows=8, length=32, seed=0, spread=2.0):
    """What the metrics read of a forward pass, with random logits that know a little about the labels."""
    torch.manual_seed(seed)
    is_replaced = torch.rand(rows, length) < 0.2
    logits = torch.randn(rows, length) * spread + is_replaced * spread
    input_ids = torch.randint(5, 50, (rows, length))
    positions = torch.stack([torch.randperm(length)[:5] for _ in range(rows)])
    predictions = input_ids.gather(1, positions)
    predictions[:, 0] += 1  # one guess in five is wrong
    output = SimpleNamespace(
        generator_loss=torch.tensor(3.0 + seed),
        discriminator_loss=torch.tensor(0.3),
        selected_positions=positions,
        is_selected=torch.ones_like(positions, dtype=torch.bool),
        generator_predictions=predictions,
        is_replaced=is_replaced,
        discriminator_logits=logits,
    )
    return output, input_ids, torch.ones_like(input_ids, dtype=torch.bool)


def test_the_metrics_equal_those_of_scikit_learn_over_all_batches():
    metrics, logits, labels = PretrainingMetrics("cpu"), [], []
    for seed in range(3):
        output, input_ids, is_real = batch(seed=seed)
        metrics.update(output, input_ids, is_real)
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
    assert values["generator_loss"] == pytest.approx(4.0)
    assert values["generator_accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize("spread", [0.01, 0.1, 10.0])
def test_the_area_under_the_curve_is_exact_for_small_and_large_logits(spread):
    output, input_ids, is_real = batch(rows=64, spread=spread)
    metrics = PretrainingMetrics("cpu")
    metrics.update(output, input_ids, is_real)
    expected = roc_auc_score(output.is_replaced.flatten(), output.discriminator_logits.flatten().clamp(-16, 16))
    assert metrics.compute()["rtd_auc"] == pytest.approx(expected, abs=0.02 if spread == 0.01 else 1e-3)


def test_rule_17_padding_counts_nowhere():
    output, input_ids, is_real = batch()
    is_real[:, 20:] = False
    output.discriminator_logits[:, 20:] = -9.0  # easy negatives, if they counted
    metrics = PretrainingMetrics("cpu")
    metrics.update(output, input_ids, is_real)
    values = metrics.compute()
    labels, logits = output.is_replaced[:, :20].flatten(), output.discriminator_logits[:, :20].flatten()
    assert values["rtd_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-3)
    assert values["rtd_accuracy"] == pytest.approx(((logits > 0) == labels).double().mean().item())


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
    assert diagnose(healthy()) == []


def test_a_discriminator_at_the_majority_is_named():
    (finding,) = diagnose(healthy(rtd_accuracy=0.9, rtd_auc=0.53))
    assert "no better than always answering 'original'" in finding


def test_a_generator_that_leaves_nothing_to_detect_is_named():
    (finding,) = diagnose(healthy(generator_accuracy=0.9, replaced_share=0.01))
    assert "too good" in finding

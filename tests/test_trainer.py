"""`ElectraTrainer` on a tiny pair: what it logs, what it evaluates, and that splitting a batch changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, List, Value

from electra_hf import ElectraTrainer
from electra_hf.arguments import PretrainingArguments
from electra_hf.packing import PackedRows


def packed(ids):
    features = Features({"input_ids": List(Value("uint16"), length=ids.shape[1])})
    return PackedRows(Dataset.from_dict({"input_ids": ids.numpy().astype("uint16")}, features=features))


@pytest.fixture
def make_trainer(tiny_model, rows, tmp_path):
    def make(model=None, train_rows=64, test_rows=21, folder="run", **settings):
        defaults = {"max_steps": 4, "warmup_steps": 2, "logging_steps": 2, "per_device_train_batch_size": 8}
        arguments = PretrainingArguments(
            output_dir=str(tmp_path / folder), **{**defaults, **settings}, use_cpu=True, disable_tqdm=True
        )
        return ElectraTrainer(
            model or tiny_model(),
            arguments,
            train_dataset=packed(rows(train_rows)),
            eval_dataset=packed(rows(test_rows, seed=9)),
        )

    return make


LOGGED = (
    "loss generator_loss discriminator_loss generator_accuracy rtd_accuracy rtd_majority_baseline rtd_auc "
    "rtd_precision rtd_recall replaced_share"
).split()


def test_every_log_and_evaluation_holds_both_losses_and_the_detection_metrics(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=4)
    result = trainer.train()
    training = [log for log in trainer.state.log_history if "loss" in log]
    evaluation = [log for log in trainer.state.log_history if "eval_loss" in log]
    assert [log["step"] for log in training] == [2, 4] and len(evaluation) == 1
    assert all(name in log for name in LOGGED for log in training)
    assert all(f"eval_{name}" in evaluation[0] for name in LOGGED)
    assert training[-1]["tokens_per_second"] > 0
    assert result.metrics["train_tokens"] == 4 * 8 * 16
    assert result.metrics["train_tokens_per_second"] > 0


def test_the_logged_losses_are_weighted_sums_of_one_another(make_trainer):
    trainer = make_trainer()
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["loss"] == pytest.approx(log["generator_loss"] + 50 * log["discriminator_loss"], rel=1e-3)


def test_training_changes_every_parameter(make_trainer):
    trainer = make_trainer()
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        # Attention is blind to a bias that all its keys share: its gradient is zero but for rounding.
        assert name.endswith("key.bias") or not torch.equal(parameter, before[name]), name


def test_an_evaluation_repeats_exactly_and_leaves_the_random_stream_alone(make_trainer):
    trainer = make_trainer()
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    first = trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), stream)
    torch.manual_seed(6)
    second = trainer.evaluate()
    assert {k: v for k, v in first.items() if k.startswith("eval_rtd")} == {
        k: v for k, v in second.items() if k.startswith("eval_rtd")
    }


def test_an_evaluation_counts_every_row_once(make_trainer):
    trainer = make_trainer(test_rows=21, per_device_eval_batch_size=8)
    trainer.evaluate()
    counts = dict(zip(("batches", "selected", "_", "_", "tokens"), trainer._evaluation_metrics.sums, strict=False))
    assert (counts["batches"], counts["selected"], counts["tokens"]) == (3, 21 * 2, 21 * 16)


def test_rule_15_the_learning_rate_is_a_linear_decay_times_the_warm_up(make_trainer):
    trainer = make_trainer(max_steps=10, warmup_steps=4, logging_steps=1, learning_rate=1.0)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    expected = [(1 - step / 10) * min(1, (step + 1) / 4) for step in range(10)]
    assert rates == pytest.approx(expected)


def test_a_warning_in_plain_words_names_a_discriminator_at_the_majority(make_trainer, caplog):
    make_trainer(max_steps=2, logging_steps=2).train()
    assert "no better than always answering 'original'" in caplog.text


@pytest.fixture
def draws_by_row(monkeypatch):
    """Corruption that depends on the row alone, so that a batch and its parts see the same one."""

    def by_row(size, device=None):
        return torch.full(size, 0.5) if size[-1] == 1 else torch.linspace(0, 0.999, size[-1]).expand(size)

    monkeypatch.setattr("electra_hf.corruption.torch.rand", by_row)


def test_batch_and_accumulation_trade_against_each_other_without_changing_the_result(make_trainer, draws_by_row):
    results = []
    for batch, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(
            folder=f"run-{batch}",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            learning_rate=1e-3,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        results.append((losses, trainer.model.state_dict()))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, results[0][1][name], rtol=1e-3, atol=1e-4, msg=name)

"""`ElectraTrainer` on a tiny pair: what it logs, what it evaluates, and that splitting a batch changes nothing."""

import signal
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from test_kill import interrupt
from tiny import torchrun
from transformers import TrainerCallback

from electra_hf import ElectraTrainer
from electra_hf.errors import InputError
from electra_hf.model.metrics import diagnose
from electra_hf.training.callbacks import resting_parameters
from electra_hf.training.checkpoints import find_damage, find_last_checkpoint, sorted_checkpoints
from electra_hf.training.stopping import CleanStop

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
    batches, tokens, selected = trainer._evaluation_metrics.sums[:3]
    assert (batches, tokens, selected) == (3, 21 * 16, 21 * 2)


def test_rule_15_the_learning_rate_is_a_linear_decay_times_the_warm_up(make_trainer):
    trainer = make_trainer(max_steps=10, warmup_steps=4, logging_steps=1, learning_rate=1.0)
    trainer.train()
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    expected = [(1 - step / 10) * min(1, (step + 1) / 4) for step in range(10)]
    assert rates == pytest.approx(expected)


def test_a_warning_in_plain_words_names_a_discriminator_at_the_majority(make_trainer, caplog):
    make_trainer(max_steps=2, logging_steps=2).train()
    assert "no better than always giving the more frequent answer" in caplog.text


def test_a_plateau_is_told_when_a_tenth_of_the_run_is_over_and_not_before(make_trainer):
    trainer = make_trainer(max_steps=30, logging_steps=1, learning_rate=1e-9, warmup_steps=1)
    told = {}
    trainer._warn = lambda source, findings: told.setdefault(trainer.state.global_step, "plateau" in findings)
    trainer.train()
    assert [told[step] for step in (1, 2, 3, 4, 30)] == [False, False, True, True, True]
    ids = np.concatenate([row["input_ids"] for row in trainer.train_dataset])
    _, counts = np.unique(ids[~np.isin(ids, trainer.model.config.special_token_ids)], return_counts=True)
    assert trainer._unigram_entropy == pytest.approx(scipy.stats.entropy(counts))


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


def test_in_two_stages_the_generator_learns_alone_and_the_discriminator_starts_from_it(make_trainer, tiny_model):
    same_width = {"hidden_size": 16, "num_attention_heads": 2}
    trainer = make_trainer(tiny_model(generator=same_width), max_steps=4, generator_only_steps=3, logging_steps=1)
    model = trainer.model
    resting = {id(parameter): parameter.detach().clone() for parameter in resting_parameters(model)}
    at_the_switch = {}

    class AtTheSwitch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                at_the_switch.update({id(parameter): parameter.detach().clone() for parameter in model.parameters()})
                query = model.discriminator.electra.encoder.layer[0].attention.self.query.weight
                copied.append(torch.equal(query, model.generator.electra.encoder.layer[0].attention.self.query.weight))

        def on_step_end(self, args, state, control, optimizer, **kwargs):
            if state.global_step == 3:
                assert not any(parameter in optimizer.state for parameter in resting_parameters(model))

    copied = []
    trainer.add_callback(AtTheSwitch())
    trainer.train()
    first = [log for log in trainer.state.log_history if "loss" in log][:3]
    assert not [log for log in first if "rtd_auc" in log or "discriminator_loss" in log]
    assert [log["loss"] for log in first] == pytest.approx([log["generator_loss"] for log in first], rel=1e-5)
    # The head has rested: no gradient, no weight decay. The layer has been copied from the generator at the switch.
    head = model.discriminator.discriminator_predictions.dense.weight
    assert torch.equal(at_the_switch[id(head)], resting[id(head)])
    assert copied == [True]
    states = trainer.optimizer.state
    assert states[head]["step"] == 1
    assert states[model.generator.generator_lm_head.bias]["step"] == 4
    assert [log["step"] for log in trainer.state.log_history if "rtd_auc" in log] == [4]


def test_a_first_stage_of_the_generator_alone_needs_a_generator(make_trainer, tiny_model):
    with pytest.raises(InputError, match="generator_only_steps: the objective mlm has no generator"):
        make_trainer(tiny_model(objective="mlm"), generator_only_steps=2)


@pytest.mark.slow
def test_with_every_objective_and_sharing_two_processes_train_and_evaluate_as_one_does(tmp_path):
    script, results = Path(__file__).parents[1] / "train_tiny.py", []
    for processes in (1, 2):
        result = tmp_path / f"{processes}.pt"
        torchrun(script, result, tmp_path / "run", 8 // processes, processes=processes)
        results.append(torch.load(result, weights_only=True))
    for pair, one in results[0]["runs"].items():
        two = results[1]["runs"][pair]
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-5), pair
        for name, weight in one["weights"].items():
            torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=f"{pair}: {name}")
        for name, value in one["evaluation"].items():
            # Of 42 tokens two are the rarer ones: a pair of equal logits moves the AUC by 0.0125.
            tolerance = {"abs": 0.02} if name == "eval_rtd_auc" else {"rel": 1e-3}
            assert two["evaluation"][name] == pytest.approx(value, **tolerance), (pair, name)
    two = results[1]
    # With the real draws, the processes select different positions.
    assert len(two["first_draws"]) == 2 and two["first_draws"][0] != two["first_draws"][1]


def test_a_run_resumed_in_the_middle_ends_in_the_same_weights(make_trainer, tiny_model):
    def model():
        return tiny_model(discriminator={"hidden_dropout_prob": 0.1}, generator={"hidden_dropout_prob": 0.1})

    whole = make_trainer(model(), max_steps=6, save_steps=3, folder="run")
    whole.train()
    resumed = make_trainer(model(), max_steps=6, save_steps=3, folder="run")
    resumed.train(resume_from_checkpoint=str(Path(resumed.args.output_dir) / "checkpoint-3"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_a_signal_during_training_ends_it_after_a_complete_checkpoint(make_trainer):
    trainer = make_trainer(max_steps=50, save_strategy="no", eval_strategy="steps", eval_steps=3)
    stop = CleanStop()
    trainer.add_callback(stop)
    trainer.add_callback(AtStep(3, lambda: interrupt(stop)))
    trainer.train()
    step = trainer.state.global_step
    assert step in (3, 4)
    assert find_damage(Path(trainer.args.output_dir) / f"checkpoint-{step}") is None
    assert not any("eval_loss" in log for log in trainer.state.log_history if log["step"] == step)
    with pytest.raises(SystemExit) as end:
        stop.exit_if_stopped()
    assert end.value.code == 143


def test_a_limit_of_hours_ends_training_the_same_way_with_exit_code_0(make_trainer):
    trainer = make_trainer(max_steps=50, save_strategy="no")
    stop = CleanStop(max_train_hours=0.0)
    trainer.add_callback(stop)
    trainer.train()
    assert trainer.state.global_step == 1
    assert find_damage(Path(trainer.args.output_dir) / "checkpoint-1") is None
    with pytest.raises(SystemExit) as end:
        stop.exit_if_stopped()
    assert end.value.code == 0


def test_a_run_that_was_not_stopped_goes_on(make_trainer):
    trainer = make_trainer(max_steps=2)
    stop = CleanStop()
    trainer.add_callback(stop)
    trainer.train()
    stop.exit_if_stopped()


class AtStep(TrainerCallback):
    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def test_rotation_leaves_sealed_checkpoints_alone_up_to_the_limit(make_trainer):
    trainer = make_trainer(max_steps=5, save_steps=1, save_total_limit=2)
    trainer.train()
    folders = sorted_checkpoints(trainer.args.output_dir)
    assert [folder.name for folder in folders] == ["checkpoint-4", "checkpoint-5"]
    assert all(find_damage(folder) is None for folder in folders)


@pytest.fixture(autouse=True)
def restore_signal_handlers():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Spoil(ElectraTrainer):
    """Makes the loss of the given steps infinite or not a number."""

    spoiled = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss * float("nan") if self.state.global_step in self.spoiled else loss


def spoil(trainer, steps):
    trainer.__class__ = Spoil
    trainer.spoiled = steps
    return trainer


def test_a_step_that_is_not_finite_leaves_weights_and_optimizer_alone_and_is_counted(make_trainer):
    trainer = spoil(make_trainer(max_steps=4, logging_steps=1, save_steps=1, save_total_limit=9), {2})
    trainer.train()
    before, after = (
        load_file(Path(trainer.args.output_dir) / f"checkpoint-{step}" / "model.safetensors") for step in (2, 3)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())
    assert [log.get("skipped_steps") for log in trainer.state.log_history if "loss" in log] == [None, None, 1, 1]
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3}


def test_many_such_steps_in_a_row_stop_the_run_with_its_weights_as_they_were(make_trainer):
    trainer = spoil(make_trainer(max_steps=60, logging_steps=5, save_steps=10), set(range(3, 60)))
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        trainer.train()
    assert trainer.state.global_step == 15
    weights = load_file(find_last_checkpoint(trainer.args.output_dir) / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert all(torch.isfinite(weight).all() for weight in trainer.model.state_dict().values())


def test_a_finding_is_told_once_and_again_when_it_is_over(make_trainer, caplog):
    trainer = make_trainer()
    stuck = {"rtd_auc": 0.5, "rtd_accuracy": 0.9, "rtd_majority_baseline": 0.9}
    for number in range(20):
        trainer._warn("training", diagnose(stuck | {"rtd_auc": 0.5 + number / 1000}))
        trainer._warn("evaluation", diagnose(stuck | {"rtd_auc": 0.51 + number / 1000}))
    assert len(caplog.messages) == 1 and "no better than always" in caplog.messages[0]
    for source in ("training", "evaluation"):
        trainer._warn(source, diagnose(stuck | {"rtd_auc": 0.7}))
    assert len(caplog.messages) == 2 and "has become better" in caplog.messages[1]


def test_tokens_are_those_that_were_read_where_micro_batches_do_not_fill_the_last_step_of_an_epoch(make_trainer):
    # 40 rows of 16 tokens in micro-batches of 8: five of them, in steps of three and two.
    trainer = make_trainer(train_rows=40, max_steps=4, gradient_accumulation_steps=3)
    assert trainer.train().metrics["train_tokens"] == 2 * 40 * 16


def test_changed_intervals_and_a_longer_run_are_taken_up_on_resume_and_told(make_trainer, caplog):
    make_trainer(max_steps=2, save_steps=2, logging_steps=2).train()
    trainer = make_trainer(max_steps=6, save_steps=2, logging_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [2, 3, 4, 5, 6]
    (told,) = [message for message in caplog.messages if "with other settings than before" in message]
    assert "logging_steps: 2, now 1" in told and "learning rate of each: 2, now 6" in told


def test_padded_rows_in_several_micro_batches_are_refused(make_trainer, rows):
    trainer = make_trainer(gradient_accumulation_steps=2)
    trainer.train_dataset = [{"input_ids": row} for row in rows(8)]
    with pytest.raises(InputError, match="exact on packed rows alone"):
        trainer.check_start(None)

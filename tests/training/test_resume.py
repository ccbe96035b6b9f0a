"""Exact resume: a run that was stopped and resumed equals the run that never was, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import sharded, torchrun

from electra_hf.errors import InputError
from electra_hf.model.objectives import OBJECTIVES
from electra_hf.model.sharing import EMBEDDING_SHARINGS
from electra_hf.training.checkpoints import sorted_checkpoints

STEPS = 6
CLOCK = ("runtime", "per_second")  # what no two runs share


def with_dropout(tiny_model, **kwargs):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return tiny_model(discriminator=dropout, generator=dropout, **kwargs)


def without_clock(log):
    return {name: value for name, value in log.items() if not any(word in name for word in CLOCK)}


def load(checkpoint):
    """Everything in a checkpoint that a run goes on from."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    content = {"logs": [without_clock(log) for log in state["log_history"]]}
    for file in checkpoint.glob("*.safetensors"):
        content[file.name] = {name: tensor for name, tensor in load_file(file).items() if name != "seconds"}
    with torch.serialization.safe_globals(numpy_globals()):
        for file in (*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")):
            content[file.name] = torch.load(file, weights_only=True)
    return content


def numpy_globals():
    import numpy as np

    return [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]


def assert_equal(one, other, where=""):
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, atol=0, rtol=0, equal_nan=True, msg=where)
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{number}")
    elif hasattr(one, "tolist"):
        assert one.tolist() == other.tolist(), where
    else:
        assert one == other, where


@pytest.fixture
def check_resume(make_trainer, tiny_model):
    """Train once to the end; then from each of its checkpoints again, and compare the last ones."""

    def check(steps, model=None, **settings):
        def trainer(folder):
            return make_trainer(
                model() if model else with_dropout(tiny_model),
                **{"max_steps": STEPS, "save_steps": 1, "logging_steps": 4, "save_total_limit": None} | settings,
                folder=folder,
            )

        whole = trainer("whole")
        whole.train()
        folders = {int(folder.name.split("-")[1]): folder for folder in sorted_checkpoints(whole.args.output_dir)}
        last = max(folders)
        expected = load(folders[last])
        for step in steps:
            resumed = trainer(f"resumed-{step}")
            resumed.train(str(folders[step]))
            assert_equal(expected, load(Path(resumed.args.output_dir) / f"checkpoint-{last}"), f"from {step}")
        return trainer, folders

    return check


# 32 rows of batch 8 make an epoch of 4 steps: 1 is the first, 3 inside, 4 the border, 5 behind it.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("accumulation", "number"), [(1, 32), (4, 128)])
def test_from_any_step_the_rest_is_the_same(check_resume, workers, accumulation, number):
    settings = {"dataloader_num_workers": workers, "gradient_accumulation_steps": accumulation, "train_rows": number}
    check_resume((1, 3, 4, 5), **settings)


def test_a_run_resumed_inside_its_second_epoch_and_between_two_logs_is_the_same(check_resume):
    check_resume((5,), train_rows=32)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_in_shards_in_an_order_that_is_computed_resume_as_exactly(check_resume, rows, tmp_path, workers):
    # Shards of 9, 0 and 23 rows: the second step reads over the border of two, and the fifth begins an epoch.
    shards = sharded(rows(32), tmp_path, [9, 0, 23])
    check_resume((1, 3, 4, 5), train_rows=shards, dataloader_num_workers=workers)


def test_a_run_resumed_between_the_rows_of_two_shards_is_the_same(check_resume, make_trainer, rows, tmp_path):
    shards = sharded(rows(12), tmp_path, [5, 7])
    is_first = [row < 5 for row in make_trainer(train_rows=shards)._get_train_sampler()]
    # With one row a step, the checkpoint of such a step lies on the border: the next row is of the other shard.
    borders = [step for step in range(1, STEPS) if is_first[step - 1] != is_first[step]]
    assert len(set(is_first[:STEPS])) == 2
    check_resume(borders[:2], train_rows=shards, per_device_train_batch_size=1)


def test_an_evaluation_in_between_changes_nothing(check_resume):
    check_resume((2,), eval_strategy="steps", eval_steps=2)


def test_a_last_epoch_step_of_fewer_batches_is_the_same(check_resume):
    check_resume((3,), gradient_accumulation_steps=2, train_rows=56)


def test_a_run_resumed_twice_is_the_same(check_resume):
    trainer, folders = check_resume((2,))
    twice = trainer("resumed-2")
    output_dir = Path(twice.args.output_dir)
    shutil.rmtree(output_dir / "checkpoint-6")
    twice.train(str(output_dir / "checkpoint-4"))
    assert_equal(load(output_dir / "checkpoint-6"), load(folders[6]))


@pytest.mark.slow
def test_on_the_last_step_of_an_epoch_and_of_the_run_a_run_resumed_again_and_again_is_the_same(check_resume):
    epochs = {"train_rows": 32, "max_steps": -1, "num_train_epochs": 3}  # of 4 steps
    trainer, folders = check_resume((4,), **epochs)
    first = trainer("resumed-4")
    second = trainer("twice")
    second.train(str(Path(first.args.output_dir) / "checkpoint-8"))
    last = Path(second.args.output_dir) / "checkpoint-12"
    assert_equal(load(last), load(folders[12]))
    # On its last step nothing is left to do, however often it is started.
    files = {path: path.stat().st_mtime_ns for path in last.iterdir()}
    for _ in range(2):
        third = trainer("twice")
        third.train(str(last))
        assert third.state.global_step == 12
        assert_equal(dict(third.model.state_dict()), dict(second.model.state_dict()))
        assert without_clock(third.evaluate()) == without_clock(second.evaluate())
    assert {path: path.stat().st_mtime_ns for path in last.iterdir()} == files
    assert [folder.name for folder in sorted_checkpoints(third.args.output_dir)][-1] == "checkpoint-12"


def test_at_before_and_after_the_end_of_the_generator_only_steps_it_is_the_same(check_resume, tiny_model):
    def model():
        same_width = {"hidden_size": 16, "num_attention_heads": 2, "hidden_dropout_prob": 0.1}
        return tiny_model(generator=same_width)

    check_resume((2, 3, 4), model=model, generator_only_steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", EMBEDDING_SHARINGS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_every_sharing_resumes_the_same(check_resume, tiny_model, objective, sharing):
    def model():
        return with_dropout(tiny_model, objective=objective, embedding_sharing=sharing)

    check_resume((2,), model=model, max_steps=3)


def test_a_longer_max_steps_goes_on_and_the_library_misses_nothing_in_the_checkpoint(make_trainer, monkeypatch):
    warnings = []
    monkeypatch.setattr("transformers.trainer.logger.warning", warnings.append)
    make_trainer(max_steps=2).train()
    longer = make_trainer(max_steps=4)
    longer.train(str(Path(longer.args.output_dir) / "checkpoint-2"))
    assert longer.state.global_step == 4
    assert warnings == []  # such as "missing keys": what is shared stands in a checkpoint once


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        ({"train_rows": 72}, {}, "number was 64, now 72"),
        ({"per_device_train_batch_size": 4}, {}, "rows of a step was 8, now 4"),
        ({"seed": 5}, {}, "settings.seed was 42, now 5"),
        ({"generator_only_steps": 1}, {}, "settings.generator_only_steps was 0, now 1"),
        ({"learning_rate": 1e-3}, {}, "settings.learning_rate was 0.0005, now 0.001"),
        ({}, {"discriminator_weight": 10.0}, "discriminator_weight was 50.0, now 10.0"),
        ({}, {"mask_probability": 0.3}, "mask_probability was 0.15, now 0.3"),
        ({}, {"discriminator": {"num_hidden_layers": 1}}, "num_hidden_layers was 2, now 1"),
    ],
)
def test_another_run_is_refused_with_the_difference(make_trainer, tiny_model, settings, model, words):
    make_trainer(max_steps=2).train()
    other = make_trainer(tiny_model(**model), **settings)
    with pytest.raises(InputError, match="belongs to a run with other settings") as refusal:
        other.train(str(Path(other.args.output_dir) / "checkpoint-2"))
    assert words in str(refusal.value)


def test_another_number_of_processes_is_refused(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    facts = json.loads((checkpoint / "run.json").read_text())
    facts["settings"]["world_size"] = 2
    (checkpoint / "run.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="settings.world_size was 2, now 1"):
        make_trainer().train(str(checkpoint))


def test_other_rows_of_the_same_number_are_refused(make_trainer, rows):
    make_trainer(max_steps=2).train()
    other = make_trainer()
    from tiny import packed

    other.train_dataset = packed(rows(64, seed=1))
    with pytest.raises(InputError, match="sha256 was"):
        other.train(str(Path(other.args.output_dir) / "checkpoint-2"))


@pytest.mark.slow
def test_two_processes_resume_as_exactly(tmp_path):
    def train(folder, resume_from="never"):
        script = Path(__file__).parents[1] / "train_and_resume.py"
        torchrun(script, tmp_path / folder, resume_from)

    train("whole")
    train("resumed", tmp_path / "whole" / "checkpoint-3")
    whole, resumed = (load(tmp_path / folder / "checkpoint-6") for folder in ("whole", "resumed"))
    assert {"rng_state_0.pth", "rng_state_1.pth", "totals_0.safetensors", "totals_1.safetensors"} <= whole.keys()
    assert_equal(whole, resumed)

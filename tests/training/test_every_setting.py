"""Every setting works, or is refused at the start with one sentence."""

import multiprocessing
import signal

import pytest
import torch
from transformers import AutoConfig, AutoModel
from transformers.training_args import OptimizerNames

from electra_hf import ElectraTrainer
from electra_hf.errors import InputError
from electra_hf.tasks.finetuning import FinetuningArguments, layerwise_parameter_groups
from electra_hf.training.arguments import FIXED, OPTIMIZERS, ModelArguments, PretrainingArguments
from electra_hf.training.checkpoints import sorted_checkpoints
from electra_hf.training.lock import lock_output_dir, release_locks


class Poisoned(ElectraTrainer):
    """The gradient of its second step is not finite."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        self.before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        return loss * float("nan") if self.state.global_step == 1 else loss


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_a_step_without_a_finite_gradient_changes_nothing_with_any_optimizer(make_trainer, optim):
    trainer = make_trainer(max_steps=2, optim=optim, logging_steps=1)
    trainer.__class__ = Poisoned
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, trainer.before[name]), name
    assert trainer.state.log_history[1]["skipped_steps"] == 1


def test_every_other_optimizer_is_refused_by_name(tmp_path):
    for optim in {name.value for name in OptimizerNames} - set(OPTIMIZERS):
        with pytest.raises((InputError, ImportError), match="." if optim == "adamw_torch_xla" else optim):
            PretrainingArguments(str(tmp_path), optim=optim, use_cpu=True, report_to="none")


OTHER_VALUES = {
    "load_best_model_at_end": {"eval_strategy": "steps", "save_strategy": "steps"},
    "label_names": ["labels"],
    "optim_target_modules": "all-linear",
    "train_sampling_strategy": "sequential",
    "fsdp": "full_shard",
}


@pytest.mark.parametrize("name", [name for name in FIXED if name not in ("deepspeed", "parallelism_config")])
def test_a_setting_that_would_do_nothing_or_harm_is_refused(tmp_path, name):
    value, extra = OTHER_VALUES.get(name, True if FIXED[name][0] is False else 0.5), {}
    if isinstance(value, dict):
        value, extra = True, value
    with pytest.raises(InputError, match=f"{name}: expected"):
        PretrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **{name: value}, **extra)


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED"])
def test_an_accelerate_set_to_share_the_model_is_refused(tmp_path, monkeypatch, way):
    monkeypatch.setenv(f"ACCELERATE_USE_{way}", "true")
    with pytest.raises(InputError, match=f"accelerate is set to use {way}"):
        PretrainingArguments(str(tmp_path), use_cpu=True, report_to="none")


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
def test_one_process_with_two_gpus_is_told_how_to_start(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(arguments, "n_gpu", 2)
    with pytest.raises(InputError, match="2 GPUs are visible to one process"):
        arguments(str(tmp_path), use_cpu=True, report_to="none")


@pytest.mark.parametrize("arguments", [PretrainingArguments, FinetuningArguments])
@pytest.mark.parametrize(("name", "value"), [("max_steps", 0), ("num_train_epochs", 0)])
def test_a_run_of_no_steps_is_refused(tmp_path, arguments, name, value):
    with pytest.raises(InputError, match=f"{name}: expected more than 0"):
        arguments(str(tmp_path), use_cpu=True, report_to="none", **{name: value})


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 4}, {"warmup_steps": 10_000}, {"generator_only_steps": 4, "warmup_steps": 1}]
)
def test_a_stage_as_long_as_the_run_is_refused_before_the_first_step(make_trainer, settings):
    trainer = make_trainer(max_steps=4, **settings)
    with pytest.raises(InputError, match="would leave none after them"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "settings", [{"sinusoidal_start": True}, {"discriminator": {"hidden_size": 64}}, {"model_size": "base"}]
)
def test_settings_that_contradict_published_networks_are_refused(settings):
    with pytest.raises(InputError, match="cannot be set beside discriminator_name_or_path"):
        ModelArguments(discriminator_name_or_path="me/d", generator_name_or_path="me/g", **settings)


# Numbers


class Breaks(ElectraTrainer):
    """A weight becomes infinite after its third step."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 3:
            with torch.no_grad():
                self.model.discriminator.electra.embeddings.LayerNorm.bias[0] = float("inf")
        return loss


@pytest.mark.parametrize("settings", [{"logging_strategy": "no"}, {"logging_steps": 1}])
def test_no_checkpoint_with_a_broken_number_is_kept_and_none_rotates_a_good_one_away(make_trainer, settings):
    trainer = make_trainer(max_steps=6, save_steps=2, save_total_limit=1, **settings)
    trainer.__class__ = Breaks
    with pytest.raises(FloatingPointError, match="are not finite"):
        trainer.train()
    assert [folder.name for folder in sorted_checkpoints(trainer.args.output_dir)] == ["checkpoint-2"]


def test_numbers_that_break_at_the_very_end_end_the_run(make_trainer):
    trainer = make_trainer(max_steps=4, save_strategy="no", logging_strategy="no")
    trainer.__class__ = Breaks
    with pytest.raises(FloatingPointError, match="are not finite"):
        trainer.train()


# Layer-wise rates: with 2 layers, a top layer learns at 0.5 and the embeddings at 0.125 of the head's rate.


SMALL = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 16}


def rates(model_type, **settings):
    encoder = AutoModel.from_config(AutoConfig.for_model(model_type, **{**SMALL, **settings}))
    groups = layerwise_parameter_groups(encoder, 1.0, 0.5)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("model_type", "layers", "settings"),
    [
        ("electra", "encoder.layer", {"embedding_size": 4}),
        ("bert", "encoder.layer", {}),
        ("roberta", "encoder.layer", {}),
        ("deberta-v2", "encoder.layer", {"relative_attention": True}),
        ("distilbert", "transformer.layer", {"n_layers": 2, "dim": 8, "n_heads": 2, "hidden_dim": 8}),
        ("modernbert", "layers", {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
        ("xlm-roberta", "encoder.layer", {}),
    ],
)
def test_every_layer_of_an_encoder_has_its_own_rate(model_type, layers, settings):
    for name, rate in rates(model_type, **settings).items():
        if name.startswith(f"{layers}.1."):
            assert rate == 0.5, name
        elif name.startswith(f"{layers}.0."):
            assert rate == 0.25, name
        elif "embeddings" in name:
            assert rate == 0.125, name


def test_an_encoder_whose_layers_share_their_weights_is_refused():
    with pytest.raises(InputError, match="layerwise_lr_decay: .* has no list of 2 layers"):
        rates("albert", embedding_size=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "adafactor"},
        {"resume_from_checkpoint": "somewhere"},
        {"eval_strategy": "epoch"},
    ],
)
def test_a_setting_that_fine_tuning_would_ignore_is_refused(tmp_path, settings):
    with pytest.raises(InputError, match=f"{next(iter(settings))}: expected"):
        FinetuningArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)


# One run per folder


def hold(folder, ready, end):
    lock_output_dir(folder)
    ready.set()
    end.wait(60)
    release_locks()


def test_a_second_run_in_a_folder_is_told_who_has_it_and_may_start_when_that_one_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, end))
    other.start()
    ready.wait(60)
    with pytest.raises(InputError, match=rf"run is in use by process {other.pid} on .* since"):
        lock_output_dir(tmp_path / "run")
    other.kill()  # the system gives the lock back
    other.join()
    assert other.exitcode == -signal.SIGKILL
    lock_output_dir(tmp_path / "run")
    lock_output_dir(tmp_path / "run")  # the same process may ask again
    release_locks()
    assert not (tmp_path / "run").exists()  # it held nothing else

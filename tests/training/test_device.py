"""What the device decides where the settings leave it open, and that whoever chooses is followed or refused."""

from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config

from electra_hf import ElectraTrainer
from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments
from electra_hf.tasks.classifying import ClassifierTrainingArguments
from electra_hf.tasks.finetuning import FinetuningArguments
from electra_hf.training.arguments import PretrainingArguments
from electra_hf.training.device import can_compile, choose_precision, combine_launches


@pytest.fixture
def card(monkeypatch):
    """Makes PyTorch see a GPU of this compute capability, or none."""

    def make(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        # PyTorch says yes for old cards too, where it would compute bf16 in fp32.
        supported = {"is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0)}
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported["is_bf16_supported"])

    monkeypatch.setenv("CC", "cc")
    return make


@pytest.mark.parametrize(
    ("capability", "precision", "compiles"),
    [
        ((9, 0), "bf16", True),
        ((8, 6), "bf16", True),
        ((7, 5), "fp16", True),
        ((6, 1), "fp16", False),
        (None, "fp32", False),
    ],
    ids=["H100", "RTX 3090", "T4", "GTX 1080", "no GPU"],
)
def test_a_card_gets_the_precision_that_it_is_fast_in_and_is_compiled_for_where_that_works(
    card, capability, precision, compiles
):
    card(capability)
    assert choose_precision(use_cpu=False) == precision
    assert can_compile(use_cpu=False) is compiles
    assert choose_precision(use_cpu=True) == "fp32" and not can_compile(use_cpu=True)


def test_without_a_c_compiler_a_gpu_trains_uncompiled(card, monkeypatch, tmp_path):
    card((9, 0))
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not can_compile(use_cpu=False)


def settle(monkeypatch, tmp_path, *flags, precision="fp32", compiles=False, recipe=PretrainingArguments):
    """What a device that decides so makes of the arguments, as a recipe parses them."""
    monkeypatch.setattr("electra_hf.training.device.choose_precision", lambda use_cpu: precision)
    monkeypatch.setattr("electra_hf.training.arguments.can_compile", lambda use_cpu: compiles)
    fixed = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--report_to", "none"]
    (arguments,) = parse_arguments(recipe, argv=[*fixed, *flags])
    return arguments.bf16, arguments.fp16, arguments.torch_compile


@pytest.mark.parametrize("recipe", [PretrainingArguments, FinetuningArguments, ClassifierTrainingArguments])
@pytest.mark.parametrize(
    ("flags", "precision", "expected"),
    [
        ([], "fp32", (False, False, False)),
        ([], "bf16", (True, False, False)),
        ([], "fp16", (False, True, False)),
        (["--bf16"], "fp16", (True, False, False)),
        (["--bf16", "false"], "bf16", (False, False, False)),
        (["--fp16"], "bf16", (False, True, False)),
    ],
)
def test_the_device_decides_what_is_left_open_and_the_user_everything_else(
    monkeypatch, tmp_path, recipe, flags, precision, expected
):
    assert settle(monkeypatch, tmp_path, *flags, precision=precision, recipe=recipe) == expected


@pytest.mark.parametrize(("flags", "compiled"), [([], True), (["--torch_compile", "false"], False)])
def test_compile_on_gpu_compiles_where_that_works_unless_torch_compile_says_no(monkeypatch, tmp_path, flags, compiled):
    assert settle(monkeypatch, tmp_path, "--compile_on_gpu", *flags, compiles=True) == (False, False, compiled)


def test_compile_on_gpu_compiles_nothing_on_a_cpu_and_torch_compile_does(monkeypatch, tmp_path):
    assert settle(monkeypatch, tmp_path, "--compile_on_gpu") == (False, False, False)
    assert settle(monkeypatch, tmp_path, "--torch_compile") == (False, False, True)


@pytest.mark.parametrize(
    ("device", "compiled", "combines"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_kernels_share_a_launch_where_a_step_is_compiled_for_a_gpu_alone(device, compiled, combines):
    with torch._inductor.config.patch(combo_kernels=False):  # it puts the value back
        combine_launches(SimpleNamespace(device=torch.device(device), torch_compile=compiled))
        assert torch._inductor.config.combo_kernels is combines


def test_the_trainer_asks_for_it(make_trainer, monkeypatch):
    asked = []
    monkeypatch.setattr("electra_hf.training.trainer.combine_launches", asked.append)
    assert asked == [make_trainer().args]


@pytest.mark.parametrize("recipe", [PretrainingArguments, FinetuningArguments])
def test_a_precision_that_accelerate_was_set_to_counts_as_chosen(monkeypatch, tmp_path, recipe):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert settle(monkeypatch, tmp_path, precision="bf16", recipe=recipe) == (False, True, False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # what accelerate says where nobody has chosen
    assert settle(monkeypatch, tmp_path, precision="bf16", recipe=recipe) == (True, False, False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("recipe", [PretrainingArguments, FinetuningArguments])
def test_bf16_on_a_machine_without_a_gpu_is_refused_with_the_way_out(tmp_path, recipe):
    with pytest.raises(InputError, match="bf16: there is no GPU here. Leave it out"):
        recipe(str(tmp_path), bf16=True, report_to="none")


@pytest.mark.parametrize("recipe", [PretrainingArguments, FinetuningArguments])
def test_fp16_on_a_processor_is_refused_at_the_start_however_it_was_asked_for(tmp_path, monkeypatch, recipe):
    with pytest.raises(InputError, match="fp16: only a GPU trains in it, .* Leave it out"):
        recipe(str(tmp_path), fp16=True, use_cpu=True, report_to="none")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(InputError, match="fp16: only a GPU trains in it"):
        recipe(str(tmp_path), use_cpu=True, report_to="none")


def test_a_mac_trains_on_its_processor_because_its_gpu_has_no_float64(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    arguments = PretrainingArguments(str(tmp_path), report_to="none")
    assert arguments.device.type == "cpu" and arguments.describe_device() == "1 × cpu, fp32, not compiled"


class Overflow(ElectraTrainer):
    """The gradients of its second step are too large for fp16, as the first steps of a scaler's are."""

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("inf") if self.state.global_step == 1 else loss


def test_with_a_scaler_as_on_old_cards_a_step_that_overflows_is_left_out_and_all_others_are_as_without(make_trainer):
    runs = {}
    for folder in ("scaled", "plain"):
        # A schedule would wait for a scaled step that was left out: the Trainer holds it back.
        trainer = make_trainer(max_steps=4, logging_steps=1, folder=folder, lr_scheduler_type="constant")
        trainer.__class__ = Overflow
        if folder == "scaled":  # accelerate makes one for fp16, on a GPU alone
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            trainer.accelerator.native_amp, trainer.accelerator.state._mixed_precision = True, "fp16"
        trainer.train()
        runs[folder] = trainer
    assert runs["scaled"].accelerator.scaler.get_scale() == 512.0
    for trainer in runs.values():
        assert [log.get("skipped_steps") for log in trainer.state.log_history if "loss" in log] == [None, 1, 1, 1]
        assert {int(state["step"]) for state in trainer.optimizer.state.values()} == {3}
    scaled, plain = (
        [log["discriminator_loss"] for log in trainer.state.log_history if "loss" in log] for trainer in runs.values()
    )
    assert scaled == pytest.approx(plain, rel=1e-2) and scaled != plain


def test_full_determinism_trains_and_evaluates(make_trainer, monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # the library sets them, and this takes them back
    before = torch.are_deterministic_algorithms_enabled()
    try:
        trainer = make_trainer(max_steps=2, logging_steps=1, full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
        trainer.train()
        trainer.evaluate()
    finally:
        torch.use_deterministic_algorithms(before)
    assert all("rtd_auc" in log for log in trainer.state.log_history if "loss" in log)

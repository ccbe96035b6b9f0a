"""What makes a step fast on a GPU, as far as a CPU can tell: one graph, and nothing that waits for the device."""

import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from electra_hf.model.flops import flops_per_token

# Operations whose result Python needs before it goes on: on a GPU the host would wait for them.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_compiled_training_is_one_graph_a_stage_without_a_break(make_trainer, tiny_model, precision):
    counters.clear()
    torch._dynamo.reset()
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    trainer = make_trainer(
        tiny_model(discriminator=dropout, generator=dropout),
        max_steps=5,
        generator_only_steps=2,
        gradient_accumulation_steps=2,
        torch_compile=True,
        torch_compile_backend="aot_eager",
        **precision,
    )
    trainer.train()
    trainer.evaluate()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2


class _Waits(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in WAITING:
            self.names.append(name)
        return operation(*args, **(kwargs or {}))


class _BetweenSteps(TrainerCallback):
    """Enters the mode at the end of the first step and leaves it at the end of the last but one."""

    def __init__(self, mode):
        self.mode = mode

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.mode.__enter__()
        if state.global_step == state.max_steps - 1:
            self.mode.__exit__(None, None, None)


def test_no_step_waits_for_the_device_between_two_logs(make_trainer, tiny_model):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = tiny_model(discriminator=dropout, generator=dropout)
    trainer, waits = make_trainer(model, max_steps=5, logging_steps=100), _Waits()
    trainer.add_callback(_BetweenSteps(waits))
    trainer.train()
    assert waits.names == []


def test_the_operations_that_the_trainer_adds_up_are_those_of_the_shapes(make_trainer, rows):
    trainer = make_trainer(max_steps=4, generator_only_steps=1)
    trainer.train()
    config, tokens = trainer.model.config, 8 * rows(1).shape[1]
    one = flops_per_token(config, rows(1).shape[1], generator_only=True)
    both = flops_per_token(config, rows(1).shape[1])
    assert trainer.state.total_flos == pytest.approx(tokens * (one + 3 * both))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"bf16": True},
        pytest.param({"torch_compile": True}, marks=pytest.mark.sweep(0)),  # compiling takes most of a minute
        {"bf16": True, "torch_compile": True},
    ],
)
def test_compiled_and_bf16_training_ends_within_the_seed_noise_of_the_plain_one(make_trainer, tiny_model, settings):
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}

    def last_losses(seed, **settings):
        model = tiny_model(discriminator=dropout, generator=dropout)
        trainer = make_trainer(
            model, seed=seed, max_steps=200, warmup_steps=20, learning_rate=5e-3, logging_steps=50, **settings
        )
        trainer.train()
        log = [log for log in trainer.state.log_history if "generator_loss" in log][-1]
        return torch.tensor([log["generator_loss"], log["discriminator_loss"]])

    plain = torch.stack([last_losses(seed) for seed in range(5)])
    mean, noise = plain.mean(0), plain.std(0)
    assert ((last_losses(7, **settings) - mean).abs() < 4 * noise).all()


_FRESH_PAGES = """
import resource, torch
from electra_hf.model.cpu import keep_freed_memory
{call}
def fill():
    torch.zeros(16 << 20).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill(); start = fill()
for _ in range(10): end = fill()
print(end - start)
"""


def run_python(code, call):
    command = [sys.executable, "-c", code.format(call=call)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's way")
def test_a_large_tensor_finds_the_memory_of_the_last_one_where_freed_memory_is_kept():
    def fresh_pages(call):
        return run_python(_FRESH_PAGES, call)

    # Ten tensors of 16,384 pages; the heap may still grow once or twice for one of them.
    assert fresh_pages("keep_freed_memory()") < fresh_pages("") / 2

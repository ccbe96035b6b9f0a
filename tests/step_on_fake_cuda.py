"""Run by model/test_fake_cuda.py in a process of its own: training steps on CUDA tensors that hold no numbers.

What waits for the device raises (a fake tensor has no number to give), and so does an operation on tensors of two
devices. What else there is to see is printed as JSON.
"""

import ctypes
import json
import sys
from contextlib import contextmanager
from itertools import product
from types import SimpleNamespace

ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # before torch, which asks once whether there is a CUDA

import torch  # noqa: E402
from tiny import LENGTH, VOCAB_SIZE  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from electra_hf import ElectraForPretraining, ElectraPretrainingConfig, ElectraTrainer  # noqa: E402
from electra_hf.model.metrics import PretrainingMetrics  # noqa: E402
from electra_hf.model.objectives import OBJECTIVES  # noqa: E402
from electra_hf.model.sharing import EMBEDDING_SHARINGS  # noqa: E402

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Seen(TorchDispatchMode):
    """The operations, which of them touch a tensor of the CPU, and which add up floating-point numbers one by one."""

    def __init__(self):
        super().__init__()
        self.number, self.on_cpu, self.names, self.sums_of_floats = 0, [], set(), []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        name = operation.overloadpacket.__name__
        self.number += 1
        self.names.add(name)
        if any(tensor.device.type != "cuda" for tensor in tensors):
            self.on_cpu.append(name)
        if name in ("cumsum", "cumprod", "logcumsumexp") and tensors[-1].is_floating_point():
            self.sums_of_floats.append(name)
        return output


@contextmanager
def watched_attention(calls):
    """Notes, of each call of PyTorch's attention, whether it got a mask: a kernel like flash attention takes none."""
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        calls.append([attn_mask is not None, is_causal])
        return real(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = real


def make_trainer(model):
    """What of an `ElectraTrainer` stands between the gradients and the weights."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    trainer = object.__new__(ElectraTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cuda"), max_grad_norm=1.0)
    trainer.model = model
    trainer.optimizer = SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups)
    trainer.accelerator = SimpleNamespace(
        distributed_type="NO", clip_grad_norm_=torch.nn.utils.clip_grad_norm_, unwrap_model=lambda model: model
    )
    trainer._skipped_steps = torch.zeros((), device="cuda")
    trainer._skipped_in_a_row = torch.zeros((), device="cuda")
    return trainer, optimizer


def step(model, arguments, precision, trainer, optimizer, metrics, scaler):
    with torch.autocast("cuda", precision, enabled=precision is not None):
        output = model(*arguments)
    metrics.update(output)
    scaler.scale(output.loss).backward()
    scaler.unscale_(optimizer)
    trainer._get_grad_norm(model, trainer._clip_grad_norm(model))
    scaler.step(optimizer)
    scaler.update()
    model.zero_grad()


def run(precision="fp32", with_mask=False, generator_only=False, **settings):
    """Two steps, of which the second one is watched: the first one makes the optimizer's state."""
    network = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "embedding_size": 8}
    config = ElectraPretrainingConfig.from_size(
        "small", vocab_size=VOCAB_SIZE, generator=network, discriminator=network, **settings
    )
    calls, seen = [], Seen()
    with FakeTensorMode():
        with torch.device("cuda"):  # a fake tensor cannot be moved there
            model = ElectraForPretraining(config).train()
        model.generator_only = generator_only
        ids = torch.randint(5, VOCAB_SIZE, (4, LENGTH), device="cuda")
        arguments = (ids, torch.ones_like(ids)) if with_mask else (ids,)
        trainer, optimizer = make_trainer(model)
        scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
        parts = (arguments, PRECISIONS[precision], trainer, optimizer, PretrainingMetrics("cuda"), scaler)
        step(model, *parts)
        with watched_attention(calls), seen:
            step(model, *parts)
    return {
        "operations": seen.number,
        "on the CPU": seen.on_cpu,
        "sums of floats": seen.sums_of_floats,
        "names": sorted(seen.names),
        "attention": calls,
        "layers": sum(network is not None for network in (model.generator, model.discriminator)) - generator_only,
    }


def cases():
    for objective, sharing, precision in product(OBJECTIVES, EMBEDDING_SHARINGS, PRECISIONS):
        if OBJECTIVES[objective].has_generator or sharing == "shared":
            yield {"objective": objective, "embedding_sharing": sharing, "precision": precision}
    for objective in OBJECTIVES:
        yield {"objective": objective, "with_mask": True, "precision": "bf16"}
        yield {"objective": objective, "whole_word_selection": True, "sampling_temperature": 2.0, "precision": "bf16"}
        if OBJECTIVES[objective].has_generator:
            yield {"objective": objective, "generator_only": True, "precision": "bf16"}


if __name__ == "__main__":
    # The driver, which is not there, would be asked for these.
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda: True
    json.dump([[case, run(**case)] for case in cases()], sys.stdout)

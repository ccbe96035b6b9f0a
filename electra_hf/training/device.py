"""What a run takes from its device where its settings leave it open: the precision, and whether a step is compiled."""

import os
import shutil

import torch

_COMPILERS = ("cc", "gcc", "clang")


def choose_precision(use_cpu: bool) -> str:
    """bf16 on a GPU that multiplies in it, fp16 on an older one (T4, V100), where a scaler keeps small gradients, and
    fp32 everywhere else."""
    if use_cpu or not torch.cuda.is_available():
        return "fp32"
    # Older cards compute bf16 as well, step by step in fp32.
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def can_compile(use_cpu: bool) -> bool:
    """Whether `torch.compile` works and pays here: on a CUDA device that its compiler, Triton, knows."""
    if use_cpu or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (7, 0):
        return False
    return "CC" in os.environ or any(map(shutil.which, _COMPILERS))  # Triton builds its launchers with one


def lacks_float64() -> bool:
    """Whether the device is Apple's, which has no float64: the sums of the metrics need it."""
    return not torch.cuda.is_available() and torch.backends.mps.is_available()

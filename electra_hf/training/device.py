"""What a run takes from its device where its settings leave it open: the precision, and whether a step is compiled."""

import os
import shutil
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from electra_hf.errors import InputError

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


def combine_launches(arguments: TrainingArguments) -> None:
    """Let a step that is compiled for a GPU start kernels that need not wait for each other with one launch.

    Autocast casts each weight by itself, and a compiled step then starts more kernels for casts than for all else
    (recipes/benchmark/LOG.md has the numbers). A compiled step on a CPU stays as it is.
    """
    if arguments.torch_compile and arguments.device.type == "cuda":
        from torch._inductor import config  # here, since it takes as long to import as PyTorch itself

        config.combo_kernels = True


def lacks_float64() -> bool:
    """Whether the device is Apple's, which has no float64: the sums of the metrics need it."""
    return not torch.cuda.is_available() and torch.backends.mps.is_available()


def wants_cpu(arguments: TrainingArguments) -> bool:
    """Whether the settings, or those of accelerate, keep the run on the processor."""
    return arguments.use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("true", "1")


@dataclass
class DeviceArguments(TrainingArguments):
    """`TrainingArguments` whose precision is the device's own where nothing is said: of every recipe that trains."""

    # Of type `bool`, so that the flag alone means true; None until `_settle_precision` has chosen.
    bf16: bool = field(default=None, metadata={"help": "bf16 products; where nothing is said, the device decides."})
    fp16: bool = field(default=None, metadata={"help": "fp16 products; where nothing is said, the device decides."})

    def __post_init__(self):
        # Before the library's own `__post_init__`, which decides by these values and then fixes them.
        self._settle_precision()
        super().__post_init__()

    def _settle_precision(self):
        """Choose what was left open. What the user or accelerate's own settings have chosen stays."""
        use_cpu = wants_cpu(self)
        own = choose_precision(use_cpu)
        # Given to `accelerate launch`, it comes as a variable; "no" is what accelerate writes where nobody chose.
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision == "no":
            precision = own
        if self.bf16 is None and self.fp16 is None:
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        # One of the two may be given and the other still None.
        self.bf16, self.fp16 = bool(self.bf16), bool(self.fp16)
        way_out = "Leave it out, and the device decides: bf16 or fp16 on a GPU, fp32 elsewhere"
        has_gpu = own != "fp32" or (torch.accelerator.is_available() and not use_cpu)
        if self.fp16 and not has_gpu:
            raise InputError(f"fp16: only a GPU trains in it, and this run has none. {way_out}.")
        if self.bf16 and not has_gpu and not use_cpu:
            raise InputError(
                f"bf16: there is no GPU here. {way_out}; or set use_cpu: true, to train in bf16 on this processor."
            )

    def describe_device(self) -> str:
        """What the run trains on, for its log: devices, precision, and whether it is compiled."""
        precision = "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"
        compiled = "compiled" if self.torch_compile else "not compiled"
        return f"{self.world_size} × {self.device.type}, {precision}, {compiled}"

    def tell_device(self) -> None:
        """Print, once for all processes, what the run trains on."""
        if self.process_index == 0:
            print(f"Training on {self.describe_device()}.")

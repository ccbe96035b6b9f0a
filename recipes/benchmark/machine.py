"""What the numbers of a benchmark were measured on."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch


def describe_machine() -> dict[str, str | int | bool]:
    """System, processor and its vector instructions, number of cores and of threads, device, version of torch."""
    return {
        "system": platform.platform(),
        "processor": processor_name(),
        # What PyTorch uses, which may be less than the processor has.
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "fast_bfloat16": has_fast_bfloat16(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }


def processor_name() -> str:
    """The model's name as the system gives it; the architecture where the system gives none."""
    # `platform.processor` is empty on many Linux systems, and names only a family on a Mac.
    if sys.platform == "darwin":
        query = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    else:
        name = _name_in_cpuinfo(Path("/proc/cpuinfo"))
    return name or platform.processor() or platform.machine()


def _name_in_cpuinfo(file):
    found = file.is_file() and re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE)
    return found[1].strip() if found else ""  # Linux on ARM writes numbers of parts there, no name


def has_fast_bfloat16() -> bool:
    """Whether the GPU, or the processor if there is none, has instructions that multiply bf16 matrices.

    Without them a product in bf16 takes longer than one in fp32; without AVX-512 PyTorch multiplies number by number,
    and it takes dozens of times as long.
    """
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine() in ("arm64", "aarch64"):
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # on x86 it is true for every AVX-512
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

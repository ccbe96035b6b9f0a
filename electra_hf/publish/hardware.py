"""What a run trains on: the name of the device and its power."""

import os
import platform
import subprocess

import torch


def describe_hardware() -> dict[str, str | float]:
    """What all processes of this run train on: `name`, and where it is known the power limit of all, `watts`."""
    # As the launcher tells it: this is also asked where no group of processes exists.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        return {"name": f"{os.cpu_count()} CPU cores ({platform.machine()})"}
    name = f"{processes} × {torch.cuda.get_device_name(0)}"
    query = ["nvidia-smi", "--query-gpu=power.limit", "--format=csv,noheader,nounits", "--id=0"]
    try:
        watts = float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return {"name": name}  # an AMD card, or a container without the tool
    return {"name": name, "watts": watts * processes}

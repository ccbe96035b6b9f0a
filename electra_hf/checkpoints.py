"""What a complete checkpoint is, and the newest one of a run."""

import json
import re
from pathlib import Path

from electra_hf.errors import InputError

# `trainer_state.json` is the last file that the Trainer writes into a checkpoint.
_REQUIRED_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def is_complete(checkpoint) -> bool:
    """Whether a run can go on from this folder."""
    return all((Path(checkpoint) / name).is_file() for name in _REQUIRED_FILES)


def find_last_checkpoint(output_dir) -> Path | None:
    """The complete `checkpoint-N` of the highest N in a run's folder, or None."""
    numbered = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if match and is_complete(folder):
            numbered[int(match.group(1))] = folder
    return numbered[max(numbered)] if numbered else None


def checkpoint_to_resume(output_dir, resume_from_checkpoint: str) -> str | None:
    """What `resume_from_checkpoint` means: `auto` (the newest, if any), `never`, or a folder that must be complete."""
    if resume_from_checkpoint == "never":
        return None
    if resume_from_checkpoint == "auto":
        checkpoint = find_last_checkpoint(output_dir)
        return str(checkpoint) if checkpoint else None
    if not is_complete(resume_from_checkpoint):
        missing = [name for name in _REQUIRED_FILES if not (Path(resume_from_checkpoint) / name).is_file()]
        raise InputError(
            f"resume_from_checkpoint: {resume_from_checkpoint} is no complete checkpoint ({missing[0]} is missing). "
            "Give a complete one, `auto` for the newest of output_dir, or `never` to start afresh."
        )
    return resume_from_checkpoint


def check_is_pair(folder) -> Path:
    """The folder, if it holds a saved pair of generator and discriminator. Raises `InputError`."""
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file() or not (folder / "model.safetensors").is_file():
        raise InputError(f"checkpoint: {folder} is no checkpoint: config.json or model.safetensors is missing there.")
    if json.loads(config.read_text(encoding="utf-8")).get("model_type") != "electra-pretraining":
        raise InputError(
            f"checkpoint: {folder} holds a single network, not the pair of a pretraining run; it needs no export."
        )
    return folder

"""What a complete checkpoint is: one whose manifest, written last, names every file by size and SHA-256."""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path

from electra_hf.errors import InputError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def seal(checkpoint):
    """Write the manifest of a finished checkpoint. Until then the checkpoint does not count.

    Files are flushed to the disk before the manifest takes its name, so that a power cut leaves either all or none.
    """
    checkpoint = Path(checkpoint)
    manifest = {name: _describe(checkpoint / name) for name in _files(checkpoint)}
    temporary = checkpoint / f"{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for name in (*manifest, temporary.name):
        _flush(checkpoint / name)
    os.replace(temporary, checkpoint / MANIFEST)
    _flush(checkpoint)
    _flush(checkpoint.parent)


def find_damage(checkpoint) -> str | None:
    """What keeps a run from going on from this checkpoint, file and reason, or None."""
    checkpoint = Path(checkpoint)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the save did not finish"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    found = _files(checkpoint)
    for name in (*_NEEDED, *expected):
        if name not in found:
            return f"{name} is missing"
    for name in found:
        if name not in expected:
            return f"{name} does not belong to it"
    for name, (size, sha256) in expected.items():
        entry = _describe(checkpoint / name)
        if entry["size"] != size:
            return f"{name} has {entry['size']} bytes instead of {size}"
        if entry["sha256"] != sha256:
            return f"{name} has changed since it was written"
    return None


def find_last_checkpoint(output_dir) -> Path | None:
    """The newest complete `checkpoint-N` of a run, or None; a damaged one is named in a warning and passed over."""
    for folder in sorted_checkpoints(output_dir, newest_first=True):
        damage = find_damage(folder)
        if damage is None:
            return folder
        logger.warning("%s is not used: %s.", folder, damage)
    return None


def sorted_checkpoints(output_dir, newest_first=False) -> list[Path]:
    """The `checkpoint-N` folders of a run in the order of N."""
    numbered = [
        (int(match.group(1)), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", folder.name))
    ]
    return [folder for _, folder in sorted(numbered, reverse=newest_first)]


def rotate(output_dir, limit: int | None):
    """Keep the newest `limit` complete checkpoints; what a killed save left behind goes as well."""
    if limit is None or limit <= 0:
        return
    # The manifest alone decides here: reading every byte of every checkpoint at each save would stall the training.
    complete = [folder for folder in sorted_checkpoints(output_dir) if (folder / MANIFEST).is_file()]
    kept = complete[-limit:]
    for folder in sorted_checkpoints(output_dir):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoint_to_resume(output_dir, resume_from_checkpoint: str) -> str | None:
    """What `resume_from_checkpoint` means: `auto` (the newest, if any), `never`, or a folder that must be complete."""
    if resume_from_checkpoint == "never":
        return None
    if resume_from_checkpoint == "auto":
        checkpoint = find_last_checkpoint(output_dir)
        return str(checkpoint) if checkpoint else None
    if damage := find_damage(resume_from_checkpoint):
        raise InputError(
            f"resume_from_checkpoint: {resume_from_checkpoint} is no complete checkpoint ({damage}). Give a complete "
            "one, `auto` for the newest of output_dir, or `never` to start afresh."
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


def _files(checkpoint):
    names = (path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    return sorted(name for name in names if name not in (MANIFEST, f"{MANIFEST}.tmp"))


def _describe(path):
    with open(path, "rb") as file:
        return {"size": path.stat().st_size, "sha256": _sha256(file)}


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(file):
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()

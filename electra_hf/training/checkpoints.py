"""What a complete checkpoint is: one whose manifest, written last, names every file by size and SHA-256.

Reading every byte and flushing it to the disk takes longer than the save. Until that is done, a mark with the sizes of
the files counts, as long as the machine has not been started anew: what a process has written outlives the process.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from electra_hf.errors import InputError, disk_fault
from electra_hf.files import set_aside

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WRITTEN = "written.json"  # the mark; gone as soon as the manifest is there
_OWN = (MANIFEST, f"{MANIFEST}.tmp", WRITTEN, f"{WRITTEN}.tmp")
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux: changes with every start of the machine
# The library goes on without some of these, from a fresh optimizer and with a mere note in the log.
_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


def mark_written(checkpoint: str | Path) -> None:
    """Say that every file of a checkpoint is written. This counts until its manifest, with hashes, is there."""
    checkpoint = Path(checkpoint)
    # Elsewhere nothing tells whether the machine was started anew, so only the manifest counts.
    if _BOOT.is_file():
        sizes = {name: {"size": (checkpoint / name).stat().st_size} for name in _files(checkpoint)}
        _write(checkpoint / WRITTEN, {"boot": _BOOT.read_text(), "files": sizes})


def write_manifest(checkpoint: str | Path) -> None:
    """Write the manifest of a finished checkpoint: it then counts as complete.

    Files are flushed to the disk before the manifest takes its name, so that a power cut leaves either all or none.
    """
    checkpoint = Path(checkpoint)
    try:
        manifest = {name: _describe(checkpoint / name) for name in _files(checkpoint)}
        for name in manifest:
            _flush(checkpoint / name)
        _write(checkpoint / MANIFEST, manifest, flush=True)
    finally:  # a disk that takes no bytes makes the sizes a lie
        (checkpoint / WRITTEN).unlink(missing_ok=True)
    _flush(checkpoint)
    _flush(checkpoint.parent)


def _write(path, content, flush=False):
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if flush:
        _flush(temporary)
    os.replace(temporary, path)


def find_damage(checkpoint: str | Path) -> str | None:
    """What keeps a run from going on from this checkpoint, file and reason, or None."""
    checkpoint = Path(checkpoint)
    try:
        expected = {name: (entry["size"], entry.get("sha256")) for name, entry in _read_manifest(checkpoint).items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the save did not finish"
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    found = _files(checkpoint)
    for name in (*_NEEDED, *expected):
        if name not in found:
            return f"{name} is missing"
    # Also more than there should be: a file of another save would be read without a word.
    for name in found:
        if name not in expected:
            return f"{name} does not belong to it"
    for name, (size, sha256) in expected.items():
        entry = _describe(checkpoint / name)
        # The size first: it says more to a reader than a hash that differs.
        if entry["size"] != size:
            return f"{name} has {entry['size']} bytes instead of {size}"
        if sha256 is not None and entry["sha256"] != sha256:
            return f"{name} has changed since it was written"
    return None


def _read_manifest(checkpoint):
    """The manifest, or what stands in for it until it is there."""
    try:
        # The mark counts only until the machine starts anew: after a power cut, sizes say nothing about bytes.
        mark = json.loads((checkpoint / WRITTEN).read_text(encoding="utf-8"))
        if not has_manifest(checkpoint) and mark["boot"] == _BOOT.read_text():
            return mark["files"]
    except FileNotFoundError:
        pass
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    return {name: {"size": entry["size"], "sha256": entry["sha256"]} for name, entry in manifest.items()}


def find_last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete `checkpoint-N` of a run, or None; a damaged one is named in a warning and passed over."""
    for folder in sorted_checkpoints(output_dir, newest_first=True):
        damage = find_damage(folder)
        if damage is None:
            return folder
        logger.warning("%s is not used: %s.", folder, damage)
    return None


def sorted_checkpoints(output_dir: str | Path, newest_first: bool = False) -> list[Path]:
    """The `checkpoint-N` folders of a run in the order of N."""
    # By the number: as text, checkpoint-900 comes after checkpoint-1000.
    numbered = [
        (int(match.group(1)), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", folder.name))
    ]
    return [folder for _, folder in sorted(numbered, reverse=newest_first)]


def rotate(output_dir: str | Path, limit: int | None) -> None:
    """Keep the newest `limit` complete checkpoints; what a killed save left behind goes as well."""
    if limit is None or limit <= 0:
        return
    # The manifest alone decides here: reading every byte of every checkpoint at each save would stall the training.
    complete = [folder for folder in sorted_checkpoints(output_dir) if has_manifest(folder)]
    kept = complete[-limit:]
    for folder in sorted_checkpoints(output_dir):
        if folder not in kept:
            delete(folder)


def delete(checkpoint: str | Path) -> None:
    """Delete a checkpoint; killed in between, it is one whose save did not finish."""
    # The manifest goes first: a half-deleted folder then no longer counts as complete.
    for name in (MANIFEST, WRITTEN):
        (Path(checkpoint) / name).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def has_manifest(checkpoint: str | Path) -> bool:
    """Whether its save finished; `find_damage` reads every byte besides."""
    return (Path(checkpoint) / MANIFEST).is_file()


def clear_way(output_dir: str | Path, step: int) -> None:
    """Before training from `step`: delete what killed saves left, and set aside what a run before had saved later.

    Left in place, those would count as newer than all that this run saves, and rotation would delete its own first.
    """
    for folder in sorted_checkpoints(output_dir):
        if not has_manifest(folder) and find_damage(folder):
            delete(folder)
            continue
        if not has_manifest(folder):  # the run was killed before it came to it
            write_manifest(folder)
        (folder / WRITTEN).unlink(missing_ok=True)  # of a run killed just after its manifest
        # After `never`, or from a folder that was named: kept, in case that was a mistake.
        if int(folder.name.rpartition("-")[2]) > step:
            aside = folder.with_name(f"{folder.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s is newer than the start of this run and not used: it is now %s.", folder, aside.name)


# What a run writes beside its checkpoints, and what a card reads.
RESULTS = ("discriminator", "generator", "metrics.json", "curves.png", "corpus.json", "recipe.yaml")


def set_results_aside(output_dir: str | Path) -> None:
    """Before a run starts afresh: rename what an earlier run left in its folder, so that no number of it survives."""
    for name in RESULTS:
        path = Path(output_dir) / name
        # Renamed and not deleted: they may be all that is left of a run of weeks.
        if path.exists():
            logger.warning("%s is of an earlier run: it is now %s.", path, set_aside(path).name)


@contextmanager
def disk_faults_told(output_dir: str | Path) -> Iterator[None]:
    """Around a save: what a full or read-only disk raises becomes one `InputError` that says where to go on from."""
    try:
        yield
    except Exception as error:
        if not (fault := disk_fault(error)):
            raise
        # The message names where the same command goes on from, since that is the first question then.
        complete = [folder.name for folder in sorted_checkpoints(output_dir) if has_manifest(folder)]
        raise InputError(
            f"output_dir: a checkpoint could not be saved in {output_dir} ({fault}). Make room there, or lower "
            "save_total_limit, and start the same command again: it goes on from "
            f"{complete[-1] if complete else 'the beginning'}."
        ) from error


def check_writable(output_dir: str | Path) -> None:
    """Refuse a folder that cannot be written before hours of work for it. Raises `InputError`."""
    folder = Path(output_dir).absolute()
    # The folder itself may not exist yet; the first parent that does decides.
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"output_dir: {place} cannot be written. Give another folder, or change its permissions or its mount."
        )


def checkpoint_to_resume(output_dir: str | Path, resume_from_checkpoint: str) -> str | None:
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


def check_is_pair(folder: str | Path) -> Path:
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
    return sorted(name for name in names if name not in _OWN)


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

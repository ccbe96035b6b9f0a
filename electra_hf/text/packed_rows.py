"""A folder of packed rows: it gets a manifest when it is finished, is compared with that, and mapped into memory.

train/00000.arrow …  test/…  tokenizer/  corpus.json  manifest.json
"""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from datasets import concatenate_datasets
from transformers import PreTrainedTokenizerBase

from electra_hf.errors import InputError
from electra_hf.files import digest, digest_folder, flush, new_folder, read_json, write_json
from electra_hf.text.corpus import CorpusArguments
from electra_hf.text.names import refuse_blank_settings
from electra_hf.text.packing import PackedRows
from electra_hf.text.prepared import read_arrow
from electra_hf.text.run_tokenizer import digest_tokenizer
from electra_hf.text.stages import SPLITS, WORK, Job, job_file
from electra_hf.text.tokenization import load_tokenizer

MANIFEST = "manifest.json"
VERSIONS = ("electra_hf", "datasets", "pyarrow", "tokenizers", "transformers")
READERS = 4  # files compared at a time


class ShardedRows(PackedRows):
    """Packed rows in many files. Their order is computed (`training.order`): a list of it would not fit the memory."""


@dataclass(frozen=True)
class PackedFolder:
    """What a folder of packed rows holds."""

    manifest: dict
    report: dict
    tokenizer: PreTrainedTokenizerBase
    train: ShardedRows
    test: ShardedRows


def seal(job: Job) -> None:
    """Put what the stages have made into its place, and write the manifest. May be stopped and begun again.

    Raises `InputError` where the texts of a split fill no row.
    """
    # The manifest comes last: it says that the folder is finished. All that is done before it can be done twice.
    folder = Path(job.folder)
    shards = {}
    for task, output in enumerate(job.outputs("rows")):
        for split, described in read_json(output / "shards.json").items():
            shards[f"{split}/{task:05d}.arrow"] = described
    _check_rows(shards, job)
    # Shards are moved: a copy would need the room of all rows once more.
    for split in SPLITS:
        (folder / split).mkdir(exist_ok=True)
        for task, output in enumerate(job.outputs("rows")):
            if (output / f"{split}.arrow").exists():  # not moved before a kill
                os.replace(output / f"{split}.arrow", folder / split / f"{task:05d}.arrow")
        flush(folder / split)
    # The tokenizer is copied: where this is stopped, the next start reads it from the same place again.
    with new_folder(folder / "tokenizer") as unfinished:
        shutil.copytree(job.output("tokenizer") / "tokenizer", unfinished, dirs_exist_ok=True)
    write_json(folder / "corpus.json", read_json(job.output("tokenizer") / "corpus.json"))
    tokenizer = load_tokenizer(folder / "tokenizer")
    manifest = {
        "versions": {name: version(name) for name in VERSIONS},
        "made_from": job.identity,
        "tasks": job.tasks,
        # A job with an existing tokenizer has no setting vocab_size: then its number of tokens stands there.
        "settings": {"vocab_size": len(tokenizer)} | job.settings,
        "tokenizer": digest_tokenizer(tokenizer),
        "rows": {split: sum(_rows_of(shards, split)) for split in SPLITS},
        "shards": dict(sorted(shards.items())),
        "files": {"corpus.json": digest(folder / "corpus.json")}
        | {f"tokenizer/{name}": sha256 for name, sha256 in digest_folder(folder / "tokenizer").items()},
    }
    write_json(folder / MANIFEST, manifest)
    shutil.rmtree(folder / WORK)  # where a kill comes before this, `begin` does it


def _rows_of(shards, split):
    return (described["rows"] for name, described in shards.items() if name.startswith(f"{split}/"))


def _check_rows(shards, job):
    # Where test_share is 0 the test part is empty as asked.
    for split in SPLITS:
        if not any(_rows_of(shards, split)) and (split == "train" or job.settings["test_share"]):
            raise InputError(
                f"The texts of no task fill one row of max_length {job.settings['max_length']} for {split}. Give more "
                "text, a larger test_share if these are the ones held out, fewer tasks or a smaller max_length, and "
                "another output_dir."
            )


def is_sealed(folder: str | Path) -> bool:
    """Whether the folder of a job is finished."""
    return (Path(folder) / MANIFEST).is_file()


@dataclass
class RowsArguments(CorpusArguments):
    """What there is to learn from: raw text, or rows that were packed before."""

    packed_rows: str | None = field(
        default=None,
        metadata={
            "help": "Instead of corpus_files: a folder of prepare_shards.py, s3://… and the like, or user/name."
        },
    )

    def __post_init__(self) -> None:
        # With packed rows the checks of `CorpusArguments` do not fit: they ask for a corpus.
        if self.packed_rows is None:
            return super().__post_init__()
        refuse_blank_settings(self)
        for name in ("corpus_files", "dataset_name", "exclude_files"):
            if getattr(self, name):
                raise InputError(
                    f"{name}: cannot be set beside packed_rows, which is the whole corpus. Leave one out."
                )


def adopt_settings(manifest: dict, *groups: object) -> None:
    """Give the settings that the rows were made with to the groups that have them.

    Raises `InputError` where another value was chosen: the rows would not have it.
    """
    for name, value in manifest["settings"].items():
        for group in groups:
            # The manifest has the digest of a tokenizer and not its name: `check_tokenizer` compares that.
            if name == "tokenizer_name_or_path" or not hasattr(group, name):
                continue
            # Only what the user has set can contradict the rows; a default gives way to their value.
            if name in getattr(group, "chosen_settings", ()) and getattr(group, name) != value:
                raise InputError(
                    f"{name}: {getattr(group, name)!r} is not what the packed rows were made with, {value!r}. "
                    "Leave it out, or make other ones with prepare_shards.py."
                )
            setattr(group, name, value)


def check_tokenizer(manifest: dict, name_or_path: str | None) -> None:
    """Refuse an existing tokenizer, where one is named, that is not the one of the rows. Raises `InputError`."""
    if name_or_path and digest_tokenizer(load_tokenizer(name_or_path)) != manifest["tokenizer"]:
        raise InputError(
            f"packed_rows: these rows were packed with another tokenizer than that of {name_or_path}. Make rows with "
            f"prepare_shards.py --tokenizer_name_or_path {name_or_path}."
        )


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished folder. Raises `InputError` where there is none, or it is damaged."""
    folder = Path(folder)
    if is_sealed(folder):
        manifest = read_json(folder / MANIFEST)
        check_manifest(manifest, folder / MANIFEST)
        return manifest
    # An unfinished job is told apart from a wrong folder, since starting it again is the way out.
    if job_file(folder).is_file():
        raise InputError(
            f"packed_rows: {folder} is not finished. Start its prepare_shards.py again: it goes on where it stopped."
        )
    what = "there is no such folder" if not folder.is_dir() else f"it has no {MANIFEST}"
    raise InputError(f"packed_rows: {folder} holds no packed rows ({what}). Make them with recipes/prepare_shards.py.")


def check_manifest(manifest: object, where: str | Path) -> None:
    """Refuse what is no manifest of packed rows; `where` is its name in the message. Raises `InputError`."""
    names = ("shards", "files", "settings", "made_from")
    is_ours = isinstance(manifest, dict) and all(isinstance(manifest.get(name), dict) for name in names)
    shards = manifest["shards"].values() if is_ours else ()
    if not is_ours or not all(isinstance(shard, dict) and {"bytes", "sha256"} <= shard.keys() for shard in shards):
        raise InputError(f"packed_rows: {where} names no shards. Make the folder again.")


def open_packed_rows(folder: str | Path, verify: bool = True) -> PackedFolder:
    """Map the rows of a finished folder. With `verify`, every file is compared with the manifest first.

    Without it only the sizes are compared: it is enough that one process of a machine reads everything. Raises
    `InputError` that names what is missing, cut, damaged or of another tokenizer.
    """
    folder, manifest = Path(folder), read_manifest(folder)
    # Files first: a damaged one would fail below with a message of pyarrow or tokenizers that names no way out.
    _check_files(folder, manifest, verify)
    tokenizer = load_tokenizer(folder / "tokenizer")
    # Without `verify` its files were not compared. Another version of tokenizers may also read them differently.
    if digest_tokenizer(tokenizer) != manifest["tokenizer"]:
        raise InputError(
            f"packed_rows: {folder / 'tokenizer'} is not the tokenizer that these rows were packed with. Put that one "
            "back, or make the folder again."
        )
    train, test = (_map(folder, [name for name in manifest["shards"] if name.startswith(f"{s}/")]) for s in SPLITS)
    for split, rows in zip(SPLITS, (train, test), strict=True):
        if rows.max_length != manifest["settings"]["max_length"] or len(rows) != manifest["rows"][split]:
            raise InputError(f"packed_rows: {folder / split} does not hold the rows that {MANIFEST} says.")
    return PackedFolder(manifest, read_json(folder / "corpus.json"), tokenizer, train, test)


def _check_files(folder, manifest, verify):
    # Sizes first, since they need no reading; a checksum is taken only where the size is right.
    shards = manifest["shards"]
    damage = {name: _find_damage(folder / name, described["bytes"]) for name, described in shards.items()}
    if verify:
        whole = {name: described["sha256"] for name, described in shards.items() if damage[name] is None}
        damage |= _compare(folder, whole | manifest["files"])
    damaged = [f"{name} {what}" for name, what in damage.items() if what]
    if damaged:
        others = f" and {len(damaged) - 3} others" if len(damaged) > 3 else ""
        raise InputError(
            f"packed_rows: {folder}: {', '.join(damaged[:3])}{others}. Copy the folder anew, or make it again with "
            "recipes/prepare_shards.py."
        )


def _find_damage(path, size):
    if not path.is_file():
        return "is missing"
    return None if path.stat().st_size == size else f"is cut or changed ({path.stat().st_size} bytes, not {size})"


def _compare(folder, checksums):
    def compare(name):
        try:
            return None if digest(folder / name) == checksums[name] else f"is not as {MANIFEST} says"
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    with ThreadPoolExecutor(READERS) as pool:  # hashlib lets other threads run meanwhile
        return zip(checksums, pool.map(compare, checksums), strict=True)


def _map(folder, names):
    tables = [read_arrow(folder / name, name) for name in names]
    return ShardedRows(concatenate_datasets(tables))

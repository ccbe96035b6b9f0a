"""The job that the arguments of `prepare_shards.py` describe, and whether its folder may hold it."""

import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from electra_hf.errors import InputError
from electra_hf.files import UNFINISHED, write_text
from electra_hf.text.corpus import CorpusArguments, content_of
from electra_hf.text.names import TAGGED_SUFFIXES, refuse_blank_settings
from electra_hf.text.near_duplicates import HIGHEST, LOWEST
from electra_hf.text.packed_rows import is_sealed, read_manifest
from electra_hf.text.prepared import cache_folder
from electra_hf.text.run_tokenizer import digest_tokenizer
from electra_hf.text.sources import find_sources
from electra_hf.text.stages import READING, WORK, Job, job_file
from electra_hf.text.tokenization import load_tokenizer

# What may lie in a folder that a job is begun in: its own files, and the lock that the recipe takes before.
HARMLESS = {WORK, ".lock"}


@dataclass
class ShardArguments:
    """Where the shards go, and who makes them."""

    output_dir: str = field(metadata={"help": "The folder of shards, on a disk that every machine can write to."})
    tasks: int = field(default=1, metadata={"help": "Parts of the corpus, and shards of each split."})
    workers: int = field(default=1, metadata={"help": "Tasks that run at the same time."})
    executor: Literal["local", "slurm", "ray", "jobs"] = field(
        default="local", metadata={"help": "local: this machine. The others are datatrove's."}
    )
    task_offset: int = field(
        default=0, metadata={"help": "Several machines by hand: the first of the tasks that this one runs."}
    )
    local_tasks: int | None = field(
        default=None, metadata={"help": "Several machines by hand: how many tasks this one runs (default: all)."}
    )

    near_duplicates: float | None = field(
        default=None,
        metadata={
            "help": "Leave out each document that is this similar (Jaccard, runs of five words) to an earlier one, "
            "such as 0.7. Default: only equal ones are left out."
        },
    )
    dry_run: bool = field(default=False, metadata={"help": "slurm: print what would be submitted, and write nothing."})
    memory_gb: int = field(default=4, metadata={"help": "slurm, ray: memory of a task, in GB."})
    slurm_partition: str = field(default="cpu", metadata={"help": "slurm: the partition."})
    slurm_time: str = field(default="12:00:00", metadata={"help": "slurm: time limit of a task."})
    environment: str | None = field(
        default=None, metadata={"help": "slurm: a command before each task, such as `source FOLDER/bin/activate`."}
    )

    def __post_init__(self):
        refuse_blank_settings(self)
        for name in ("tasks", "workers", "memory_gb"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.near_duplicates is not None and not LOWEST <= self.near_duplicates <= HIGHEST:
            raise InputError(
                f"near_duplicates: expected a similarity from {LOWEST} to {HIGHEST}, got {self.near_duplicates}."
            )
        # The own tasks go from task_offset to before `last`.
        last = self.task_offset + (self.tasks - self.task_offset if self.local_tasks is None else self.local_tasks)
        if not 0 <= self.task_offset < last <= self.tasks:
            raise InputError(
                f"task_offset, local_tasks: not a part of the {self.tasks} tasks: from {self.task_offset} to {last}."
            )
        if self.executor != "local" and last - self.task_offset != self.tasks:
            raise InputError(
                f"task_offset, local_tasks: are for several machines by hand, and {self.executor} is not."
            )
        # It is among the choices although it is not built, so that the message can name those that are.
        if self.executor == "jobs":
            raise InputError(
                "executor: jobs is not built. The Jobs of Hugging Face share no disk, and the stages hand each other "
                "files in output_dir. Take local, slurm or ray; or take one Job, with --executor local and "
                "--hub_dataset_id user/name in it (recipes/SHARDS.md has the command)."
            )
        if self.dry_run and self.executor != "slurm":
            raise InputError(f"dry_run: the executor {self.executor} submits nothing that could be printed.")
        self.own_tasks = range(self.task_offset, last)

    @property
    def is_alone(self) -> bool:
        """Whether no other machine works in the folder."""
        return len(self.own_tasks) == self.tasks


def plan_job(
    shards: ShardArguments, corpus: CorpusArguments, vocabulary: dict, max_length: int, tokenizer: str | None = None
) -> Job:
    """The job for these inputs. Every input is read once here, for its checksum.

    `vocabulary`: what a tokenizer is trained with (`train_tokenizer`), unless `tokenizer` names an existing one.
    Raises `InputError`.
    """
    if corpus.dataset_name:
        raise InputError(
            "dataset_name: shards are made from files, which every task opens for itself. Fetch those of the dataset "
            f"(hf download {corpus.dataset_name} --repo-type dataset --local-dir D), and give corpus_files: D."
        )
    # Packing checks this too, but only in the last stage.
    if max_length < 3:
        raise InputError(f"max_length: expected at least 3, [CLS] and [SEP] included, got {max_length}.")
    if shards.near_duplicates is not None and corpus.text_unit == "line":
        raise InputError(
            "near_duplicates: are looked for among documents, since a sentence has too few words to compare. Set "
            "text_unit: document, or leave it out."
        )
    # A tokenizer counts by what it does: another one may lie under the same name when the job goes on.
    if tokenizer:
        vocabulary = {"tokenizer_name_or_path": digest_tokenizer(load_tokenizer(tokenizer))}
    downloads = cache_folder(corpus.data_cache_dir) / "downloads"
    tagged = find_sources(corpus.exclude_files, downloads, TAGGED_SUFFIXES)
    # Only settings that decide what is written. Others, such as the cache folder, may change between two starts.
    names = (*READING, "test_share")
    # Not among the settings where it is off: such a job is the one that it was before there was this setting.
    near = {} if shards.near_duplicates is None else {"near_duplicates": shards.near_duplicates}
    return Job(
        folder=str(Path(shards.output_dir).resolve()),
        tasks=shards.tasks,
        settings={name: getattr(corpus, name) for name in names} | near | vocabulary | {"max_length": max_length},
        sources=[_describe(source) for source in find_sources(corpus.corpus_files, downloads)],
        tagged=[_describe(source) for source in tagged],
        tokenizer=tokenizer,
    )


def _describe(source):
    content = content_of(source)
    path = source.path.resolve()  # tasks open it from other working folders
    return {"name": source.name, "path": str(path), "content": content, "bytes": path.stat().st_size}


def begin(job: Job) -> None:
    """Begin the job in its folder, or find it begun there. Raises `InputError` where the folder is another job's."""
    folder = Path(job.folder)
    if is_sealed(folder):
        _check_same(job, read_manifest(folder)["made_from"], "holds the shards of")
        shutil.rmtree(folder / WORK, ignore_errors=True)  # of a job that was killed right after it was sealed
        return
    # Before a job is begun, anything else in the folder is somebody's. Later its own shards lie there too.
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in HARMLESS) if folder.is_dir() else []
    if foreign and not job_file(folder).is_file():
        raise InputError(
            f"output_dir: {folder} holds something else ({', '.join(foreign[:3])}). Choose a new or an empty folder."
        )
    if not job_file(folder).is_file():
        job.save()
    # Compared with what lies there, also after saving: another machine may have been first, with other settings.
    _check_same(job, Job.load(folder).identity, "was begun by")


def _check_same(job, before, what):
    # A job knows files by their fingerprint. That tells a reader nothing, so the message says only that they changed.
    differences = [
        f"{name} {'have changed' if name.endswith('_files') else f'was {before.get(name)!r}, now {now!r}'}"
        for name, now in job.identity.items()
        if before.get(name) != now
    ]
    differences += [f"{name} was {before[name]!r}, now not set" for name in before if name not in job.identity]
    if differences:
        raise InputError(
            f"output_dir: {job.folder} {what} a job with other settings: {'; '.join(differences)}. Restore them, or "
            "choose another output_dir."
        )


def write_fault(folder: str | Path, stage: str, task: int, message: str) -> None:
    """Leave the message of a task that failed, where the disk takes it."""
    with suppress(OSError):  # it may be full, and then that is the fault
        # One file for each task, since many tasks can fail at the same time.
        path = _faults(folder) / f"{stage}-{task:05d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, message)


def read_faults(folder: str | Path) -> str:
    """What the tasks that failed have left: the first message, and how many others there are. Empty if none."""
    messages = {}  # keys alone: tasks that share a broken file all say the same of it
    for path in sorted(_faults(folder).glob("*.txt")):
        with suppress(FileNotFoundError):  # its machine has been started again at this moment
            messages[path.read_text(encoding="utf-8")] = None
    others = f" ({len(messages) - 1} more in {_faults(folder)})" if len(messages) > 1 else ""
    return f"{next(iter(messages))}{others}" if messages else ""


def remove_faults(folder: str | Path, tasks: range) -> None:
    """Remove what these tasks have left when they failed: they are started again."""
    for path in _faults(folder).glob("*.txt"):
        if int(path.stem.rpartition("-")[2]) in tasks:
            path.unlink(missing_ok=True)


def _faults(folder):
    return Path(folder) / WORK / "faults"


def remove_leftovers(job: Job) -> None:
    """Remove what killed tasks have left. Only where no other process works in the folder."""
    # Their names hold machine and process (`folder_once`): a task that is made again does not touch them.
    for path in (Path(job.folder) / WORK).glob(f"*/*{UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)

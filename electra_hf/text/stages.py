"""Shards in five stages, for a corpus too large for one machine. Each stage reads what those before left on disk.

clean        texts of this task's part, cleaned, each once within the task; their hashes, sorted
duplicates   of one range of hashes: which texts of which task another task had before
(three stages more where near-duplicates are looked for, as `near_duplicates` says how)
bands        the bands of each text of the task, sorted
links        of one range of bands: which texts have the same one
clusters     all texts that have an earlier near-duplicate (one task)
texts        what is left, split into train and test
tokenizer    trained on an even sample of all tasks (one task)
rows         packed to exactly L ids

The stages keep the same texts with any number of tasks: of equal ones the first in the order of the corpus. Where no
near-duplicates are looked for, they are those of `load_corpus`. Every task writes one folder, whole or not at all, and
a folder that is there is never made again. So a task may be killed, started again or given out twice; what it writes
depends on the job and its own number alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate, count, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from electra_hf.files import digest, folder_once, read_json, write_json
from electra_hf.text.corpus import COUNTS, PREPARATION, SeenHashes, SplitWriter, clean_batch, make_report, split_batch
from electra_hf.text.exclusion import TaggedSentences
from electra_hf.text.fingerprint import fingerprint_of
from electra_hf.text.near_duplicates import bands_of, cluster, link, shape_of_bands
from electra_hf.text.packing import row_settings, write_rows
from electra_hf.text.prepared import read_arrow
from electra_hf.text.readers import read_sentences
from electra_hf.text.run_tokenizer import prepare_tokenizer
from electra_hf.text.sources import Source
from electra_hf.text.tokenization import load_tokenizer, measure_tokenizer

WORK = "unfinished"
SPLITS = ("train", "test")
READING = ("text_column", "encoding_errors", "text_unit")  # settings of `read_sentences`
BLOCK = 128  # texts that go to a task together, so that some rows hold neighbours from one document
# Multiples of 2**64 / golden ratio, modulo 2**64, lie evenly however many there are: each task gets its share.
STRIDE = 0x9E3779B97F4A7C15
BLOCKS_AT_A_TIME = 80  # about ten thousand texts, as many as `load_corpus` takes in a batch
# `place` is the number of the source, then 40 bits for the number of the block: places sort as the corpus does.
CLEANED = pa.schema({"text": pa.string(), "hash": pa.uint64(), "place": pa.uint64()})
# What decides what is written: a job that an older version began is not mixed with what this one makes.
CODE_FILES = ("stages", "packing", "near_duplicates")
CODE = [*PREPARATION, *(digest(Path(__file__).with_name(f"{name}.py")) for name in CODE_FILES)]


@dataclass(frozen=True)
class Job:
    """What is made from what: all that a task has to know besides its own number.

    The first start leaves it in `unfinished/job`. Tasks get that of their own start, since inputs may move in between.
    """

    folder: str
    tasks: int
    settings: dict  # those of the corpus, the tokenizer and the rows that decide what is written
    sources: list[dict] = field(repr=False)  # name, path, content, bytes
    tagged: list[dict] = field(repr=False)
    tokenizer: str | None = None  # an existing one, by its folder or name

    @classmethod
    def load(cls, folder: str | Path) -> "Job":
        """The job that was begun in the folder. Raises `InputError` where there is none."""
        return cls(**read_json(job_file(folder)))

    def save(self) -> None:
        """Begin the job, unless one is begun there: from now on its folder takes no other one."""
        with folder_once(job_file(self.folder).parent) as unfinished:  # several machines may begin it at once
            write_json(unfinished / job_file(self.folder).name, asdict(self))

    @cached_property
    def identity(self) -> dict:
        """What has to be the same in a job that goes on in the same folder."""
        # Files count by their content: path and time stamp change when they are copied.
        return {
            "corpus_files": fingerprint_of([source["content"] for source in self.sources]),
            "exclude_files": fingerprint_of([source["content"] for source in self.tagged]),
            "tasks": self.tasks,
            **self.settings,
            "version": fingerprint_of(CODE, version("tokenizers")),  # that library trains the tokenizer
        }

    @cached_property
    def edges(self) -> list[int]:
        """Where each source begins, and where the last one ends, when all lie end to end, in bytes on the disk."""
        # An empty source counts as one byte: it is dealt to a task like any other, and the whole length is never 0.
        return list(accumulate((max(1, source["bytes"]) for source in self.sources), initial=0))

    def task_at(self, byte: int) -> int:
        """The task in whose part this byte of all sources lies: the parts are equal, one for each task."""
        return byte * self.tasks // self.edges[-1]

    def output(self, stage: str, task: int = 0) -> Path:
        """The folder that a task of a stage writes."""
        return Path(self.folder) / WORK / stage / f"{task:05d}"

    def outputs(self, stage: str) -> list[Path]:
        """The folders of all tasks of a stage."""
        return [self.output(stage, task) for task in range(self.tasks)]

    def tagged_sentences(self) -> TaggedSentences:
        """The sentences that the corpus must not hold. Raises `InputError`."""
        return TaggedSentences.of_files([_source(one) for one in self.tagged])


def job_file(folder: str | Path) -> Path:
    """Where the job lies that was begun in the folder."""
    return Path(folder) / WORK / "job" / "job.json"


def _source(one):
    return Source(one["name"], Path(one["path"]))


@dataclass(frozen=True)
class Stage:
    """A name, and what one of its tasks does: `run(job, task, folder)` fills the folder."""

    name: str
    run: Callable[[Job, int, Path], None]
    is_single: bool = False  # one task alone
    needs: str | None = None  # a setting: a job without it has no such stage

    def tasks(self, job: Job) -> int:
        """How many tasks it has."""
        return 1 if self.is_single else job.tasks

    def missing(self, job: Job) -> list[int]:
        """The tasks whose output is not there."""
        return [task for task in range(self.tasks(job)) if not job.output(self.name, task).is_dir()]


def run_task(job: Job, stage: str, task: int) -> None:
    """Run one task of a stage, unless what it writes is there already. Raises `InputError`."""
    output = job.output(stage, task)
    if not output.is_dir():
        with folder_once(output) as unfinished:
            STAGES[stage].run(job, task, unfinished)


def clean_texts(job: Job, task: int, folder: Path) -> None:
    """Clean the task's part of the corpus as `load_corpus` does, and sort the hashes of its texts."""
    tagged, seen = job.tagged_sentences(), SeenHashes()
    counts = {number: Counter() for number in dealt_sources(job, task)}
    # An empty array first: a task may have no texts, and numpy does not concatenate an empty list.
    hashes, places = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    with pa.OSFile(str(folder / "texts.arrow"), "wb") as file, pa.ipc.new_stream(file, CLEANED) as writer:
        for number in counts:
            for block, texts in read_blocks(job, task, number, counts[number]):
                batch = clean_batch({"text": texts}, tagged, seen, counts[number])
                hashes.append(batch["hash"])
                places.append(np.full(len(batch["hash"]), number << 40 | block, np.uint64))
                columns = [pa.array(batch["text"], pa.string()), hashes[-1], places[-1]]
                writer.write_batch(pa.record_batch(columns, CLEANED))
    # Sorted, so that the next stage finds its range of hashes as one slice of each file.
    hashes, places = np.concatenate(hashes), np.concatenate(places)
    order = np.argsort(hashes)
    np.save(folder / "hashes.npy", hashes[order])
    np.save(folder / "places.npy", places[order])
    # The sentences found, and not their number: two tasks may find the same one.
    write_json(folder / "counts.json", {"sources": counts, "found": tagged.keys_found})


def dealt_sources(job: Job, task: int) -> list[int]:
    """The numbers of the sources that the task reads."""
    sources = enumerate(zip(job.edges, job.edges[1:], strict=False))
    return [number for number, (start, end) in sources if job.task_at(start) <= task <= job.task_at(end - 1)]


def read_blocks(job: Job, task: int, number: int, counts: Counter) -> Iterator[tuple[int, list[str]]]:
    """Yield (number, texts) of each block of a source that is the task's. Raises `InputError`.

    A small source lies in the part of one task, a large one in those of many, which share its blocks. Every task that
    shares a source reads it as a whole: a stream has no middle to begin at, and so each of them meets what is broken,
    with its line. What the reader counts is counted by the first of them.
    """
    read, (start, end) = Counter(), job.edges[number : number + 2]
    source = _source(job.sources[number])
    settings = {name: job.settings[name] for name in READING}
    lines = read_sentences(source, counts=read, **settings)
    for block in count():
        texts = list(islice(lines, BLOCK))
        if not texts:
            break
        # The multiple of STRIDE, as a share of 2**64, is a byte of the source; the task of that byte takes the block.
        if job.task_at(start + ((end - start) * (block * STRIDE % 2**64) >> 64)) == task:
            yield block, texts
    if job.task_at(start) == task:
        counts.update(read)


def list_duplicates(job: Job, task: int, folder: Path) -> None:
    """Of one range of hashes, write which ones each task must drop, sorted, and where the ones of each task begin."""
    hashes, places = _read_range(job, "clean", ("hashes", "places"), task)
    dropped = find_duplicates(hashes, places)
    np.save(folder / "hashes.npy", np.concatenate(dropped))
    np.save(folder / "starts.npy", np.cumsum([0, *map(len, dropped)]))


def _read_range(job, stage, names, task):
    # For each name, the arrays of all tasks of the stage. Those of the first name are sorted: of all of them, what is
    # read is the part where these are in the task's range.
    columns = [[] for _ in names]
    low, high = (edge * 2**64 // job.tasks for edge in (task, task + 1))
    for output in job.outputs(stage):
        arrays = [np.load(output / f"{name}.npy", mmap_mode="r") for name in names]
        start = np.searchsorted(arrays[0], np.uint64(low))
        # The upper edge of the last range, 2**64, is no uint64.
        stop = len(arrays[0]) if task + 1 == job.tasks else np.searchsorted(arrays[0], np.uint64(high))
        for column, array in zip(columns, arrays, strict=True):
            column.append(np.array(array[start:stop]))  # a copy, so that no file stays mapped
    return columns


def find_duplicates(hashes: list[np.ndarray], places: list[np.ndarray]) -> list[np.ndarray]:
    """Which hashes each task must drop, sorted: all but the one at the first place in the corpus.

    `hashes` and `places`: for each task (N,) uint64, a hash at most once in each.
    """
    tasks = np.repeat(np.arange(len(hashes)), list(map(len, hashes)))
    all_hashes, all_places = np.concatenate(hashes), np.concatenate(places)
    # lexsort begins with its last key: by hash, and equal hashes by place. All but the first of them are dropped.
    order = np.lexsort((all_places, all_hashes))
    is_later = all_hashes[order[1:]] == all_hashes[order[:-1]]
    later = order[1:][is_later]
    # A stable sort by task keeps the hashes of each task sorted, as `_isin` needs them.
    later = later[np.argsort(tasks[later], kind="stable")]
    return np.split(all_hashes[later], np.cumsum(np.bincount(tasks[later], minlength=len(hashes)))[:-1])


def make_bands(job: Job, task: int, folder: Path) -> None:
    """Write the bands of the task's texts, sorted, and the number of the text that has each."""
    shape = shape_of_bands(job.settings["near_duplicates"])
    bands, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for table in _cleaned_tables(job.output("clean", task) / "texts.arrow"):
        some = [bands_of(text, *shape) for text in table["text"].to_pylist()]
        bands.append(np.concatenate([bands[0], *some]))
        numbers.append(np.repeat(number_texts(table["place"].to_numpy()), list(map(len, some))))
    bands, numbers = np.concatenate(bands), np.concatenate(numbers)
    order = np.argsort(bands)
    np.save(folder / "bands.npy", bands[order])
    np.save(folder / "numbers.npy", numbers[order])


def number_texts(places: np.ndarray) -> np.ndarray:
    """A number for each text, (N,) uint64, that rises in the order of the corpus. `places` (N,) of whole blocks."""
    _, starts, sizes = np.unique(places, return_index=True, return_counts=True)
    blocks = places & np.uint64(2**40 - 1)
    # The number of the source, then 40 bits for BLOCK * block + the place inside the block.
    inside = np.arange(len(places)) - np.repeat(starts, sizes)
    return places + blocks * np.uint64(BLOCK - 1) + inside.astype(np.uint64)


def link_texts(job: Job, task: int, folder: Path) -> None:
    """Of one range of bands, write which texts share one."""
    np.save(folder / "links.npy", link(*map(np.concatenate, _read_range(job, "bands", ("bands", "numbers"), task))))


def cluster_texts(job: Job, task: int, folder: Path) -> None:
    """Write the numbers of all texts that are left out, sorted."""
    clusters = np.empty((2, 0), np.uint64)
    # One output after the other: what is kept in memory grows with the near-duplicates, not with their links.
    for output in job.outputs("links"):
        clusters = cluster(np.concatenate([clusters, np.load(output / "links.npy")], axis=1))
    np.save(folder / "dropped.npy", clusters[1])


def split_texts(job: Job, task: int, folder: Path) -> None:
    """Drop what another task had before, and near-duplicates; write what is left to `train.arrow` and `test.arrow`."""
    # The ranges of hashes come in their order, and each is sorted: so is the whole.
    duplicates = np.concatenate([_dropped(output, task) for output in job.outputs("duplicates")])
    near_duplicates = _near_duplicates(job)
    dropped = {"duplicate": Counter(), "near_duplicate": Counter()}
    with SplitWriter(folder / "train.arrow") as train, SplitWriter(folder / "test.arrow") as test:
        for table in _cleaned_tables(job.output("clean", task) / "texts.arrow"):
            hashes, places = table["hash"].to_numpy(), table["place"].to_numpy()
            is_duplicate = _isin(hashes, duplicates)
            # A copy of a near-duplicate counts as a duplicate, in whatever task it is.
            is_near_duplicate = ~is_duplicate & _isin(number_texts(places), near_duplicates)
            for reason, where in zip(dropped, (is_duplicate, is_near_duplicate), strict=True):
                dropped[reason].update((places[where] >> np.uint64(40)).tolist())
            is_kept = ~(is_duplicate | is_near_duplicate)
            texts = table["text"].filter(pa.array(is_kept)).to_pylist()
            parts = split_batch({"text": texts, "hash": hashes[is_kept]}, job.settings["test_share"])
            train.write(parts["train"])
            test.write(parts["test"])
    writers = dict(zip(SPLITS, (train, test), strict=True))
    write_json(
        folder / "counts.json",
        {
            "dropped": dropped,
            "sizes": {split: writer.size for split, writer in writers.items()},
            "fingerprints": {split: writer.fingerprint.hexdigest() for split, writer in writers.items()},
        },
    )


def _dropped(output, task):
    start, stop = np.load(output / "starts.npy")[task : task + 2]
    return np.array(np.load(output / "hashes.npy", mmap_mode="r")[start:stop])


def _near_duplicates(job):
    if "near_duplicates" not in job.settings:
        return np.empty(0, np.uint64)
    return np.load(job.output("clusters") / "dropped.npy", mmap_mode="r")


def _cleaned_tables(path):
    with pa.memory_map(str(path)) as file:
        batches = iter(pa.ipc.open_stream(file))  # each is one block: several together take fewer calls
        while some := list(islice(batches, BLOCKS_AT_A_TIME)):
            yield pa.Table.from_batches(some)


def _isin(values, ordered):
    if not len(ordered):
        return np.zeros(len(values), bool)
    # `np.isin` would sort `ordered` again for every batch. The clip is for values above all, found behind the end.
    return ordered[np.searchsorted(ordered, values).clip(max=len(ordered) - 1)] == values


def make_tokenizer(job: Job, task: int, folder: Path) -> None:
    """Write the report of the corpus, and the tokenizer: trained on an even sample, or a copy of an existing one."""
    report = merge_reports(job)
    fingerprints = report.pop("fingerprints")
    train, test = (_all_texts(job, split, fingerprints[split]) for split in SPLITS)
    names = ("vocab_size", "tokenizer_type", "lowercase")  # an existing tokenizer has none of them
    settings = {name: job.settings[name] for name in names if name in job.settings}
    tokenizer = prepare_tokenizer(
        folder / "tokenizer", train, settings, job.settings["max_length"], existing=job.tokenizer
    )
    report["tokenizer"] = measure_tokenizer(tokenizer, test)
    write_json(folder / "corpus.json", report)


def _all_texts(job, split, fingerprint):
    paths = [output / f"{split}.arrow" for output in job.outputs("texts")]
    texts = concatenate_datasets([read_arrow(path, str(path)) for path in paths])
    # With the fingerprint of the content, which is recorded with the tokenizer: paths differ between machines.
    return Dataset(texts.data, fingerprint=fingerprint)


def merge_reports(job: Job) -> dict:
    """The report that `load_corpus` gives for the same corpus, from what all tasks have counted.

    Only `fingerprint` depends on the number of tasks, as the order of the texts does. Raises `InputError` where
    nothing is left.
    """
    counts = [Counter() for _ in job.sources]
    sizes, fingerprints = {split: Counter() for split in SPLITS}, {split: [] for split in SPLITS}
    tagged = job.tagged_sentences()
    for cleaned, texts in zip(job.outputs("clean"), job.outputs("texts"), strict=True):
        cleaned, texts = read_json(cleaned / "counts.json"), read_json(texts / "counts.json")
        tagged.add_found(cleaned["found"])
        for number, some in cleaned["sources"].items():  # JSON has made a string of each number
            counts[int(number)].update(some)
        # The stage `clean` could not know what other tasks have, and counted these as kept.
        for reason, dropped in texts["dropped"].items():
            for number, some in dropped.items():
                counts[int(number)].update({"kept": -some, reason: some})
        for split in SPLITS:
            sizes[split].update(texts["sizes"][split])
            fingerprints[split].append(texts["fingerprints"][split])
    return make_report(
        [(source["name"], some) for source, some in zip(job.sources, counts, strict=True)],
        {split: dict(size) for split, size in sizes.items()},
        {split: fingerprint_of(some) for split, some in fingerprints.items()},
        tagged,
        job.settings["test_share"],
        job.settings["text_unit"],
        (*COUNTS, "near_duplicate") if "near_duplicates" in job.settings else COUNTS,
    )


def pack_rows(job: Job, task: int, folder: Path) -> None:
    """Pack the texts of the task; `shards.json` says of each split how many rows there are, and their checksum."""
    tokenizer = load_tokenizer(job.output("tokenizer") / "tokenizer")
    backend, settings = row_settings(tokenizer, job.settings["max_length"])
    shards = {}
    for split in SPLITS:
        path = folder / f"{split}.arrow"
        texts = read_arrow(job.output("texts", task) / f"{split}.arrow", "texts")
        rows = write_rows(path, texts, backend, len(tokenizer), settings)
        # Every task takes the checksum of its own shards, so that sealing the folder need not read all of them.
        shards[split] = {"rows": rows, "bytes": path.stat().st_size, "sha256": digest(path)}
    write_json(folder / "shards.json", shards)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("clean", clean_texts),
        Stage("duplicates", list_duplicates),
        Stage("bands", make_bands, needs="near_duplicates"),
        Stage("links", link_texts, needs="near_duplicates"),
        Stage("clusters", cluster_texts, is_single=True, needs="near_duplicates"),
        Stage("texts", split_texts),
        Stage("tokenizer", make_tokenizer, is_single=True),
        Stage("rows", pack_rows),
    )
}


def stages_of(job: Job) -> list[str]:
    """The names of the stages that a job goes through, in their order."""
    return [name for name, stage in STAGES.items() if stage.needs is None or stage.needs in job.settings]

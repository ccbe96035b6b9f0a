"""Text from anywhere becomes one clean corpus: normalised, without duplicates, split into train and test.

A corpus is prepared in one pass, batch by batch, by the map functions below, and lies on disk as two memory-mapped
Arrow files. One pass, and not a chain of `Dataset.map`: each of those would write the corpus once more and read it
back through a memory map, whose pages count as memory of the process (DESIGN: memory stays flat).
"""

import json
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, DatasetDict, load_dataset
from datasets.utils import tqdm
from filelock import FileLock

from electra_hf.errors import InputError
from electra_hf.text.readers import decode, read_dataset, read_lines, read_sentences
from electra_hf.text.sources import TAGGED_SUFFIXES, Source, default_cache, find_sources, open_texts

logger = logging.getLogger(__name__)

PREPARATION = 1  # raise it when this file prepares the same corpus differently: prepared ones are then not used again
COUNTS = ("read", "empty", "undecodable", "excluded", "duplicate", "kept", "cut", "control_characters")

# Control characters (Cc) that are no white space, and the replacement character: a tokenizer must never see them.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufffd]")


@dataclass
class CorpusArguments:
    corpus_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Paths, globs, folders, http(s) URLs: text, Leipzig archives, JSON Lines, CSV/TSV, Parquet."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub, beside or without files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_split: str = field(default="train", metadata={"help": "Its split."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit."})
    text_column: str = field(default="text", metadata={"help": "Column or key that holds the text."})
    encoding_errors: Literal["strict", "replace", "skip"] = field(
        default="strict", metadata={"help": "What to do with a line that is not UTF-8: stop, replace the bytes, skip."}
    )
    test_share: float = field(
        default=0.01, metadata={"help": "Share of the sentences held out, chosen by a hash of the sentence."}
    )
    exclude_files: list[str] = field(
        default_factory=list,
        metadata={"help": "Tagged files (word TAG lines, CoNLL, CoNLL-U) whose sentences the corpus must not hold."},
    )
    data_cache_dir: str | None = field(
        default=None, metadata={"help": "Downloads and prepared corpora (default: in the cache of datasets)."}
    )

    def __post_init__(self):
        if not 0 <= self.test_share < 1:
            raise InputError(f"test_share: expected a share from 0 to below 1, got {self.test_share}.")
        if self.encoding_errors not in ("strict", "replace", "skip"):
            raise InputError(f"encoding_errors: expected strict, replace or skip, got {self.encoding_errors!r}.")
        if not self.corpus_files and not self.dataset_name:
            raise InputError("corpus_files: no corpus is named. Give files, folders or URLs, or a dataset_name.")


@dataclass
class Part:
    """One file, archive or dataset of the corpus: its lines are read when `lines(counts)` is called."""

    name: str
    version: str  # changes with the content
    lines: Callable[[Counter], Iterator[str]]


def load_corpus(arguments: CorpusArguments) -> tuple[DatasetDict, dict]:
    """Prepare the corpus, or find it prepared; return {"train", "test"} with one column "text", and the report.

    The report holds, for every source and in all, the counts of `COUNTS`, and sentences and characters of each split.
    Raises `InputError` for whatever is wrong with the input; nothing half-prepared stays on disk.
    """
    cache = Path(arguments.data_cache_dir or default_cache()).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"data_cache_dir: cannot make the folder {cache} ({error.strerror}).") from None
    downloads = cache / "downloads"
    exclude = find_sources(arguments.exclude_files, downloads, TAGGED_SUFFIXES)
    parts = [_file_part(source, arguments) for source in find_sources(arguments.corpus_files, downloads)]
    if arguments.dataset_name:
        parts.append(_dataset_part(arguments))

    folder = cache / f"corpus-{_fingerprint(parts, exclude, arguments)}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".incomplete")
            shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
            unfinished.mkdir()
            try:
                prepare_corpus(parts, read_excluded(exclude), arguments.test_share, unfinished)
                os.replace(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    report = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    return DatasetDict(
        {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in report["splits"]}
    ), report


def _file_part(source, arguments):
    lines = partial(read_sentences, source, arguments.text_column, arguments.encoding_errors)
    return Part(source.name, _file_version(source), lines)


def _file_version(source):
    status = source.path.stat()
    return f"{source.path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _dataset_part(arguments):
    name = arguments.dataset_name
    try:
        dataset = load_dataset(
            name, arguments.dataset_config_name, split=arguments.dataset_split, revision=arguments.dataset_revision
        )
    except (OSError, ValueError) as error:
        raise InputError(f"dataset_name: {name} cannot be loaded ({error}).") from None
    return Part(name, dataset._fingerprint, partial(read_dataset, dataset, name, arguments.text_column))


def _fingerprint(parts, exclude, arguments):
    versions = [[part.name, part.version] for part in parts], [_file_version(source) for source in exclude]
    settings = arguments.text_column, arguments.encoding_errors, arguments.test_share, PREPARATION
    return xxhash.xxh3_64_hexdigest(json.dumps([versions, settings]).encode())


def prepare_corpus(parts: list[Part], excluded: set[str], test_share: float, folder: Path):
    """Write `train.arrow`, `test.arrow` and `corpus.json` to `folder`. Raises `InputError` where nothing is left."""
    schema, seen = pa.schema({"text": pa.string()}), SeenHashes()
    sources = []
    splits = {split: {"sentences": 0, "characters": 0} for split in ("train", "test")}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(pa.ipc.new_stream(str(folder / f"{split}.arrow"), schema)) for split in splits
        }
        for part in parts:
            counts = Counter()
            sources.append((part.name, counts))
            with tqdm(desc=f"preparing {Path(part.name).name}", unit=" sentences") as progress:
                for texts in _batches(part.lines(counts)):
                    progress.update(len(texts))
                    batch = clean_batch({"text": texts}, excluded, seen, counts)
                    for split, sentences in split_batch(batch, test_share).items():
                        writers[split].write_table(pa.table({"text": sentences}, schema))
                        splits[split]["sentences"] += len(sentences)
                        splits[split]["characters"] += sum(map(len, sentences))
            if not counts["read"]:
                logger.warning("%s is empty and was left out.", part.name)
    total = sum((counts for _, counts in sources), Counter())
    report = {
        "sources": [{"name": name} | _all_counts(counts) for name, counts in sources],
        "total": _all_counts(total),
        "splits": splits,
        "test_share": test_share,
    }
    _check_not_empty(report)
    (folder / "corpus.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _all_counts(counts):
    return {name: counts[name] for name in COUNTS}


def _check_not_empty(report):
    total, splits = report["total"], report["splits"]
    if not splits["train"]["sentences"]:
        dropped = ", ".join(f"{total[name]} {name}" for name in COUNTS[1:5])
        raise InputError(f"corpus_files: the corpus is empty. Of {total['read']} lines read: {dropped}. Add text.")
    if report["test_share"] and not splits["test"]["sentences"]:
        raise InputError(
            f"test_share: {report['test_share']} of {total['kept']} sentences held out none. Raise it, or add text."
        )


def _batches(texts, most_sentences=10_000, most_characters=4 << 20):
    """Lists of texts, bounded in number and in size: a batch of the longest lines must not fill the memory."""
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == most_sentences or characters > most_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def clean_batch(batch: dict, excluded: set[str], seen: "SeenHashes", counts: Counter) -> dict:
    """Normalise, and drop what is empty, excluded or a duplicate of an earlier sentence; `counts` says how many."""
    batch = normalise_texts(batch)
    counts["control_characters"] += sum(batch["control_characters"])
    texts = _keep(batch["text"], bool, "empty", counts)
    if excluded:
        texts = _keep(texts, lambda text: sentence_key(text) not in excluded, "excluded", counts)
    hashes = hash_texts({"text": texts})["hash"]
    is_new = seen.add(hashes)
    counts["kept"] += int(is_new.sum())
    counts["duplicate"] += int((~is_new).sum())
    return {"text": [text for text, new in zip(texts, is_new, strict=True) if new], "hash": hashes[is_new]}


def _keep(texts, is_wanted, reason, counts):
    kept = [text for text in texts if is_wanted(text)]
    counts[reason] += len(texts) - len(kept)
    return kept


def normalise_texts(batch: dict) -> dict:
    """Control characters to spaces (counted per text), Unicode form NFC, runs of white space to one space.

    For `Dataset.map(normalise_texts, batched=True)` as well.
    """
    spaced = [CONTROL_CHARACTERS.subn(" ", text) for text in batch["text"]]
    return {
        "text": [" ".join(unicodedata.normalize("NFC", text).split()) for text, _ in spaced],
        "control_characters": [count for _, count in spaced],
    }


def hash_texts(batch: dict) -> dict:
    """The 64-bit XXH3 of each text in UTF-8, an array of uint64.

    Two of a billion different sentences meet with a probability of 3 %; one of them would be lost as a duplicate.
    """
    hashes = (xxhash.xxh3_64_intdigest(text.encode()) for text in batch["text"])
    return {"hash": np.fromiter(hashes, dtype=np.uint64, count=len(batch["text"]))}


def split_batch(batch: dict, test_share: float) -> dict[str, list[str]]:
    """Part the texts by their own hash: no text is on both sides, and none moves when the corpus grows."""
    is_test = batch["hash"] < np.uint64(test_share * 2**64)
    pairs = list(zip(batch["text"], is_test, strict=True))
    return {
        "train": [text for text, held_out in pairs if not held_out],
        "test": [text for text, held_out in pairs if held_out],
    }


class SeenHashes:
    """Which hashes came before, in 8 bytes each (a Python set takes 60): sorted runs, each over twice the next."""

    def __init__(self):
        self.runs = []

    def add(self, hashes: np.ndarray) -> np.ndarray:
        """Remember the hashes (N,) and return (N,) bool: True where one is seen for the first time."""
        fresh, first = np.unique(hashes, return_index=True)
        for run in self.runs:
            at = np.searchsorted(run, fresh).clip(max=len(run) - 1)
            is_new = run[at] != fresh
            fresh, first = fresh[is_new], first[is_new]
        if len(fresh):
            self.runs.append(fresh)
        # Merging runs of like size keeps their number logarithmic, and moves each hash as rarely.
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]), kind="stable")]
        is_first = np.zeros(len(hashes), dtype=bool)
        is_first[first] = True
        return is_first


def read_excluded(sources: list[Source]) -> set[str]:
    """The keys of all sentences of tagged files, for comparison with running text. Raises `InputError`."""
    keys = set()
    for source in sources:
        for name, stream in open_texts(source):
            counts = Counter()
            lines = decode(read_lines(stream, counts), name, "strict", counts)
            sentences = groupby(lines, key=lambda line: bool(line.strip()))
            keys |= {sentence_key(" ".join(_words(list(rows)))) for is_text, rows in sentences if is_text}
    return keys - {""}  # a sentence of punctuation alone is not worth telling apart


def _words(lines):
    """The words of one tagged sentence as they stand in running text: first column, or FORM in CoNLL-U."""
    rows = [line.split("\t") for line in lines]
    rows = [row for row in rows if len(row) == 10]  # leaves the comments of CoNLL-U out
    if not rows:
        return [re.split(r"[ \t]", line.strip(), maxsplit=1)[0] for line in lines]
    words, covered = [], 0
    for index, form, *_ in rows:
        first, _, last = index.partition("-")
        # "3-4 du" stands for the words 3 and 4, "de le"; "8.1" is an empty node, which no text shows.
        if last:
            covered = int(last)
        if last or (first.isdecimal() and int(first) > covered):
            words.append(form)
    return words


class _Spelling(dict):
    """A table for `str.translate` that drops all but letters, marks and digits, filled as characters turn up."""

    def __missing__(self, code):
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else None
        return self[code]


_SPELLING = _Spelling()


def sentence_key(text: str) -> str:
    """What is left of a sentence when spaces, punctuation and case are: equal for running and for tokenised text."""
    return unicodedata.normalize("NFC", text).translate(_SPELLING).casefold()


def format_report(report: dict) -> str:
    """The report as a short table, one line per source, and one line per split."""
    columns = [name for name in COUNTS if name in ("read", "kept") or report["total"][name]]
    sources = report["sources"] if len(report["sources"]) <= 20 else []  # a folder of a thousand files: the sum only
    rows = [source | {"name": PurePosixPath(source["name"]).name} for source in sources]
    rows.append({"name": f"total of {len(report['sources'])}"} | report["total"])
    cells = [["corpus", *(name.replace("_", " ") for name in columns)]]
    cells += [[row["name"], *(f"{row[name]:,}" for name in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    lines += [
        f"{split}: {size['sentences']:,} sentences, {size['characters']:,} characters"
        for split, size in report["splits"].items()
    ]
    return "\n".join(lines)

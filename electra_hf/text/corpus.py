"""Text from anywhere becomes one clean corpus: normalised, without duplicates, split into train and test.

A corpus is prepared in one pass, batch by batch, by the map functions below, and lies on disk as two memory-mapped
Arrow files. One pass, and not a chain of `Dataset.map`: each of those would write the corpus once more and read it
back through a memory map, whose pages count as memory of the process.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from datasets import DatasetDict
from datasets.utils import tqdm

from electra_hf.errors import InputError
from electra_hf.files import digest, read_json, write_json
from electra_hf.text.characters import clean_characters
from electra_hf.text.columns import load_hub_dataset
from electra_hf.text.exclusion import TaggedSentences
from electra_hf.text.fingerprint import TextFingerprint, fingerprint_of, fingerprint_texts
from electra_hf.text.names import TAGGED_SUFFIXES, inner_suffix, is_sentences, printable, refuse_blank_settings
from electra_hf.text.prepared import cache_folder, prepared_folder, read_arrow
from electra_hf.text.readers import read_dataset, read_sentences
from electra_hf.text.sources import Source, find_sources

logger = logging.getLogger(__name__)

# In the order of the report's columns. The second to the fifth are the reasons to drop a text.
COUNTS = ("read", "empty", "undecodable", "excluded", "duplicate", "kept", "cut", "control_characters", "numbered")

# Control characters (Cc) that are no white space, and the replacement character: a tokenizer must never see them.
CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufffd]")
# These files decide how a corpus is prepared: what an older version of them has prepared is not used again.
PREPARATION = [
    digest(Path(__file__).with_name(f"{name}.py"))
    for name in ("corpus", "readers", "characters", "exclusion", "tagged_text", "running_text")
]


@dataclass
class CorpusArguments:
    """What raw text there is to learn from, and how it is read."""

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
    text_unit: Literal["line", "document"] = field(
        default="line",
        metadata={
            "help": "What one text is: a line; or a document, which is a record of a table or the lines between blank "
            "ones of a text file. A text is kept, dropped and held out as one, and has no [SEP] inside."
        },
    )
    encoding_errors: Literal["strict", "replace", "skip"] = field(
        default="strict", metadata={"help": "What to do with a line that is not UTF-8: stop, replace the bytes, skip."}
    )
    test_share: float = field(
        default=0.01, metadata={"help": "Share of the texts held out, chosen by a hash of the text."}
    )
    exclude_files: list[str] = field(
        default_factory=list,
        metadata={"help": "Tagged files (word TAG lines, CoNLL, CoNLL-U) whose sentences the corpus must not hold."},
    )
    data_cache_dir: str | None = field(
        default=None, metadata={"help": "Downloads and prepared corpora (default: in the cache of datasets)."}
    )

    def __post_init__(self) -> None:
        refuse_blank_settings(self)
        # The command line checks the choices by their type. These checks are for callers in Python.
        if not 0 <= self.test_share < 1:
            raise InputError(f"test_share: expected a share from 0 to below 1, got {self.test_share}.")
        if self.text_unit not in ("line", "document"):
            raise InputError(f"text_unit: expected line or document, got {self.text_unit!r}.")
        if self.encoding_errors not in ("strict", "replace", "skip"):
            raise InputError(f"encoding_errors: expected strict, replace or skip, got {self.encoding_errors!r}.")
        if not self.corpus_files and not self.dataset_name:
            raise InputError("corpus_files: no corpus is named. Give files, folders or URLs, or a dataset_name.")


@dataclass
class Part:
    """One file, archive or dataset of the corpus: its texts are read when `texts(counts)` is called."""

    name: str  # stands in the report and nowhere else
    content: str  # the same for the same content, whatever it is called and wherever it lies
    texts: Callable[..., Iterator[str]]


def load_corpus(arguments: CorpusArguments) -> tuple[DatasetDict, dict]:
    """Prepare the corpus, or find it prepared; return {"train", "test"} with one column "text", and the report.

    The report holds, for every source and in all, the counts of `COUNTS`; `text_unit`; the number of texts (as
    "sentences", whatever the unit) and of characters in each split; how many of the tagged sentences of
    `exclude_files` were found; and `fingerprint`, the identity of all texts, which the two datasets have as well, each
    its own. These depend on nothing but the content of what is read and the settings: a file may be copied, touched,
    moved or fetched again. Every input is therefore read at every start (two gigabytes a second), and what was
    prepared is compared with its manifest (`prepared_folder`).
    Raises `InputError` for whatever is wrong with the input; nothing half-prepared stays on disk.
    """
    cache = cache_folder(arguments.data_cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # not allowed, too long, no name for a folder
        raise InputError(
            f"data_cache_dir: cannot make the folder {printable(str(cache))} ({printable(str(error))})."
        ) from None
    downloads = cache / "downloads"
    tagged = find_sources(arguments.exclude_files, downloads, TAGGED_SUFFIXES)
    parts = [_file_part(source, arguments) for source in find_sources(arguments.corpus_files, downloads)]
    if arguments.dataset_name:
        parts.append(_dataset_part(arguments))

    def prepare(folder):
        # Read in here: a corpus that is found prepared does not need them.
        tagged_sentences = TaggedSentences.of_files(tagged)
        prepare_corpus(parts, tagged_sentences, arguments.test_share, folder, arguments.text_unit)

    folder = prepared_folder(cache, f"corpus-{_identity(parts, tagged, arguments)}", prepare)
    report = read_json(folder / "corpus.json")
    for source, part in zip(report["sources"], parts, strict=True):
        source["name"] = part.name  # as it is called today
    fingerprints = report.pop("fingerprints")  # the two datasets have them from here on
    splits = {split: read_arrow(folder / f"{split}.arrow", fingerprints[split]) for split in report["splits"]}
    return DatasetDict(splits), report


def _file_part(source, arguments):
    settings = {name: getattr(arguments, name) for name in ("text_column", "encoding_errors", "text_unit")}
    return Part(source.name, content_of(source), partial(read_sentences, source, **settings))


def content_of(source: Source) -> str:
    """The same for the same content, wherever it lies: a digest, and the ending, which says how to read it."""
    # Whether it has the name of a Leipzig file counts too: its lines are then read as numbered.
    return f"{_digest(source)} {inner_suffix(source.name)} {is_sentences(source.name)}"


def _digest(source):
    try:
        return digest(source.path)
    except OSError as error:
        raise InputError(f"{source.name}: cannot be read ({error.strerror}).") from None


def _dataset_part(arguments):
    name, column = arguments.dataset_name, arguments.text_column
    split, revision = arguments.dataset_split, arguments.dataset_revision
    dataset = load_hub_dataset(name, name=arguments.dataset_config_name, split=split, revision=revision)
    texts = partial(read_dataset, dataset, name, column, text_unit=arguments.text_unit)
    return Part(name, fingerprint_texts(dataset, name, column), texts)


def _identity(parts, tagged, arguments):
    # The order of the contents counts, since of equal texts the first is kept. Names do not count: `load_corpus` puts
    # those of today into the report.
    contents = (
        [part.content for part in parts],
        [f"{_digest(source)} {inner_suffix(source.name)}" for source in tagged],
    )
    settings = arguments.text_column, arguments.encoding_errors, arguments.test_share, arguments.text_unit
    return fingerprint_of(contents, settings, PREPARATION)


def prepare_corpus(
    parts: list[Part], tagged: TaggedSentences, test_share: float, folder: Path, text_unit: str = "line"
) -> None:
    """Write `train.arrow`, `test.arrow` and `corpus.json` to `folder`. Raises `InputError` where nothing is left."""
    seen, sources = SeenHashes(), []  # one `seen` for all sources: duplicates are looked for across files
    with ExitStack() as stack:
        splits = {split: stack.enter_context(SplitWriter(folder / f"{split}.arrow")) for split in ("train", "test")}
        # One bar for all: ten thousand small files would print ten thousand.
        progress = stack.enter_context(tqdm(desc=f"preparing {len(parts)} sources", unit=f" {_units(text_unit)}"))
        for part in parts:
            counts = Counter()
            sources.append((part.name, counts))
            for texts in _batches(part.texts(counts=counts)):
                progress.update(len(texts))
                batch = clean_batch({"text": texts}, tagged, seen, counts)
                for split, sentences in split_batch(batch, test_share).items():
                    splits[split].write(sentences)
    # The fingerprints were taken while the texts were written, which saves a second pass over them.
    sizes = {split: writer.size for split, writer in splits.items()}
    fingerprints = {split: writer.fingerprint.hexdigest() for split, writer in splits.items()}
    write_json(folder / "corpus.json", make_report(sources, sizes, fingerprints, tagged, test_share, text_unit))


def make_report(
    sources: list[tuple[str, Counter]],
    sizes: dict,
    fingerprints: dict,
    tagged: TaggedSentences,
    test_share: float,
    text_unit: str,
    columns: tuple[str, ...] = COUNTS,
) -> dict:
    """The report of `load_corpus` and, for each split, the fingerprint of its texts. A warning names empty sources.

    `sources`: names and counts; `sizes`: of each split; `columns`: which counts are reported. Raises `InputError`
    where nothing is left.
    """
    # One warning for all: of ten thousand files, thousands may be empty.
    _warn_of_empty([name for name, counts in sources if not counts["read"]])
    report = {
        "sources": [{"name": name} | _all_counts(counts, columns) for name, counts in sources],
        "total": _all_counts(sum((counts for _, counts in sources), Counter()), columns),
        "splits": sizes,
        "test_share": test_share,
        "text_unit": text_unit,
        "excluded_sentences": tagged.number,
        "excluded_sentences_found": tagged.number_found,
        "fingerprint": fingerprint_of(fingerprints),
        "fingerprints": fingerprints,
    }
    _check_not_empty(report)
    return report


class SplitWriter:
    """Writes the texts of one split to an Arrow file, and counts them."""

    def __init__(self, path: Path):
        self.size = {"sentences": 0, "characters": 0}
        self.fingerprint = TextFingerprint()
        self._schema = pa.schema({"text": pa.string()})
        self._path = path

    def __enter__(self) -> "SplitWriter":
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        return self

    def __exit__(self, error, *_) -> None:
        if error is None:
            self._writer.close()  # writes the end of the stream; after a full disk that would fail once more
        self._file.close()

    def write(self, texts: list[str]) -> None:
        """Append the texts."""
        column = pa.array(texts, pa.string())
        self._writer.write_table(pa.table({"text": column}, self._schema))
        # Strings have offsets of 32 bits; the fingerprint reads those of 64 bits.
        self.fingerprint.update(column.cast(pa.large_binary()))
        self.size["sentences"] += len(texts)
        self.size["characters"] += sum(map(len, texts))


def _warn_of_empty(names):
    if names:
        others = f" and {len(names) - 3} others" if len(names) > 3 else ""
        are = "is" if len(names) == 1 else "are"
        logger.warning("%s%s %s empty and left out.", ", ".join(names[:3]), others, are)


def _units(text_unit):
    """What texts are called: the lines of most corpora are sentences."""
    return "sentences" if text_unit == "line" else "documents"


def _all_counts(counts, columns):
    return {name: counts[name] for name in columns}


def _check_not_empty(report):
    # The counts say why nothing is left, such as empty lines, or bytes that were skipped.
    total, splits = report["total"], report["splits"]
    if not splits["train"]["sentences"]:
        dropped = ", ".join(f"{total[name]} {name}" for name in COUNTS[1:5])
        units = "lines" if report["text_unit"] == "line" else "documents"
        raise InputError(f"corpus_files: the corpus is empty. Of {total['read']} {units} read: {dropped}. Add text.")
    if report["test_share"] and not splits["test"]["sentences"]:
        raise InputError(
            f"test_share: {report['test_share']} of {total['kept']} {_units(report['text_unit'])} held out none. "
            "Raise it, or add text."
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


def clean_batch(
    batch: dict[str, list[str]], tagged: TaggedSentences, seen: "SeenHashes", counts: Counter
) -> dict[str, list[str] | np.ndarray]:
    """Normalise, and drop what is empty, holds a tagged sentence or came before; `counts` says how many.

    Returns the texts that are left, and their hashes (N,) uint64.
    """
    batch = normalise_texts(batch)
    counts["control_characters"] += sum(batch["control_characters"])
    texts = _keep(batch["text"], bool, "empty", counts)
    if tagged.number:
        texts = _keep(texts, lambda text: not tagged.find(text), "excluded", counts)
    # Duplicates last: a text that is dropped anyway counts under that reason, and takes no room among the hashes.
    hashes = hash_texts({"text": texts})["hash"]
    is_new = seen.add(hashes)
    counts["kept"] += int(is_new.sum())
    counts["duplicate"] += int((~is_new).sum())
    return {"text": [text for text, new in zip(texts, is_new, strict=True) if new], "hash": hashes[is_new]}


def _keep(texts, is_wanted, reason, counts):
    kept = [text for text in texts if is_wanted(text)]
    counts[reason] += len(texts) - len(kept)
    return kept


def normalise_texts(batch: dict[str, list[str]]) -> dict[str, list]:
    """Clean each text of layout (`characters.clean_characters`), and count its control characters.

    For `Dataset.map(normalise_texts, batched=True)` as well.
    """
    cleaned = [clean_characters(text) for text in batch["text"]]
    return {
        "text": cleaned,
        # What is clean holds none, and most texts are clean as they come.
        "control_characters": [
            0 if text == before else len(CONTROL_CHARACTERS.findall(before))
            for text, before in zip(cleaned, batch["text"], strict=True)
        ],
    }


def hash_texts(batch: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """The 64-bit XXH3 of each text in UTF-8, an array of uint64.

    Two of a billion different sentences meet with a probability of 3 %; one of them would be lost as a duplicate.
    """
    hashes = (xxhash.xxh3_64_intdigest(text.encode()) for text in batch["text"])
    return {"hash": np.fromiter(hashes, dtype=np.uint64, count=len(batch["text"]))}


def split_batch(batch: dict[str, list[str] | np.ndarray], test_share: float) -> dict[str, list[str]]:
    """Part the texts by their own hash: no text is on both sides, and none moves when the corpus grows."""
    # Hashes lie evenly between 0 and 2**64, so a share of the range holds that share of the texts.
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
        # `unique` sorts, as the look-ups below need it, and `first` is where each hash first stands in the batch.
        fresh, first = np.unique(hashes, return_index=True)
        for run in self.runs:
            # The clip is for hashes above all of the run, which are found behind its end.
            at = np.searchsorted(run, fresh).clip(max=len(run) - 1)
            is_new = run[at] != fresh
            fresh, first = fresh[is_new], first[is_new]
        if len(fresh):
            self.runs.append(fresh)
        # Merging runs of like size keeps their number logarithmic, and moves each hash as rarely.
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            # For 64-bit numbers numpy's stable sort is timsort, which finds the two sorted runs and merges them.
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]), kind="stable")]
        is_first = np.zeros(len(hashes), dtype=bool)
        is_first[first] = True
        return is_first


def format_report(report: dict) -> str:
    """The report as a short table, one line per source, and one line per split."""
    # A column that is zero everywhere is left out, so that the table stays narrow.
    columns = [name for name, number in report["total"].items() if name in ("read", "kept") or number]
    sources = report["sources"] if len(report["sources"]) <= 20 else []  # a folder of a thousand files: the sum only
    rows = [source | {"name": PurePosixPath(source["name"]).name} for source in sources]
    rows.append({"name": f"total of {len(report['sources'])}"} | report["total"])
    cells = [["corpus", *(name.replace("_", " ") for name in columns)]]
    cells += [[row["name"], *(f"{row[name]:,}" for name in columns)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
    lines += [
        f"{split}: {size['sentences']:,} {_units(report['text_unit'])}, {size['characters']:,} characters"
        for split, size in report["splits"].items()
    ]
    if report["excluded_sentences"]:
        found, number = report["excluded_sentences_found"], report["excluded_sentences"]
        lines.append(f"exclude_files: {found:,} of {number:,} tagged sentences were found in the corpus and left out")
    return "\n".join(lines)

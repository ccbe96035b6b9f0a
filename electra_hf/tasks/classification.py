"""What a classifier learns from: texts or pairs of texts with labels or numbers, from files, GLUE or a Hub dataset."""

import difflib
import logging
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import datasets
import xxhash

from electra_hf.errors import InputError
from electra_hf.tasks.glue import TASKS, GlueTask, Layout, find_glue_files
from electra_hf.text.columns import load_hub_dataset
from electra_hf.text.names import refuse_blank_settings
from electra_hf.text.tables import Row, read_dataset_rows, read_table

logger = logging.getLogger(__name__)


@dataclass
class ClassificationArguments:
    """The texts and their labels: a task of GLUE, or columns of files or of a dataset."""

    task: str | None = field(default=None, metadata={"help": f"A task of GLUE: {', '.join(TASKS)}."})
    text_columns: list[str] = field(
        default_factory=list, metadata={"help": "Without task: the column of the text, or the two of a pair."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Without task: the column of the label."})
    regression: bool | None = field(
        default=None,
        metadata={"help": "Whether labels are numbers to predict (default: if all are numbers and not all whole)."},
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Path or URL: .tsv, .csv, .jsonl or .parquet, .gz too."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "The same for the test (default: a held-out share)."}
    )
    glue_dir: str | None = field(
        default=None, metadata={"help": "With task, instead of files: the folder with CoLA, SST-2 and so on."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub instead of files."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration (default: the task's, where it has that)."}
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "Its split to test on (default: validation with a task, else test or validation)."},
    )
    test_share: float = field(
        default=0.1, metadata={"help": "Share of examples held out when there is no test part, by content hash."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest input in tokens, special ones included (default: the model's)."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many examples, drawn once at random, the same for every seed."}
    )

    def __post_init__(self) -> None:
        refuse_blank_settings(self)
        if self.task is not None and self.task not in TASKS:
            # `SST-2` and `sst2` are the same task to whoever types it.
            near = difflib.get_close_matches(self.task.lower().replace("-", ""), TASKS, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise InputError(f"task: expected one of {', '.join(TASKS)}, got '{self.task}'{hint}.")
        # Two sources of columns could disagree, and nobody would see which one won.
        if self.task and (self.text_columns or self.label_column or self.regression is not None):
            raise InputError(
                f"task {self.task} has its own columns and labels. Leave out text_columns, label_column and "
                "regression, or leave out task."
            )
        if not self.task and not (0 < len(self.text_columns) < 3 and self.label_column):
            raise InputError(
                "Give task, a task of GLUE; or text_columns, the column of the text or the two of a pair, and "
                f"label_column. Got text_columns: {' '.join(self.text_columns) or 'none'}, label_column: "
                f"{self.label_column or 'none'}."
            )
        # Each of the three says where the training part lies; with two of them one would be ignored.
        if (self.train_file, self.glue_dir, self.dataset_name).count(None) != 2:
            raise InputError("Give one of train_file (a path or URL), glue_dir (with task) and dataset_name.")
        if self.glue_dir and not self.task:
            raise InputError(f"glue_dir: say which of its tasks to learn with task: {', '.join(TASKS)}.")
        if self.test_file and not self.train_file:
            raise InputError("test_file belongs to train_file. For a dataset give test_split.")
        if self.max_train_samples is not None and self.max_train_samples < 2:
            raise InputError(f"max_train_samples: expected 2 or more, got {self.max_train_samples}.")


@dataclass
class Example:
    """One text or a pair, its label (None: not known), and where it stands."""

    texts: tuple[str, ...]
    label: str | None
    place: str

    @property
    def number(self) -> float:
        """The label as a number. Raises `InputError`."""
        try:
            number = float(self.label)
        except ValueError:
            # `float` reads nan and inf, too, and neither is a number that can be learned.
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{self.place}: expected a number, found {self.label[:80]!r}. Correct it; or for labels instead of "
                "numbers set regression to false."
            )
        return number


@dataclass
class ClassificationData:
    """Examples with known labels. `labels` in the order of the model's outputs, none where they are numbers.

    `tests` by name; the first one's scores are the main ones. Its name is empty where there is no other.
    """

    train: list[Example]
    tests: dict[str, list[Example]]
    labels: list[str]


def load_examples(arguments: ClassificationArguments) -> ClassificationData:
    """Read and check every part. Raises `InputError` with file and line at what cannot be learned or scored."""
    task = TASKS.get(arguments.task)
    parts = {name: _read_examples(rows, arguments, task) for name, rows in _find_parts(arguments, task).items()}
    for name, examples in parts.items():
        if not examples:
            raise InputError(f"The {_title(name)} part has no example. Check the file or the split.")
    # A hidden test of GLUE is full of -1, and that must not become a class. In training it is a mistake, and told.
    train = _labelled(parts.pop("train"), "train")
    tests = parts
    if not tests:
        # By content, so that the same text is on the same side whatever the order of the lines.
        train, tests[""] = split_by_content(train, arguments.test_share)
    if _are_numbers(train, arguments, task):
        tests = {name: _labelled(examples, name) for name, examples in tests.items()}
        for name, examples in {"train": train, **tests}.items():
            _check_numbers(examples, name)
        labels = []
    else:
        # The order of the task's labels is that of the Hub: models of others then mean the same by each output.
        labels = list(task.labels) if task else _list_labels(train)
        tests = {name: _labelled(_without_minus_one(examples, labels), name) for name, examples in tests.items()}
        _check_labels(train, tests, labels)
    if arguments.max_train_samples and arguments.max_train_samples < len(train):
        # Not the first ones, since files are often sorted by label; and not by the run's seed, since seeds are to
        # differ in the model alone.
        train = random.Random(0).sample(train, arguments.max_train_samples)
    return ClassificationData(train, tests, labels)


def _title(name):
    return "training" if name == "train" else f"{name} test".strip()


def _find_parts(arguments, task) -> dict[str, Iterator[Row]]:
    """The rows of "train" and of each part to test on. What is not there is left out."""
    columns = task.columns_without_header if task else ()
    if arguments.dataset_name:
        return _open_dataset(arguments, task)
    files = {"train": arguments.train_file, "": arguments.test_file}
    if arguments.glue_dir:
        files = find_glue_files(arguments.glue_dir, task)
        if not files:
            names = " and ".join(f"{f'dev_{test}'.rstrip('_')}.tsv" for test in task.tests)
            raise InputError(
                f"glue_dir: {arguments.glue_dir} lacks the files of {task.title}. Expected a folder {task.title} or "
                f"{task.name} with train.tsv and {names}."
            )
    return {name: read_table(file, columns) for name, file in files.items() if file}


def _open_dataset(arguments, task):
    name = arguments.dataset_name
    splits = load_hub_dataset(name, name=_configuration(arguments, task))
    if "train" not in splits:
        raise InputError(f"dataset_name: expected a split 'train' in {name}, found {', '.join(splits)}.")
    parts = {"train": "train"} | _test_splits(arguments, task, splits)
    return {part: read_dataset_rows(splits[split], f"{name}[{split}]") for part, split in parts.items()}


def _configuration(arguments, task):
    """The dataset's configuration: the one that is named, or the task's where the dataset has that."""
    if arguments.dataset_config_name or not task:
        return arguments.dataset_config_name
    try:
        # The Hub keeps the nine tasks as configurations of one dataset; a copy of a single task has none of that name.
        names = datasets.get_dataset_config_names(arguments.dataset_name)
    except Exception:  # whatever it is: loading the dataset meets it too, and its message says so
        return None
    return task.name if task.name in names else None


def _test_splits(arguments, task, splits):
    """The split of each part to test on, by the part's name."""
    wanted = arguments.test_split
    if wanted:
        if wanted not in splits:
            raise InputError(
                f"test_split: {arguments.dataset_name} has no split {wanted!r}, only {', '.join(splits)}."
            )
        return {"": wanted}
    if task:  # the test splits of GLUE have no labels
        # Only if all of them are there: half of MNLI's tests would pass for the whole.
        named = {test: f"validation_{test}".rstrip("_") for test in task.tests}
        if set(named.values()) <= set(splits):
            return named
    # GLUE keeps the labels of its test splits to itself; other datasets give them.
    candidates = ("validation", "test") if task else ("test", "validation")
    found = [split for split in candidates if split in splits]
    return {"": found[0]} if found else {}


def _read_examples(rows: Iterable[Row], arguments, task: GlueTask | None) -> list[Example]:
    layouts = task.layouts if task else (Layout(tuple(arguments.text_columns), arguments.label_column),)
    examples, broken = [], []
    for row in rows:
        layout = _choose_layout(row, layouts)
        try:
            examples.append(_make_example(row, layout, task))
        except ValueError as error:
            # QQP's own file has lines that are cut. Anywhere else a broken line is the user's to mend.
            if not (task and task.has_broken_lines):
                raise InputError(f"{row.place}: {error}. Correct the line or leave it out.") from None
            broken.append(row.place)
    if broken:
        logger.warning(
            "%s lines are broken and left out, as this task's files have some: %s …", len(broken), broken[0]
        )
    return examples


def _choose_layout(row, layouts):
    for layout in layouts:
        # A broken line lacks columns, too; which layout it would have had does not matter.
        if row.fault or {*layout.texts, layout.label} <= row.cells.keys():
            return layout
    expected = " or ".join(", ".join([*layout.texts, layout.label]) for layout in layouts)
    missing = [name for name in [*layouts[0].texts, layouts[0].label] if name not in row.cells]
    raise InputError(
        f"{row.place}: no column {missing[0]!r}. Expected the columns {expected}, found "
        f"{', '.join(row.cells) or 'none'}. Name the columns by text_columns (one, or two for a "
        "pair) and label_column; a test part without labels cannot be scored."
    )


def _make_example(row, layout, task):
    """Raises ValueError with what is wrong."""
    if row.fault:
        raise ValueError(row.fault)
    texts = tuple(_text_of(row.cells[column], column) for column in layout.texts)
    for text, column in zip(texts, layout.texts, strict=True):
        if not (text or "").strip():
            raise ValueError(f"the column {column!r} is empty, a text is expected")
    # A blank label is none: files write it where nobody has judged the text.
    label = (_text_of(row.cells[layout.label], layout.label) or "").strip() or None
    return Example(texts, task.label_of(label) if task and label else label, row.place)


def _text_of(cell, column):
    """A cell as text. Raises ValueError where it is a list or the like."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    # JSON's true, Python's True and the word `true` are to be one label.
    if isinstance(cell, bool):
        return str(cell).lower()
    if not isinstance(cell, (str, int, float)):
        raise ValueError(f"expected a text or a number in the column {column!r}, found a {type(cell).__name__}")
    text = str(cell)
    try:
        # It would be found much later otherwise, by a tokenizer or a file, without the line's number.
        text.encode()
    except UnicodeEncodeError:  # JSON can write half a character: "\ud800"
        raise ValueError(f"the column {column!r} holds half a character, which is no text") from None
    return text


def _labelled(examples, name):
    """The examples that have a label. Raises `InputError` if none has one."""
    kept = [example for example in examples if example.label is not None]
    if not kept:
        raise InputError(
            f"{examples[0].place} and the rest of the {_title(name)} part have no labels (empty, -1). Nothing can be "
            "learned from or scored on them. Give a part that has labels: another test_file, or test_split validation."
        )
    if len(kept) < len(examples):
        logger.warning("%s examples of the %s part have no label; left out.", len(examples) - len(kept), _title(name))
    return kept


def _are_numbers(train, arguments, task):
    if task:
        return not task.labels
    if arguments.regression is not None:
        return arguments.regression
    try:
        # Stars from 1 to 5 are whole and may be meant as labels; 3.8 can only be meant as a number.
        numbers = [float(example.label) for example in train]
    except ValueError:
        return False
    found = all(map(math.isfinite, numbers)) and not all(map(float.is_integer, numbers))
    if found:
        logger.warning(
            "The labels are numbers, not all whole, and are predicted as such. For labels set regression to false."
        )
    return found


def _check_numbers(examples, name):
    # A correlation with a constant is undefined, and a spread of zero cannot be standardised.
    numbers = {example.number for example in examples}
    if len(numbers) == 1:
        raise InputError(
            f"{examples[0].place}: all {len(examples)} numbers of the {_title(name)} part are {numbers.pop():g}. "
            "Expected different ones: nothing can be learned from or correlated with a constant."
        )


def _list_labels(train):
    """The labels of the training part, numbers by size, others in alphabetical order."""
    labels = {example.label for example in train}
    # As text, 10 would stand before 2.
    is_whole = all(label.lstrip("-").isdecimal() for label in labels)
    return sorted(labels, key=lambda label: (int(label), label)) if is_whole else sorted(labels)


def _without_minus_one(examples, labels):
    """Datasets write -1 where a test has no label; where it is a label, the training part has it."""
    unknown = {"-1", "-1.0"} - set(labels)
    return [Example(e.texts, None if e.label in unknown else e.label, e.place) for e in examples]


def _check_labels(train, tests, labels):
    for examples in (train, *tests.values()):
        for example in examples:
            if example.label not in labels:
                raise InputError(
                    f"{example.place}: the label {example.label[:80]!r} is not one of {_shown(labels)}, the labels of "
                    "the task or of the training part. Correct it, or add examples of it to the training part."
                )
    # A model of one label is always right and has learned nothing.
    if len({example.label for example in train}) == 1:
        raise InputError(
            f"{train[0].place}: every label of the training part is {train[0].label!r}. Expected two labels at least."
        )


def _shown(labels):
    # A task may have hundreds of labels; a message that lists them all is not read.
    return ", ".join(labels[:20]) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def split_by_content(examples: list[Example], test_share: float) -> tuple[list[Example], list[Example]]:
    """Hold out a share of the examples by a hash of their texts: equal texts never stand on both sides."""
    if not 0 < test_share < 1:
        raise InputError(f"test_share: expected a share between 0 and 1, got {test_share}.")
    train, test = [], []
    for example in examples:
        # Parted by a tab, which few texts hold: the pairs ('a b', 'c') and ('a', 'b c') are not the same.
        share = xxhash.xxh64_intdigest("\t".join(example.texts).encode()) / 2**64
        (test if share < test_share else train).append(example)
    if not train or not test:
        raise InputError(
            f"test_share {test_share} of {len(examples)} examples leaves no example to "
            f"{'test' if train else 'train'} on: give a test_file, or another share."
        )
    return train, test

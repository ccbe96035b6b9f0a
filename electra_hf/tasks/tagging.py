"""What a tagger learns from: tagged sentences of files or a Hub dataset, their labels, and a baseline."""

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import compress, repeat
from typing import Literal

import datasets
import pyarrow as pa
import xxhash

from electra_hf.errors import InputError
from electra_hf.text.columns import load_hub_dataset, require_column
from electra_hf.text.names import refuse_blank_settings
from electra_hf.text.running_text import locate_with_ranges
from electra_hf.text.tagged_text import TaggedSentence, read_labels, read_tagged_sentences

logger = logging.getLogger(__name__)

# How datasets say that a word has no label. "_" also tags the multiword ranges of Universal Dependencies, whose words
# follow one by one. Any negative number is none as well: -1 is a ClassLabel's, -100 PyTorch's.
NO_LABEL = {None, "", "_", "-1", "-100"}


@dataclass
class TaggingArguments:
    """The tagged text: files of one's own, or a dataset from the Hub."""

    train_file: str | None = field(
        default=None, metadata={"help": "Path or URL: `word TAG` lines, CoNLL columns or CoNLL-U, .gz too."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "The same for the test (default: a held-out share)."}
    )
    labels_file: str | None = field(
        default=None, metadata={"help": "Path or URL: one label per line (default: the labels of the training part)."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    text_column: str = field(default="tokens", metadata={"help": "Its column with lists of words."})
    label_column: str = field(default="upos", metadata={"help": "Its column with lists of tags."})
    running_text: bool = field(
        default=True,
        metadata={
            "help": "Read sentences as running text where the data says how their words stand together "
            "(CoNLL-U: # text, SpaceAfter=No; a dataset: its running_text_column); false: word by word."
        },
    )
    running_text_column: str | None = field(
        default=None, metadata={"help": "Its column with the sentence as text (default: `text`, where it has that)."}
    )
    test_share: float = field(
        default=0.1, metadata={"help": "Share of sentences held out when there is no test part, by content hash."}
    )
    tag_scheme: Literal["auto", "none", "iob1", "iob2", "iobes", "bilou"] = field(
        default="auto",
        metadata={"help": "How tags write spans: iob1, iob2, iobes, bilou; none: bare tags; auto: look at them."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest window in tokens, [CLS] and [SEP] included (default: the model's)."}
    )

    def __post_init__(self) -> None:
        refuse_blank_settings(self)


def load_tagged_sentences(arguments: TaggingArguments) -> tuple[list[TaggedSentence], list[TaggedSentence]]:
    """The training and the test sentences. Raises `InputError`.

    They have their running text where the training part has some: the test is read as the training part was.
    """
    if (arguments.train_file is None) == (arguments.dataset_name is None):
        raise InputError("Give the tagged text as either train_file (a path or URL) or dataset_name (a Hub dataset).")
    if arguments.dataset_name:
        train, test = _load_dataset(arguments)
    else:
        train = read_tagged_sentences(arguments.train_file)
        test = read_tagged_sentences(arguments.test_file) if arguments.test_file else None
    # All or none: a model trained word by word has never seen two words share a token, and the other way round.
    if not arguments.running_text or not any(sentence.spans for sentence in train):
        for sentence in [*train, *(test or [])]:
            sentence.text = sentence.spans = None
    return split_by_content(train, arguments.test_share) if test is None else (train, test)


def split_by_content(
    sentences: list[TaggedSentence], test_share: float
) -> tuple[list[TaggedSentence], list[TaggedSentence]]:
    """Hold out a share of the sentences by a hash of their words: equal sentences never stand on both sides."""
    if not 0 < test_share < 1:
        raise InputError(f"test_share: expected a share between 0 and 1, got {test_share}.")
    train, test = [], []
    for sentence in sentences:
        # A hash and not a random draw: a sentence falls on the same side in any order of the file, on every machine.
        share = xxhash.xxh64_intdigest("\t".join(sentence.words).encode()) / 2**64
        (test if share < test_share else train).append(sentence)
    if not train or not test:
        raise InputError(
            f"test_share {test_share} of {len(sentences)} sentences leaves no sentence to "
            f"{'test' if train else 'train'} on: give a test_file, or another share."
        )
    return train, test


def _load_dataset(arguments):
    name = arguments.dataset_name
    parts = load_hub_dataset(name, name=arguments.dataset_config_name)
    if "train" not in parts:
        raise InputError(f"dataset_name {name}: expected a split 'train', found {', '.join(parts)}.")
    train, test = (
        _read_dataset(parts[split], f"{name}[{split}]", arguments) if split in parts else None
        for split in ("train", "test")
    )
    return train, test


def _read_dataset(dataset, source, arguments):
    """The labelled words of each row; a word without a label is left out, as if it did not stand there."""
    text_column, label_column = arguments.text_column, arguments.label_column
    _require_lists("text_column", text_column, dataset, source)
    # Columns are checked before the first row: reading a large dataset takes minutes.
    name_of = _label_names(_require_lists("label_column", label_column, dataset, source))
    texts = _running_texts(dataset, source, arguments)
    sentences, unlabelled, misfits = [], 0, []
    rows = zip(_rows(dataset, source, text_column, label_column), texts, strict=True)
    for row, ((words, labels), text) in enumerate(rows, start=1):
        sentence = _read_row(words, labels, text, name_of, source, row)
        unlabelled += len(words) - len(sentence.words)
        if sentence.words:
            sentences.append(sentence)
            misfits += [row] if text and not sentence.spans else []
    if not sentences:
        raise InputError(f"{source} holds no tagged word.")
    if unlabelled:
        logger.warning("%s: %s words have no label (none, _, a negative number); left out.", source, unlabelled)
    if misfits:
        logger.warning(
            "%s: the text of %s rows, row %s first, does not hold their words in their order. There, each word is "
            "taken by itself.",
            *(source, len(misfits), misfits[0]),
        )
    return sentences


def _read_row(words, labels, text, name_of, source, row):
    place = f"{source}, row {row}"
    if len(words) != len(labels):
        raise InputError(f"{place}: {len(words)} words but {len(labels)} tags.")
    tags = [name_of(label, place) for label in labels]
    words, are_labelled = [_check_word(word, place) for word in words], [tag not in NO_LABEL for tag in tags]
    # What has no label can still stand in the text: a multiword range, whose words follow.
    spans = locate_with_ranges(words, are_labelled, text) if text else None
    words, tags = (list(compress(items, are_labelled)) for items in (words, tags))
    return TaggedSentence(words, tags, source, [row] * len(words), text if spans else None, spans or None)


def _rows(dataset, source, *columns):
    """Yield what the columns hold, row by row; a missing list or text is an empty one."""
    try:
        # Only these columns: a dataset may hold sound or pictures, which would be decoded for nothing.
        for batch in dataset.select_columns(list(columns)).with_format(None).iter(1_000):
            yield from zip(*([row or [] for row in batch[column]] for column in columns), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"dataset_name: {source} is damaged ({error}). Make or fetch it again.") from None


def _running_texts(dataset, source, arguments):
    """The running text of each row, None where there is none."""
    column = arguments.running_text_column
    if column is not None:
        require_column("running_text_column", column, dataset.column_names, f"running_text_column: {source}")
    elif "text" in dataset.column_names:
        column = "text"
    kind = dataset.features[column] if column else None
    # One column cannot be both, the words and the text that they stand in.
    if not arguments.running_text or kind is None or column == arguments.text_column:
        return repeat(None, len(dataset))
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        if arguments.running_text_column is None:  # a column that happens to be called text
            return repeat(None, len(dataset))
        raise InputError(f"running_text_column: the column '{column}' of {source} holds {kind}. Expected text.")
    return (text for (text,) in _rows(dataset, source, column))


def _require_lists(key, column, dataset, source):
    """The feature of the items in a column of lists. Raises `InputError` for another column."""
    require_column(key, column, dataset.column_names, f"{key}: {source}")
    feature = dataset.features[column]
    if not isinstance(feature, (datasets.List, datasets.LargeList)):
        raise InputError(
            f"{key}: the column '{column}' of {source} holds {feature}. Expected a list for each "
            "sentence, with an item for each word."
        )
    return feature.feature


def _label_names(feature):
    """The function that gives the name of a label in a column with this feature."""
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None

    def name_of(label, place):
        # Python would read names[-1] as the last label, and every word without one would get that.
        if label is None or (isinstance(label, int) and label < 0):
            return None
        # A ClassLabel stores numbers; its names are the tags that a reader knows.
        if names and isinstance(label, int):
            # A file may hold any number: Python's own IndexError would name no row.
            if label >= len(names):
                raise InputError(f"{place}: the label {label} is not one of the {len(names)} from 0 on.")
            return names[label]
        if not isinstance(label, (str, int)):
            raise InputError(f"{place}: expected a label as text or number, found a {type(label).__name__}.")
        return str(label)

    return name_of


def _check_word(word, place):
    # Datasets may have numbers or nothing among their words; a tokenizer would fail without saying where.
    if not isinstance(word, str):
        raise InputError(f"{place}: expected words as text, found a {type(word).__name__}.")
    return word


def list_labels(train: list[TaggedSentence], labels_file: str | None = None) -> list[str]:
    """The labels of the model: those of the labels file, else those of the training part in alphabetical order.

    Raises `InputError` at the first word of the training part whose label the file lacks.
    """
    if labels_file is None:
        # Sorted, because the order of a set changes from process to process, and with it the model's outputs.
        return sorted({tag for sentence in train for tag in sentence.tags})
    labels = read_labels(labels_file)
    known = set(labels)
    for sentence in train:
        for tag, line in zip(sentence.tags, sentence.lines, strict=True):
            if tag not in known:
                raise InputError(
                    f"{sentence.source}, line {line}: the label '{tag}' is not in {labels_file}, which has "
                    f"{', '.join(labels)}. Add it there, or correct the tag."
                )
    return labels


def count_unknown_labels(test: list[TaggedSentence], labels: list[str]) -> Counter:
    """How many words of the test carry a label that the model does not have. They count as wrong."""
    known = set(labels)
    # Such words stay in the test and count as wrong: to leave them out would flatter the model.
    unknown = Counter(tag for sentence in test for tag in sentence.tags if tag not in known)
    # All unknown means another tag set, not a few rare tags: a score of 0 would hide that.
    if unknown.total() == sum(len(sentence.tags) for sentence in test):
        raise InputError(
            f"{test[0].source}: no word has a label that the model knows; it has {', '.join(labels)}, the file "
            f"{', '.join(sorted(unknown))}."
        )
    return unknown


def tag_most_frequently(train: list[TaggedSentence], test: list[TaggedSentence]) -> list[list[str]]:
    """The baseline: each word gets the tag it has most often in the training part, a new word the commonest of all."""
    of_word, of_all = defaultdict(Counter), Counter()
    for sentence in train:
        of_all.update(sentence.tags)
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            of_word[word][tag] += 1
    # Of equally frequent tags the first one seen wins, so that the baseline is always the same.
    best = {word: counts.most_common(1)[0][0] for word, counts in of_word.items()}
    commonest = of_all.most_common(1)[0][0]
    return [[best.get(word, commonest) for word in sentence.words] for sentence in test]

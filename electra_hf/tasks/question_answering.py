"""What an answerer learns from: questions on texts that hold the answers, in SQuAD's JSON or as rows of a dataset."""

import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from electra_hf.errors import InputError
from electra_hf.text.columns import load_hub_dataset, require_column
from electra_hf.text.names import printable, refuse_blank_settings
from electra_hf.text.prepared import cache_folder
from electra_hf.text.sources import find_sources, open_texts
from electra_hf.text.tables import read_dataset_rows

logger = logging.getLogger(__name__)

LAYOUT = '{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}'
LONGEST_SHOWN = 60  # characters of a text in a message


@dataclass
class QuestionAnsweringArguments:
    """The questions with their texts and answers, and how a long text is cut into windows."""

    train_file: str | None = field(
        default=None, metadata={"help": "Path or URL: SQuAD's JSON, version 1.1 or 2.0, .gz too."}
    )
    test_file: str | None = field(
        default=None, metadata={"help": "The same for the test (default: a held-out share of the articles)."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "A dataset of the Hub instead: id, title, context, question, answers."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    test_split: str | None = field(
        default=None, metadata={"help": "Its split to test on (default: validation, else test)."}
    )
    test_share: float = field(
        default=0.1, metadata={"help": "Share of articles held out when there is no test part, by a hash."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest window in tokens, with the question (default: the model's)."}
    )
    doc_stride: int | None = field(
        default=None,
        metadata={"help": "Tokens that a window of a long text shares with the next (default: a quarter)."},
    )
    max_answer_length: int = field(default=30, metadata={"help": "Longest answer to give, in tokens."})
    null_score_diff_threshold: float | None = field(
        default=None,
        metadata={"help": "No answer is given where its score is more than this above the best span's."},
    )
    threshold_share: float = field(
        default=0.05,
        metadata={"help": "Share of the training articles kept apart to find that threshold on, if it is not given."},
    )
    answer_language: str | None = field(
        default=None,
        metadata={"help": "Code of the language whose articles scores ignore (default: the card's language, or en)."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many questions, drawn once at random, the same for every seed."}
    )

    def __post_init__(self) -> None:
        refuse_blank_settings(self)
        if (self.train_file is None) == (self.dataset_name is None):
            raise InputError("Give the questions as train_file (a path or URL) or as dataset_name (a Hub dataset).")
        if self.test_file and not self.train_file:
            raise InputError("test_file belongs to train_file. For a dataset give test_split.")
        for name, least in (("doc_stride", 0), ("max_answer_length", 1), ("max_train_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected {least} or more, got {value}.")
        if not 0 <= self.threshold_share < 1:
            raise InputError(f"threshold_share: expected a share from 0 to below 1, got {self.threshold_share}.")
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share: expected a share between 0 and 1, got {self.test_share}.")
        if self.answer_language and not re.fullmatch("[A-Za-z]{2,3}(-[A-Za-z]+)*", self.answer_language):
            raise InputError(f"answer_language: expected a code such as en or eo, got {self.answer_language!r}.")


@dataclass
class Answer:
    """A span of a text: `context[start : start + len(text)] == text`."""

    start: int
    text: str


@dataclass
class Question:
    """A question on a text, and its gold answers there: none where the text does not answer it."""

    id: str
    article: str
    context: str
    text: str
    answers: list[Answer]
    place: str


@dataclass
class QuestionAnsweringData:
    """What to train on, to find the no-answer threshold on (may be empty), and to test on."""

    train: list[Question]
    threshold: list[Question]
    test: list[Question]

    @property
    def may_lack_answers(self) -> bool:
        """Whether the training part has questions without an answer, so that to give none can be right."""
        return not all(question.answers for question in self.train)


def load_questions(arguments: QuestionAnsweringArguments) -> QuestionAnsweringData:
    """Read and check every part. Raises `InputError` with file and question at what cannot be learned or scored."""
    train, test = _load_dataset(arguments) if arguments.dataset_name else _load_files(arguments)
    # In this order: first each part by itself, then the two parts made of one, then what they say together. A message
    # then names the part that the user gave.
    for questions, name in ((train, "training"), (test, "test")):
        if questions is not None:
            _check_part(questions, name)
    # The test is held out first, so that its articles do not depend on the threshold's settings.
    if test is None:
        train, test = split_by_article(train, arguments.test_share)
    threshold = []
    # A threshold that is given needs no articles to find it on: they train.
    if arguments.null_score_diff_threshold is None:
        train, threshold = _hold_out_for_threshold(train, arguments.threshold_share)
    _check_answers(train, test, arguments)
    # The sample comes last and from a fixed seed: seeds of a run are to differ in the model alone.
    if arguments.max_train_samples and arguments.max_train_samples < len(train):
        train = random.Random(0).sample(train, arguments.max_train_samples)
    return QuestionAnsweringData(train, threshold, test)


def _check_answers(train, test, arguments):
    if not any(question.answers for question in train):
        raise InputError(
            f"{train[0].place} and all {len(train)} questions of the training part have no answer. Expected some that "
            "have: nothing can be learned from these alone. Give another train_file."
        )
    # Such a run has no threshold, so its model always gives an answer.
    answers_all = arguments.null_score_diff_threshold is None and all(question.answers for question in train)
    if answers_all and not all(question.answers for question in test):
        without = [question for question in test if not question.answers]
        if len(without) == len(test):
            raise InputError(
                f"{test[0].place} and all {len(test)} questions of the test part have no answer, while all training "
                "questions have one. Nothing can be scored. Give a test part with answers: another test_file, or "
                "test_split validation."
            )
        logger.warning(
            "%s test questions have no answer, %s first, but all training questions have one: the model will answer "
            "these too, and wrongly.",
            len(without),
            without[0].place,
        )


def _check_part(questions, name):
    if not questions:
        raise InputError(f"The {name} part has no question. Check the file or the split.")
    # The place of each id is kept, since the message has to name both questions.
    places = {}
    for question in questions:
        if question.id in places:
            raise InputError(
                f"{question.place}: the same id stands at {places[question.id]}. Give each question an id of its own: "
                "predictions are written and scored by it."
            )
        places[question.id] = question.place


def split_by_article(questions: list[Question], test_share: float) -> tuple[list[Question], list[Question]]:
    """Hold out a share of the articles, one at least: questions on one article never stand on both sides."""
    # Without the one, a tenth of a few articles would be rounded down to none, and a run without a test says nothing.
    train, test = _hold_out(questions, test_share, "test", at_least=1)
    if not train:
        raise InputError(
            f"test_share {test_share}: all questions are on one text, none is left to train on. Give a test_file."
        )
    return train, test


def _hold_out_for_threshold(train, share):
    """Keep articles apart where questions may lack an answer and the share has both kinds, else none."""
    # Where every question has an answer, a threshold could only take answers away.
    if all(question.answers for question in train):
        return train, []
    kept, held = _hold_out(train, share, "threshold")
    # With one kind alone the best threshold would be to answer always, or never.
    if {bool(question.answers) for question in held} != {True, False}:
        logger.warning(
            "The no-answer threshold is 0: threshold_share %s of the training articles is too few to find another on.",
            share,
        )
        return train, []
    return kept, held


def _hold_out(questions, share, purpose, at_least=0):
    """Part the questions by their articles: (kept, held out). The articles are chosen by a hash of their names."""
    # By article, not by question: questions on one text often give away each other's answers. The same text may stand
    # in two articles: then both count as the first.
    article_of = {}
    for question in questions:
        article_of.setdefault(question.context, question.article or question.context)
    # With one title for everything there would be nothing to hold out: then the texts are parted.
    if len(set(article_of.values())) == 1:
        article_of = {context: context for context in article_of}
    # The hash makes the choice the same in any order of the file. `purpose` is hashed too, so that threshold and test
    # are chosen independently of each other.
    articles = sorted(set(article_of.values()), key=lambda name: xxhash.xxh64_digest(f"{purpose}\t{name}".encode()))
    held = set(articles[: max(at_least, int(share * len(articles)))])
    sides = [[], []]
    for question in questions:
        # False is 0 and True is 1: kept on the left, held out on the right.
        sides[article_of[question.context] in held].append(question)
    return sides


def _load_files(arguments):
    files = (arguments.train_file, arguments.test_file)
    return [list(read_squad(file)) if file else None for file in files]


def _load_dataset(arguments):
    name = arguments.dataset_name
    splits = load_hub_dataset(name, name=arguments.dataset_config_name)
    if "train" not in splits:
        raise InputError(f"dataset_name: expected a split 'train' in {name}, found {', '.join(splits)}.")
    wanted = arguments.test_split
    if wanted and wanted not in splits:
        raise InputError(f"test_split: {name} has no split {wanted!r}, only {', '.join(splits)}.")
    # Validation first: the test splits of such datasets often have no answers, which reads like questions without.
    found = [wanted] if wanted else [split for split in ("validation", "test") if split in splits]
    return [
        list(_read_rows(splits[split], f"{name}[{split}]")) if split else None
        for split in ("train", found[0] if found else None)
    ]


def _read_rows(dataset, name):
    for column in ("id", "context", "question", "answers"):
        require_column("dataset_name", column, dataset.column_names, name)
    for row in read_dataset_rows(dataset, name):
        article = _title_of(row.cells, row.place)
        context = _get(row.cells, "context", str, row.place)
        yield _read_question(row.cells, article, context, row.place)


def read_squad(name: str | Path) -> Iterator[Question]:
    """Yield the questions of SQuAD's JSON, version 1.1 or 2.0, local or by URL. Raises `InputError`."""
    for source in find_sources([str(name)], cache_folder() / "downloads", {".json"}):
        for text_name, stream in open_texts(source):
            yield from _read_articles(_parse(stream.read(), text_name), text_name)


def _parse(content, name):
    hint = "For rows, one question each, give the folder of their files as dataset_name."
    try:
        # Some editors write a byte order mark, which JSON does not allow: "utf-8-sig" drops it.
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: byte {error.start + 1} is not UTF-8. Convert the file with iconv.") from None
    # Lists in lists, thousands deep, end in a RecursionError of the parser and not in a ValueError.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected SQuAD's JSON, {LAYOUT}; this is no JSON ({error}). {hint}") from None


def _read_articles(content, name):
    for number, article in enumerate(_get(content, "data", list, name), start=1):
        place = f"{name}, article {number}"
        title = _title_of(article, place)
        place += f" ({printable(title)})" if title else ""
        for paragraph_number, paragraph in enumerate(_get(article, "paragraphs", list, place), start=1):
            inner = f"{place}, paragraph {paragraph_number}"
            context = _get(paragraph, "context", str, inner)
            for question_number, question in enumerate(_get(paragraph, "qas", list, inner), start=1):
                yield _read_question(question, title, context, f"{inner}, question {question_number}")


def _title_of(record, place):
    """The title, by which articles are kept together; not every file has them."""
    is_missing = _require_object(record, place).get("title") is None
    return "" if is_missing else _get(record, "title", str, place)


def _read_question(record, article, context, place):
    # Some files number their questions; predictions are written by the id as text.
    identifier = _get(record, "id", (str, int), place)
    place += f" (id {printable(str(identifier))})"
    text = _get(record, "question", str, place)
    for what, value in (("id", str(identifier)), ("context", context), ("question", text)):
        if not value.strip():
            raise InputError(f"{place}: the {what} is empty, expected a text. Fill it in, or leave the question out.")
    pairs = _pairs(_get(record, "answers", (list, dict), place), place)
    answers = [_check_answer(text, start, context, place) for text, start in pairs]
    # Version 1.1 has no such key. Where it is there, it must say the same as the answers.
    is_impossible = record.get("is_impossible")
    if isinstance(is_impossible, bool) and is_impossible == bool(answers):
        says = "has no answer, but there are answers" if answers else "has an answer, but there is none"
        raise InputError(f"{place}: by is_impossible ({is_impossible}) the question {says}. Correct one of the two.")
    return Question(str(identifier), article, context, text, answers, place)


def _pairs(answers, place):
    """(text, answer_start) of each answer: a list of objects in files, an object of lists in datasets."""
    if isinstance(answers, list):
        return [(_get(answer, "text", str, place), _get(answer, "answer_start", int, place)) for answer in answers]
    texts, starts = (_get(answers, key, list, place) for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise InputError(f"{place}: {len(texts)} answers, but {len(starts)} answer_start. Expected one for each.")
    return list(zip(texts, starts, strict=True))


def _check_answer(text, start, context, place):
    # To Python True is a whole number, 1: JSON's `true` would pass for a position.
    if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
        raise InputError(f"{place}: expected a text and a whole number as answer, found {text!r} and {start!r}.")
    if not text.strip():
        raise InputError(
            f"{place}: an answer is empty. Expected a part of the context; for a question that it does not answer, "
            "give an empty list of answers."
        )
    if start < 0 or context[start : start + len(text)] != text:
        shown, length = printable(text[:LONGEST_SHOWN]), min(len(text), LONGEST_SHOWN)
        there = printable(context[max(0, start) :][:length])
        # Positions of other tools often count bytes or UTF-16: to see where the answer stands tells which.
        position = context.find(text)
        hint = f"It stands at {position}" if position >= 0 else "It is nowhere in the context"
        raise InputError(
            f"{place}: the answer {shown!r} is not in its context at answer_start {start}, where {there!r} stands. "
            f"{hint}. Positions count characters from 0. Correct the answer, or leave the question out."
        )
    return Answer(start, text)


def _require_object(value, place):
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected an object of SQuAD's JSON, {LAYOUT}, found a {_kind(value)}.")
    return value


def _get(record, key, kinds, place):
    """The value of a key, of one of these types. Raises `InputError` that says what SQuAD's layout is."""
    if key not in _require_object(record, place):
        # The keys that are there show at once which other layout this is.
        found = printable(", ".join(map(str, record))) or "nothing"
        raise InputError(f"{place}: no key {key!r}. Expected SQuAD's layout, {LAYOUT}; found {found}.")
    value = record[key]
    if not isinstance(value, kinds) or isinstance(value, bool):
        names = " or ".join(_NAMES[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InputError(f"{place}: expected {names} as {key!r}, found a {_kind(value)}.")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):  # JSON can write half a character
        raise InputError(f"{place}: {key!r} holds half a character, which is no text. Correct it.")
    return value


_NAMES: dict[type, str] = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def _kind(value):
    return {dict: "object", list: "list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)

"""Scores of answers as an `evaluate.Metric` class, used directly: `evaluate.load` by name would need the Hub.

They are in per cent, as everybody gives them for SQuAD. The rules are those of its official script for version 2.0,
which scores version 1.1 alike; for languages other than English, those of the official script of MLQA.
"""

import re
import string
import unicodedata
from collections import Counter

import datasets
import evaluate
import numpy as np

from electra_hf.tasks.finetuning import show_score

# Words that do not count. English has SQuAD's, the others MLQA's, whose Vietnamese ones are no articles in the strict
# sense. The Arabic article is written as a part of its word.
ARTICLES = {
    "en": "a an the",
    "es": "un una unos unas el la los las",
    "de": "ein eine einen einem eines einer der die das den dem des",
    "vi": "của là cái chiếc những",
    "ar": "ال",
}
HAN = re.compile("[\u4e00-\u9fa5]")


class AnswerScores(evaluate.Metric):
    """Exact match and F1 of words, in per cent, each against the gold answer that it fits best."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions: one answer per question, empty for none. references: its gold answers.",
            features=datasets.Features({"predictions": text, "references": datasets.List(text)}),
        )

    def _compute(self, predictions, references, language="en"):
        exact, f1 = score_each_answer(predictions, references, language)
        return {"exact_match": 100 * float(exact.mean()), "f1": 100 * float(f1.mean())}


def compute_answer_scores(
    predictions: list[str], references: list[list[str]], language: str = "en"
) -> dict[str, float]:
    """`exact_match` and `f1`; where some questions have no answer, also of each kind: `has_answer_f1` and so on."""
    parts = {"": list(range(len(references)))}
    if not all(references):
        parts["has_answer_"] = [index for index, gold in enumerate(references) if gold]
        parts["no_answer_"] = [index for index, gold in enumerate(references) if not gold]
    return {
        f"{part}{name}": value
        for part, indices in parts.items()
        if indices
        for name, value in AnswerScores(keep_in_memory=True)
        .compute(
            predictions=[predictions[index] for index in indices],
            references=[references[index] for index in indices],
            language=language,
        )
        .items()
    }


def score_each_answer(
    predictions: list[str], references: list[list[str]], language: str = "en"
) -> tuple[np.ndarray, np.ndarray]:
    """Exact match (N,) and F1 (N,) of each question, from 0 to 1. Without gold answers only an empty one is right."""
    exact, f1 = np.zeros(len(references)), np.zeros(len(references))
    for index, (prediction, gold_answers) in enumerate(zip(predictions, references, strict=True)):
        found = normalise_answer(prediction, language)
        # A gold answer of which nothing is left, such as "The", does not count.
        gold = [text for answer in gold_answers if (text := normalise_answer(answer, language))] or [""]
        exact[index] = found in gold
        f1[index] = max(_word_f1(found.split(), text.split()) for text in gold)
    return exact, f1


def _word_f1(found, gold):
    if not found or not gold:
        return float(found == gold)
    # Words are counted as often as they stand in both: "the the" does not earn twice.
    common = sum((Counter(found) & Counter(gold)).values())
    return 2 * common / (len(found) + len(gold))


def normalise_answer(text: str, language: str = "en") -> str:
    """The answer as it is compared: in lower case, without punctuation, articles and needless blanks."""
    text = "".join(character for character in text.lower() if not _is_punctuation(character, language))
    if language == "ar":
        # As the official script does it: also inside of a word.
        text = text.replace(ARTICLES["ar"], " ")
    elif language in ARTICLES:
        text = re.sub(rf"\b({ARTICLES[language].replace(' ', '|')})\b", " ", text)
    if language == "zh":  # no blanks between words: each character counts as one
        text = HAN.sub(r" \g<0> ", text)
    return " ".join(text.split())


def _is_punctuation(character, language):
    # SQuAD knows the marks of ASCII alone: its rule keeps a dash (–) and the quotation marks of print.
    return character in string.punctuation or (language != "en" and unicodedata.category(character)[0] == "P")


def choose_language(answer_language: str | None, languages: list[str]) -> str:
    """The language whose rule scores: the one that is named, else the card's if it is one alone, else English."""
    (named,) = languages if len(languages) == 1 else ["en"]
    return (answer_language or named).split("-")[0].lower()


def describe_rule(language: str) -> str:
    """What scoring ignores, as a part of a sentence."""
    ignored = ["capitals", "the punctuation of ASCII" if language == "en" else "punctuation"]
    if language in ARTICLES:
        ignored.append(f"the words {', '.join(ARTICLES[language].split())}")
    source = "SQuAD's rule for English" if language == "en" else f"MLQA's rule for the language {language}"
    if language not in ARTICLES:
        source = f"MLQA's rule, without articles for the language {language}"
    return f"{', '.join(ignored[:-1])} and {ignored[-1]} do not count ({source})"


def find_best_threshold(differences: np.ndarray, scores: np.ndarray, has_answer: np.ndarray) -> tuple[float, float]:
    """The no-answer threshold with the highest mean score, and that score, by the official rule of SQuAD 2.0.

    `differences` (N,): the score of no answer less that of the best span; above the threshold a question gets no
    answer. `scores` (N,): what its span is worth if given. No answer is worth 1 where there is none, else 0.
    """
    # From the surest answer on: a threshold gives answers to the first so many of this order.
    order = np.argsort(differences, kind="stable")
    ordered = differences[order]
    gains = scores[order] - ~has_answer[order]  # of giving the span instead of no answer
    totals = np.concatenate([[0.0], np.cumsum(gains)])  # of giving the first 0, 1, … N of them
    possible = np.concatenate([[True], np.diff(ordered) > 0, [True]])  # no threshold parts equal differences
    number = int(np.where(possible, totals, -np.inf).argmax())
    # Just below the smallest difference if no answer is to be given at all.
    threshold = ordered[number - 1] if number else ordered[0] - 1
    return float(threshold), float((totals[number] + np.sum(~has_answer)) / len(ordered))


def format_scores(values: dict[str, float], language: str) -> str:
    """The scores of a metrics.json as a few lines to print."""
    lines = [f"{values['test_questions']} test questions in {values['test_windows']} windows; in per cent:"]
    for key in values:
        if not re.search(r"^(eval|baseline)_|^no_answer_threshold$", key) or key.endswith(("_mean", "_sd")):
            continue
        lines.append(show_score(key.removeprefix("eval_").replace("_", " "), values, key, digits=2))
    return "\n".join([*lines, describe_rule(language)])

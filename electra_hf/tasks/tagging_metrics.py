"""Scores of a tagger as `evaluate.Metric` classes, used directly: `evaluate.load` by name would need the Hub."""

import re
import warnings
from collections import Counter
from itertools import chain
from pathlib import Path

import datasets
import evaluate
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.v1 import precision_recall_fscore_support
from sklearn import metrics

from electra_hf.tasks.alignment import WORD_COUNTS
from electra_hf.tasks.finetuning import show_score
from electra_hf.tasks.spans import SCHEMES, find_misfits

# `evaluate` checks inputs against this, and casts them; tags stay text, since labels of the test may be unknown.
_FEATURES = datasets.Features(
    {
        "predictions": datasets.List(datasets.Value("string")),
        "references": datasets.List(datasets.Value("string")),
    }
)


class _TagMetric(evaluate.Metric):
    """A metric of predicted and gold tags, both as one list of strings per sentence."""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions, references: a list of tags per sentence.",
            features=_FEATURES,
        )


class TokenScores(_TagMetric):
    """Share of words with the right tag, and F1 averaged over tags with equal weight.

    macro_f1 averages over the tags that occur in the gold or in the predicted tags of this test, as scikit-learn does:
    a tag that is only predicted counts with F1 = 0, a tag that is in neither does not count.
    """

    def _compute(self, predictions, references):
        # Sentences do not matter for single tags; scikit-learn wants one flat list.
        predicted, gold = list(chain(*predictions)), list(chain(*references))
        return {
            "accuracy": float(metrics.accuracy_score(gold, predicted)),
            "macro_f1": float(metrics.f1_score(gold, predicted, average="macro", zero_division=0)),
        }


class SpanScores(_TagMetric):
    """Precision, recall and F1 of spans, by seqeval in strict reading: a span counts if borders and type are right.

    `scheme` is one of `spans.SCHEMES`. Bare tags (None) are no spans; with B- before each, every word is a span of its
    own, and the three scores equal accuracy.
    """

    def _compute(self, predictions, references, scheme=None):
        # Without a prefix seqeval would read the first letter of a tag as one.
        if scheme is None:
            predictions, references = (
                [[f"B-{tag}" for tag in row] for row in rows] for rows in (predictions, references)
            )
        # seqeval takes the gold tags first.
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, average="micro", scheme=SCHEMES[scheme or "iob2"], zero_division=0
        )
        return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


class ArticleSeqeval(_TagMetric):
    """Stock seqeval on the tags as they are, the way the article scored: for comparison with its numbers only.

    On bare tags it takes the first letter for the prefix of a span. So neighbours with the same tag become one span,
    NN and IN count as equal, and a tag that begins with O does not count.
    """

    def _compute(self, predictions, references):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "NOUN seems not to be NE tag", once per tag
            return {
                f"article_seqeval_{name}": float(score(references, predictions, zero_division=0))
                for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score))
            }


def compute_tagging_scores(
    predictions: list[list[str]], references: list[list[str]], scheme: str | None = None
) -> dict[str, float]:
    """Every score of predicted and gold tags (a list per sentence), by its name in metrics.json.

    Headline: `eval_accuracy` and `eval_macro_f1`; then `eval_precision`, `eval_recall`, `eval_f1` of `SpanScores`, and
    `article_seqeval_precision`, `_recall`, `_f1`. With a `scheme`, `eval_misfit_share` is the share of predicted tags
    that do not fit it: they make no span, and nothing repairs them.
    """
    rows = {"predictions": predictions, "references": references}
    # In memory: otherwise `evaluate` writes every tag to a file of its cache first.
    scores = TokenScores(keep_in_memory=True).compute(**rows)
    scores |= SpanScores(keep_in_memory=True).compute(**rows, scheme=scheme)
    if scheme:
        # Strict scores pass over such tags in silence; the share says how much of the model's answer they are.
        misfits = sum(len(find_misfits(tags, scheme)) for tags in predictions)
        scores["misfit_share"] = misfits / max(1, sum(map(len, predictions)))
    # Under names of its own, so that nobody takes it for one of our scores.
    article = ArticleSeqeval(keep_in_memory=True).compute(**rows)
    return {f"eval_{name}": value for name, value in scores.items()} | article


def format_scores(metrics: dict[str, float], unknown_labels: Counter) -> str:
    """The scores of a metrics.json as a few lines to print, and the labels that the model could not know."""
    rows = [
        ("accuracy", "eval_accuracy"),
        ("macro-F1", "eval_macro_f1"),
        ("F1 of spans" if "eval_misfit_share" in metrics else "F1, each word a span", "eval_f1"),
        ("share of tags that fit no span", "eval_misfit_share"),
        ("F1, the article's way", "article_seqeval_f1"),
        ("accuracy of each word's most frequent tag", "baseline_most_frequent_tag_accuracy"),
    ]
    lines = [f"{metrics['test_words']} words in {metrics['test_sentences']} test sentences", *_describe_words(metrics)]
    for title, key in rows:
        # Not each kind of run has each score: the misfits need a scheme.
        if key in metrics:
            lines.append(show_score(title, metrics, key, width=42))
    # Told by name: a rare tag that the training part lacks, or a misspelt one, shows at once.
    if unknown_labels:
        named = ", ".join(f"{label} ({count})" for label, count in unknown_labels.items())
        lines.append(f"words whose label the model does not have, counted as wrong: {named}")
    return "\n".join(lines)


def _describe_words(metrics):
    """How the words of training and test part were read, where that is not each by itself."""
    for part in ("train", "test"):
        running, shared, lost = (metrics.get(f"{part}_{name}", 0) for name in WORD_COUNTS)
        if running:
            yield f"{part}: {running} words in running text, {shared} of them begin inside a token of the word before"
        if lost:
            yield f"{part}: {lost} words of which the tokenizer leaves nothing, read as [UNK]"


def write_predictions(
    words: list[list[str]], references: list[list[str]], predictions: list[list[str]], path: str | Path
) -> None:
    """Write word, gold and predicted tag between tabs, a blank line after each sentence."""
    with Path(path).open("w", encoding="utf-8") as file:
        for rows in zip(words, references, predictions, strict=True):
            for word, gold, predicted in zip(*rows, strict=True):
                word = re.sub(r"[\t\r\n]", " ", word)  # a Hub dataset may hold any character
                file.write(f"{word}\t{gold}\t{predicted}\n")
            file.write("\n")

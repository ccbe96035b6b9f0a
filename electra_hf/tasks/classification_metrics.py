"""Scores of a classifier as `evaluate.Metric` classes, used directly: `evaluate.load` by name would need the Hub."""

import re
import warnings
from collections import Counter
from pathlib import Path
from statistics import mean

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics

from electra_hf.files import write_text
from electra_hf.tasks.finetuning import show_score


class _Metric(evaluate.Metric):
    kind = "string"  # of a prediction and a reference

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions, references: one per text.",
            # `evaluate` casts to these types: labels stay text, so that a label "1" is not a number.
            features=datasets.Features(
                {name: datasets.Value(self.kind) for name in ("predictions", "references")},
            ),
        )


class LabelScores(_Metric):
    """Accuracy, F1 averaged over labels with equal weight, and Matthews correlation, between -1 and 1.

    macro_f1 averages over the labels that occur in the gold or in the predicted ones, as scikit-learn does. Matthews
    correlation is 0 where all predictions or all references are the same.
    """

    def _compute(self, predictions, references):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "A single label was found": then it is 0
            matthews = metrics.matthews_corrcoef(references, predictions)
        return {
            "accuracy": float(metrics.accuracy_score(references, predictions)),
            "macro_f1": float(metrics.f1_score(references, predictions, average="macro", zero_division=0)),
            "matthews_correlation": float(matthews),
        }


class PositiveF1(_Metric):
    """F1 of one label of two, the `positive` one."""

    def _compute(self, predictions, references, positive):
        return {
            "f1": float(metrics.f1_score(references, predictions, labels=[positive], average="macro", zero_division=0))
        }


class Correlations(_Metric):
    """Pearson and Spearman correlation of numbers. Both are 0 where all predictions or all references are the same."""

    kind = "float64"

    def _compute(self, predictions, references):
        # Both would divide by a spread of 0 and give NaN, which is no number in metrics.json.
        if min(np.ptp(predictions), np.ptp(references)) == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(stats.pearsonr(predictions, references).statistic),
            "spearman": float(stats.spearmanr(predictions, references).statistic),
        }


def compute_label_scores(predictions: list[str], references: list[str], labels: list[str]) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `matthews_correlation` and, of two labels, `f1` of the second one."""
    # In memory: otherwise `evaluate` writes every answer to a file of its cache first.
    scores = LabelScores(keep_in_memory=True).compute(predictions=predictions, references=references)
    # The second label is the positive one in all tasks of GLUE (MRPC and QQP report this F1).
    if len(labels) == 2:
        f1 = PositiveF1(keep_in_memory=True)
        scores |= f1.compute(predictions=predictions, references=references, positive=labels[1])
    return scores


def compute_number_scores(predictions: list[float], references: list[float]) -> dict[str, float]:
    """`pearson` and `spearman`."""
    return Correlations(keep_in_memory=True).compute(predictions=predictions, references=references)


def answer_most_frequently(train: list[str], test: list[str], labels: list[str]) -> dict[str, float]:
    """The baseline: the scores of the training part's commonest label for every text of the test."""
    # Of equally frequent labels the first in the order of the outputs: the same at each call.
    answer = max(labels, key=Counter(train).__getitem__)
    scores = compute_label_scores([answer] * len(test), test, labels)
    return {f"baseline_majority_{name}": value for name, value in scores.items()}


def answer_mean(train: list[float], test: list[float]) -> dict[str, float]:
    """The baseline for numbers: the mean squared error of the training part's mean. It correlates with nothing."""
    answer = mean(train)
    return {"baseline_mean_loss": mean((number - answer) ** 2 for number in test)}


def score_each_label(predictions: list[str], references: list[str]) -> list[tuple[str, float, float, float, int]]:
    """Rows (label, precision, recall, F1, texts), the rarest label last."""
    labels = sorted({*predictions, *references})
    scores = metrics.precision_recall_fscore_support(references, predictions, labels=labels, zero_division=0)
    rows = zip(labels, *(column.tolist() for column in scores), strict=True)
    # Equally frequent ones by name, so that the table does not change from run to run.
    return sorted(rows, key=lambda row: (-row[4], row[0]))


def write_predictions(texts: list[tuple[str, ...]], references: list, predictions: list, path: str | Path) -> None:
    """Write a header, then the text or texts, the gold and the predicted answer between tabs, a line per example."""
    columns = ["text", "text_pair"][: len(texts[0])] + ["gold", "predicted"]
    rows = [[*pair, gold, predicted] for pair, gold, predicted in zip(texts, references, predictions, strict=True)]
    # A text of a .csv or a dataset may hold any character.
    lines = ["\t".join(re.sub(r"[\t\r\n]", " ", str(cell)) for cell in row) for row in [columns, *rows]]
    write_text(path, "\n".join(lines) + "\n")


def format_scores(values: dict[str, float]) -> str:
    """The scores of a metrics.json as a few lines to print."""
    lines = [f"{values['test_examples']} test examples; {values['test_examples_cut']} of them cut to max_length"]
    for key in values:
        if not re.search(r"^(eval|baseline)_", key) or key.endswith(("_mean", "_sd")):
            continue
        lines.append(show_score(key.removeprefix("eval_").replace("_", " "), values, key))
    return "\n".join(lines)

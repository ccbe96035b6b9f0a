"""Each score against its formula, computed here from counts and sums."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_hf.tasks.classification_metrics import (
    answer_mean,
    answer_most_frequently,
    compute_label_scores,
    compute_number_scores,
    format_scores,
    score_each_label,
    write_predictions,
)

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=40)


def f1(pairs, label):
    hits = sum(p == g == label for p, g in pairs)
    named = sum(p == label for p, _ in pairs) + sum(g == label for _, g in pairs)
    return 2 * hits / named if named else 0.0


def matthews(pairs):
    """Gorodkin's multi-class form."""
    correct, n = sum(p == g for p, g in pairs), len(pairs)
    predicted, gold = Counter(p for p, _ in pairs), Counter(g for _, g in pairs)
    cross = sum(predicted[label] * gold[label] for label in "abc")
    spread = (n**2 - sum(c**2 for c in predicted.values())) * (n**2 - sum(c**2 for c in gold.values()))
    return (correct * n - cross) / math.sqrt(spread) if spread else 0.0


@settings(max_examples=30, deadline=None)
@given(PAIRS)
def test_label_scores_follow_their_formulas(pairs):
    predicted, gold = map(list, zip(*pairs, strict=True))
    scores = compute_label_scores(predicted, gold, ["a", "b"])
    assert scores["accuracy"] == pytest.approx(sum(p == g for p, g in pairs) / len(pairs))
    seen = {*predicted, *gold}
    assert scores["macro_f1"] == pytest.approx(sum(f1(pairs, label) for label in seen) / len(seen))
    assert scores["matthews_correlation"] == pytest.approx(matthews(pairs), abs=1e-9)
    assert scores["f1"] == pytest.approx(f1(pairs, "b"))


def test_only_two_labels_have_an_f1_of_one_of_them():
    assert "f1" not in compute_label_scores(["a"], ["a"], ["a", "b", "c"])
    assert "f1" in compute_label_scores(["a"], ["a"], ["a", "b"])


def pearson(xs, ys):
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    cross = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return cross / math.sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))


def ranks(xs):
    """Equal numbers share the mean of their ranks."""
    return [sum(other < x for other in xs) + (sum(other == x for other in xs) + 1) / 2 for x in xs]


@pytest.mark.parametrize("seed", range(5))
def test_correlations_follow_their_formulas_with_ties(seed):
    draw = random.Random(seed)
    gold = [draw.randint(0, 25) / 5 for _ in range(60)]
    predicted = [round(number + draw.gauss(0, 2), 1) for number in gold]
    scores = compute_number_scores(predicted, gold)
    assert scores["pearson"] == pytest.approx(pearson(predicted, gold))
    assert scores["spearman"] == pytest.approx(pearson(ranks(predicted), ranks(gold)))


def test_a_constant_answer_correlates_with_nothing():
    assert compute_number_scores([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_label_scores(["a"] * 3, ["a", "b", "a"], ["a", "b"])["matthews_correlation"] == 0.0


def test_the_baselines_know_the_training_part_alone():
    scores = answer_most_frequently(["a", "b", "b"], ["a", "a", "b", "a"], ["a", "b"])
    assert scores["baseline_majority_accuracy"] == 0.25
    assert answer_mean([1.0, 3.0], [2.0, 5.0]) == {"baseline_mean_loss": 4.5}


def test_labels_stand_by_their_number_of_texts():
    assert [row[0] for row in score_each_label(["a", "a", "c"], ["b", "b", "a"])] == ["b", "a", "c"]


def test_predictions_are_a_line_per_example_whatever_its_text_holds(tmp_path):
    write_predictions([("a\tb", "c\nd"), ("e", "f\r")], ["x", "y"], ["y", "y"], tmp_path / "p.tsv")
    lines = (tmp_path / "p.tsv").read_text(encoding="utf-8").split("\n")
    assert lines == ["text\ttext_pair\tgold\tpredicted", "a b\tc d\tx\ty", "e\tf \ty\ty", ""]


def test_the_printed_scores_have_the_spread_over_seeds_beside_them():
    values = {"eval_f1": 0.5, "eval_f1_mean": 0.6, "eval_f1_sd": 0.1, "test_examples": 3, "test_examples_cut": 1}
    assert "0.5000   over the seeds 0.6000 ± 0.1000" in format_scores(values)

from collections import Counter

import pytest

from electra_hf.publish.figures import draw_confusion
from electra_hf.tasks.finetuning import summarise_runs
from electra_hf.tasks.tagging_metrics import (
    ArticleSeqeval,
    SpanScores,
    TokenScores,
    compute_tagging_scores,
    format_scores,
    write_predictions,
)

DET_NOUN = ("DET NOUN NOUN NOUN VERB", "DET NOUN PROPN NOUN VERB")


def compute(metric, references, predictions, **options):
    metric = metric(keep_in_memory=True)
    return metric.compute(references=[references.split()], predictions=[predictions.split()], **options)


# Worked out by hand: spans that stock seqeval sees in bare tags, whose first letter it takes for a prefix.
@pytest.mark.parametrize(
    ("references", "predictions", "accuracy", "article_f1"),
    [
        (*DET_NOUN, 4 / 5, 0.5),  # gold ET(0) OUN(1-3) ERB(4): 2 of 3 found, 5 predicted
        ("NOUN NOUN NOUN NOUN VERB DET", "PROPN PROPN PROPN PROPN VERB DET", 2 / 6, 2 / 3),
        ("NN", "IN", 0.0, 1.0),  # both of type N
        ("OTHER", "OTHER", 1.0, 0.0),  # outside of everything
        ("SYM SYM SYM", "SYM SYM NOUN", 2 / 3, 2 / 3),  # S stands alone
        ("NUM NUM NUM", "NUM NUM NOUN", 2 / 3, 0.0),  # one run, its end missed
    ],
)
def test_stock_seqeval_on_bare_tags_is_wrong_in_both_directions(references, predictions, accuracy, article_f1):
    assert compute(TokenScores, references, predictions)["accuracy"] == pytest.approx(accuracy)
    assert compute(ArticleSeqeval, references, predictions)["article_seqeval_f1"] == pytest.approx(article_f1)


def test_stock_seqeval_has_its_precision_and_recall_under_the_articles_name():
    scores = compute(ArticleSeqeval, *DET_NOUN)
    assert scores["article_seqeval_precision"] == pytest.approx(2 / 5)
    assert scores["article_seqeval_recall"] == pytest.approx(2 / 3)


def test_a_bare_tag_is_a_span_of_its_own_so_the_strict_scores_equal_accuracy():
    assert compute(SpanScores, *DET_NOUN) == pytest.approx({"precision": 0.8, "recall": 0.8, "f1": 0.8})


def test_the_bare_tag_o_is_a_tag_like_others():
    assert compute(SpanScores, "O NOUN", "O VERB")["f1"] == pytest.approx(0.5)


def test_iob_tags_are_scored_by_whole_spans():
    # gold: PER(0-1), LOC(3). Predicted: PER(0), LOC(3).
    scores = compute(SpanScores, "B-PER I-PER O B-LOC", "B-PER O O B-LOC", scheme="iob2")
    assert scores == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5})


def test_a_span_that_begins_with_i_does_not_count_in_strict_iob2():
    assert compute(SpanScores, "B-PER I-PER", "I-PER I-PER", scheme="iob2")["f1"] == 0.0


def test_a_model_that_finds_no_entity_scores_zero_where_there_is_one():
    assert compute(SpanScores, "O B-PER", "O O", scheme="iob2")["f1"] == 0.0


def test_macro_f1_averages_over_the_tags_in_gold_or_predictions():
    # A: precision 1, recall 1/2. B: both 1/2. C: only predicted.
    scores = compute(TokenScores, "A A B B", "A B B C")
    a, b, c = 2 / 3, 0.5, 0.0
    assert scores["macro_f1"] == pytest.approx((a + b + c) / 3)


def test_all_scores_come_under_the_names_of_metrics_json():
    scores = compute_tagging_scores([["A", "B"]], [["A", "A"]])
    assert set(scores) == {
        "eval_accuracy",
        "eval_macro_f1",
        "eval_precision",
        "eval_recall",
        "eval_f1",
        "article_seqeval_precision",
        "article_seqeval_recall",
        "article_seqeval_f1",
    }


def test_the_first_run_stands_under_its_own_names_and_the_spread_beside_it():
    summary = summarise_runs([{"eval_accuracy": 0.6}, {"eval_accuracy": 0.8}, {"eval_accuracy": 0.7}])
    assert summary == pytest.approx({"eval_accuracy": 0.6, "eval_accuracy_mean": 0.7, "eval_accuracy_sd": 0.1})


def test_one_run_has_no_spread():
    assert summarise_runs([{"eval_accuracy": 0.6}]) == {"eval_accuracy": 0.6}


def test_the_report_names_the_labels_that_the_model_could_not_know():
    metrics = compute_tagging_scores([["A"]], [["A"]]) | {
        "test_words": 1,
        "test_sentences": 1,
        "baseline_most_frequent_tag_accuracy": 0.5,
    }
    assert "AUX (3)" in format_scores(metrics, Counter(AUX=3))


def test_predictions_keep_one_line_per_word_whatever_the_word_holds(tmp_path):
    words = [["la", "a\tb\nc"], ["!"]]
    write_predictions(words, [["DET", "X"], ["PUNCT"]], [["DET", "NOUN"], ["PUNCT"]], tmp_path / "predictions.tsv")
    text = (tmp_path / "predictions.tsv").read_text()
    assert text == "la\tDET\tDET\na b c\tX\tNOUN\n\n!\tPUNCT\tPUNCT\n\n"


def test_the_confusion_matrix_is_a_picture(tmp_path):
    draw_confusion([["A", "B"]], [["A", "C"]], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")

import pytest

from electra_hf.errors import InputError
from electra_hf.tasks.glue import TASKS, WITHOUT_WNLI, find_glue_files, format_glue, summarise_glue


def results_of(names, seeds=(1, 2)):
    """Task number i has the score i / 10 with seed 1, and i / 10 + 0.02 with seed 2."""
    return {
        name: {seed: {f"eval_{TASKS[name].score}": index / 10 + 0.02 * (seed - 1), "eval_loss": 1.0} for seed in seeds}
        for index, name in enumerate(names, start=1)
    }


def test_the_tasks_stand_in_the_papers_order_with_its_scores_and_epochs():
    assert [task.title for task in TASKS.values()] == "CoLA SST MRPC STS QQP MNLI QNLI RTE WNLI".split()
    assert {name for name, task in TASKS.items() if task.epochs == 10} == {"rte", "stsb"}
    assert {name: task.score for name, task in TASKS.items() if task.score != "accuracy"} == {
        "cola": "matthews_correlation",
        "stsb": "spearman",
    }
    assert {name for name, task in TASKS.items() if task.starts_from_mnli} == {"rte", "mrpc", "stsb"}


def test_the_average_is_over_eight_tasks_and_with_wnli_over_nine():
    summary = summarise_glue(results_of(TASKS))
    assert summary["glue_average_mean"] == pytest.approx(100 * (sum(range(1, 9)) / 80 + 0.01))
    assert summary["glue_average_with_wnli_mean"] == pytest.approx(100 * (sum(range(1, 10)) / 90 + 0.01))
    assert summary["glue_average_sd"] == pytest.approx(2**0.5)  # of two numbers that differ by 2
    assert summary["cola_eval_matthews_correlation_mean"] == pytest.approx(0.11)


@pytest.mark.parametrize("absent", WITHOUT_WNLI)
def test_there_is_no_average_over_eight_where_one_is_absent(absent):
    results = results_of([name for name in TASKS if name != absent])
    summary, table = summarise_glue(results), format_glue(results, {absent: "no such files"}, "mine")
    assert "glue_average_mean" not in summary and "glue_average_with_wnli_mean" not in summary
    assert f"Not run: {TASKS[absent].title} (no such files)." in table
    assert "Average of the 7 finished" in table and "does not compare" in table
    assert table.splitlines()[2].endswith("|  |  |")


def test_wnli_alone_has_no_average():
    assert not any(key.startswith("glue") for key in summarise_glue(results_of(["wnli"])))
    assert "Average" not in format_glue(results_of(["wnli"]), {}, "mine")


def test_the_table_has_mean_and_spread_in_percent():
    row = format_glue(results_of(TASKS), {}, "mine").splitlines()[2]
    assert row.startswith("| mine | 11.0 ± 1.4 | 21.0 ± 1.4 |") and row.endswith("| 46.0 ± 1.4 | 51.0 ± 1.4 |")


@pytest.mark.parametrize("folder", ["MNLI", "mnli"])
@pytest.mark.parametrize("test", ["dev_{}.tsv", "dev_{}.tsv.gz", "validation_{}.parquet"])
def test_files_are_found_by_the_official_names_and_by_the_hubs(tmp_path, folder, test):
    (tmp_path / folder).mkdir()
    for name in ("train.tsv", test.format("matched"), test.format("mismatched"), "readme.txt.doc", "test_matched.tsv"):
        (tmp_path / folder / name).touch()
    found = find_glue_files(tmp_path, TASKS["mnli"])
    assert {part: path.name for part, path in found.items()} == {
        "train": "train.tsv",
        "matched": test.format("matched"),
        "mismatched": test.format("mismatched"),
    }
    (tmp_path / folder / test.format("mismatched")).unlink()
    assert find_glue_files(tmp_path, TASKS["mnli"]) == {}


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        find_glue_files(tmp_path / "GLUE", TASKS["cola"])


@pytest.mark.parametrize(("text", "label"), [("0", "entailment"), ("1", "not_entailment"), ("not_entailment",) * 2])
def test_a_label_may_be_a_word_or_a_number(text, label):
    assert TASKS["rte"].label_of(text) == label


@pytest.mark.parametrize("text", ["-1", "-", "-1.0"])
def test_minus_one_and_a_dash_are_no_labels(text):
    assert TASKS["mnli"].label_of(text) is None

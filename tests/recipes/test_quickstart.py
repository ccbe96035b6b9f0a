"""The quickstart, with a hundredth of its steps on the documentation of one small package."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--packages", "accelerate", "--share", 0.008]


@pytest.fixture
def quickstart(run_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)  # it goes there by itself, and the tests after it must not stay there
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def run(folder, *flags):
        done = run_recipe("quickstart.py", *SMALL, "--output_dir", tmp_path / folder, *flags)
        assert done.returncode == 0, done.stderr
        metrics = {
            name: json.loads((tmp_path / folder / name / "metrics.json").read_text())
            for name in ("pretrain", "tagger", "untrained")
        }
        return done, metrics

    return run


@pytest.mark.slow
@pytest.mark.timeout(900)  # two whole runs; half a minute each where nothing else runs
def test_the_quickstart_ends_with_numbers_beside_their_baselines_and_shows_no_dictionaries(quickstart):
    done, metrics = quickstart("first")
    table = done.stdout.partition("\nQuickstart\n")[2]
    for folder, name in (
        *(("pretrain", "eval_rtd_auc"), ("pretrain", "eval_rtd_majority_baseline")),
        *(("tagger", "eval_accuracy_mean"), ("tagger", "baseline_most_frequent_tag_accuracy")),
        ("untrained", "eval_accuracy_mean"),
    ):
        assert f"{metrics[folder][name]:.3f}" in table, name
    assert re.search(r"replaced words that are marked +[01]\.\d{3} +chance +0\.\d{3}", table)
    assert "{'" not in done.stdout + done.stderr
    assert "newly initialized" not in done.stderr
    assert "effective rank" in done.stdout
    assert "--corpus_files 'my_text/*.txt'" in table
    assert metrics["tagger"]["eval_accuracy_mean"] != metrics["untrained"]["eval_accuracy_mean"]

    # The same text gives the same numbers, and --verbose shows what is left out otherwise.
    again, same = quickstart("second", "--verbose")
    times = ("runtime", "per_second")
    for folder in metrics:
        for name, value in metrics[folder].items():
            if not name.endswith(times):
                assert same[folder][name] == value, name
    assert "{'loss'" in again.stdout + again.stderr

"""The measurement for whoever has a GPU, tried on the CPU with tiny networks."""

import json

import pytest

NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'


@pytest.fixture
def measure(run_recipe, monkeypatch, tmp_path):
    from test_structure import ROOT

    monkeypatch.syspath_prepend(ROOT / "recipes" / "benchmark")

    def run(*flags):
        tiny = ["--vocab_size", 64, "--max_length", 16, "--generator", NETWORK, "--discriminator", NETWORK]
        return run_recipe(
            "benchmark/gpu.py", "--output_dir", tmp_path, *tiny, "--step_tokens", 64, "--steps", 3, *flags
        ), tmp_path

    return run


@pytest.mark.slow
def test_one_command_checks_the_device_times_the_steps_and_leaves_json_and_a_table(measure):
    run, folder = measure("--ways", "eager")
    assert run.returncode == 0, run.stderr
    report = json.loads((folder / "gpu.json").read_text())
    assert {name: check.get("passed") for name, check in report["checks"].items()} == {
        "outputs as on the CPU": True,
        "resume": True,
        "broken step": True,
        "stop and checkpoint": True,
    }
    assert report["checks"]["resume"]["largest difference of a weight"] == 0.0  # of a CPU
    (row,) = report["rows"]
    assert (
        row["tokens"] == 64 and row["tokens_per_second"] > 0 and row["seconds_to_first_step"] > 0 and row["share"] > 0
    )
    assert len(report["profile"]) == 10 and all(milliseconds > 0 for milliseconds in report["profile"].values())
    table = (folder / "gpu.md").read_text()
    assert (
        table in run.stdout and "| 64 | eager |" in table and "| resume | largest difference of a weight: 0.0" in table
    )


def test_an_unknown_way_is_refused(measure):
    run, _ = measure("--ways", "fast")
    assert run.returncode == 2 and "ways: expected some of eager, compiled, apart, graphs, got fast" in run.stderr

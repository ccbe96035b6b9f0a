"""The recipe compare_objectives.py as a user runs it: a table over seeds, and it goes on where it was stopped."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
from test_pretrain import folder  # noqa: F401 a fixture: a corpus and pretraining recipe

from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments

RECIPE = Path(__file__).parents[2] / "recipes" / "compare_objectives.py"
TAGGED = "la DET\nknabo NOUN\nvidas VERB\nbelan ADJ\nhundon NOUN\n\nĉevalon NOUN\nvidas VERB\nŝia DET\nknabo NOUN\n\n"


@pytest.fixture
def recipe(folder):  # noqa: F811
    (folder / "tagged.txt").write_text(TAGGED * 20, encoding="utf-8")
    (folder / "finetune.yaml").write_text(
        f"train_file: {folder / 'tagged.txt'}\ntest_file: {folder / 'tagged.txt'}\n"
        "num_train_epochs: 1\nuse_cpu: true\ndisable_tqdm: true\n"
    )
    (folder / "compare.yaml").write_text(
        f"pretrain_config: {folder / 'recipe.yaml'}\nfinetune_config: {folder / 'finetune.yaml'}\n"
        f"output_dir: {folder / 'compare'}\nseeds: [1, 2]\nobjectives: [electra, mlm]\n"
        "embedding_sharings: [gradient_disentangled]\npoints: 2\n"
        "pretrain: {max_steps: 8, generator_only_steps: 4}\n"
    )
    return folder / "compare.yaml"


@pytest.fixture
def compare(recipe, run_recipe):
    return partial(run_recipe, "compare_objectives.py", "--config", recipe)


def mark_of(file):
    return file.stat().st_mtime_ns


@pytest.mark.slow
def test_a_comparison_ends_in_a_table_and_runs_nothing_twice(recipe, compare):
    result = compare()
    assert result.returncode == 0, result.stderr
    output_dir = recipe.parent / "compare"
    table = (output_dir / "comparison.md").read_text()
    assert "as many steps as electra" in table and "over 2 seeds" in table
    for row in ("| electra | shared |", "| mlm | shared |", "| electra | gradient_disentangled |", "| untrained |"):
        assert table.count(row) == 1
    assert (output_dir / "comparison.png").stat().st_size > 10_000

    # The scores are those of the fine-tuning runs; the first stage of the generator alone gives no point.
    results = json.loads((output_dir / "comparison.json").read_text())["results"]
    steps = {f"{r['objective']}_{r['embedding_sharing']}": [p["steps"] for p in r["points"]] for r in results}
    assert steps["electra_shared"] == [0, 8] and steps["mlm_shared"] == [0, 4, 8]
    for result in results:
        run = output_dir / f"{result['objective']}_{result['embedding_sharing']}" / "seed_2" / "finetune_8"
        assert (
            result["points"][-1]["eval_accuracy"][1] == json.loads((run / "metrics.json").read_text())["eval_accuracy"]
        )

    # Stopped in between and started again: what is done is kept, what is missing is made.
    done = output_dir / "electra_shared" / "seed_1" / "pretrain" / "metrics.json"
    missing = output_dir / "mlm_shared" / "seed_2" / "finetune_8"
    before = mark_of(done)
    shutil.rmtree(missing)
    assert compare().returncode == 0
    assert mark_of(done) == before and (missing / "metrics.json").is_file()
    again = json.loads((output_dir / "comparison.json").read_text())["results"]
    assert [result["points"] for result in again] == [result["points"] for result in results]
    assert all(result["tokens_per_second"] > 0 for result in again)

    # The same rows for all, and settings that cannot change in between.
    tokenizers = {file.read_bytes() for file in output_dir.glob("*/*/pretrain/tokenizer/tokenizer.json")}
    assert len(tokenizers) == 1
    other = compare("--pretrain", '{"max_steps": 6}')
    assert other.returncode == 2 and "holds a comparison with other settings: pretrain" in other.stderr


@pytest.mark.slow
def test_with_equal_operations_the_cheaper_objective_takes_more_steps(recipe, compare):
    result = compare("--budget", "flops", "--seeds", "1", "--embedding_sharings", "shared")
    assert result.returncode == 0, result.stderr
    runs = {}
    for objective in ("electra", "mlm"):
        run = recipe.parent / "compare" / f"{objective}_shared" / "seed_1" / "pretrain"
        runs[objective] = json.loads((run / "metrics.json").read_text())
    assert runs["mlm"]["train_tokens"] != runs["electra"]["train_tokens"]
    steps = runs["mlm"]["train_tokens"] / (8 * 16)  # rounded to an even number, for two points
    assert runs["mlm"]["train_flops"] == pytest.approx(runs["electra"]["train_flops"], rel=1.01 / steps)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objectives", "electra", "clm"], "objectives: expected some of electra, electra_15"),
        (["--embedding_sharings", "all"], "embedding_sharings: expected some of shared, word, none"),
        (["--pretrain_config", "nowhere.yaml"], "pretrain_config: expected a recipe file"),
        (["--points", "3"], "max_steps, a multiple of points (3)"),
        (["--pretrain", '{"max_step": 8, "max_steps": 8}'], "max_step"),
    ],
)
def test_wrong_input_is_one_message(recipe, monkeypatch, flags, message):
    monkeypatch.syspath_prepend(RECIPE.parent)
    import compare_objectives

    with pytest.raises(InputError, match=re.escape(message)):
        compare_objectives.main(
            *parse_arguments(*compare_objectives.ARGUMENTS, argv=["--config", str(recipe), *flags])
        )

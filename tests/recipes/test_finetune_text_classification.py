import ast
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_discriminator
from transformers import AutoTokenizer, pipeline

ROOT = Path(__file__).parents[2]
GOOD, BAD = ("good fine kind warm", "bad poor mean cold")
FLAGS = "--use_cpu true --disable_tqdm true --learning_rate 5e-3 --layerwise_lr_decay 1.0".split()


def words(text, count, step):
    return [" ".join((text.split() * 3)[i % 4 : i % 4 + step]) for i in range(count)]


# The label can be read off the words of one text, and of a pair off whether both say the same.
SINGLE = [(text, "up") for text in words(GOOD, 12, 2)] + [(text, "down") for text in words(BAD, 12, 3)]
LONG = [(" ".join([GOOD] * 20), "up"), (" ".join([BAD] * 20), "down")]
PAIRS = [(a, b, str(int((a in GOOD) == (b in GOOD)))) for a in ("good", "bad") for b in ("fine", "poor")] * 6
NUMBERS = [(" ".join(["good"] * n + ["bad"] * (6 - n)), f"{1000 + 100.5 * n}") for n in range(7)] * 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny random discriminator and files to learn from."""
    folder = tmp_path_factory.mktemp("inputs")
    tables = {"single": SINGLE, "long": SINGLE + LONG, "pairs": PAIRS, "numbers": NUMBERS}
    for name, rows in tables.items():
        header = ["text", "label"] if len(rows[0]) == 2 else ["sentence1", "sentence2", "label"]
        lines = ["\t".join(row) for row in (header, *rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    save_discriminator(folder / "discriminator", [GOOD, BAD], vocab_size=64, length=32)
    return folder


@pytest.fixture(scope="module")
def run(recipe, inputs, tmp_path_factory):
    """Runs the recipe with flags beside the usual ones; returns its output folder, or its exit code."""

    def make(name, table, *flags, test=None, encoder=None):
        output_dir = tmp_path_factory.mktemp("runs") / name
        argv = ["finetune_text_classification.py", *FLAGS, "--output_dir", output_dir, *flags]
        argv += ["--model_name_or_path", encoder or inputs / "discriminator", "--train_file", inputs / table]
        argv += ["--test_file", inputs / (test or table)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, argv)))
            try:
                recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)
            except SystemExit as stop:
                return stop.code, output_dir
        return output_dir

    return make


OWN = ("--text_columns", "text", "--label_column", "label")


@pytest.fixture(scope="module")
def single(run):
    return run(
        "single", "single.tsv", *OWN, "--seeds", 3, 4, "--num_train_epochs", 12, "--max_length", 12, test="long.tsv"
    )


@pytest.fixture(scope="module")
def pairs(run):
    return run("pairs", "pairs.tsv", "--task", "mrpc", "--num_train_epochs", 90)


@pytest.fixture(scope="module")
def numbers(run):
    return run("numbers", "numbers.tsv", *OWN, "--num_train_epochs", 30)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def predictions_of(folder):
    header, *rows = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_classifier_learns_and_leaves_everything_in_its_folder(single):
    files = {path.name for path in single.iterdir()}
    assert files == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "metrics.json"),
        *("predictions.tsv", "confusion.png", "recipe.yaml", "README.md", "seed-3", "seed-4"),
    }
    metrics = metrics_of(single)
    assert metrics["eval_accuracy"] > 0.9
    for name in ("accuracy", "f1", "macro_f1", "matthews_correlation", "loss"):
        assert {f"eval_{name}", f"eval_{name}_mean", f"eval_{name}_sd"} <= metrics.keys()
    assert metrics["baseline_majority_accuracy"] == 0.5
    assert (metrics["train_examples"], metrics["test_examples"]) == (24, 26)
    assert (metrics["train_examples_cut"], metrics["test_examples_cut"]) == (0, 2)
    assert "3 4" not in (single / "recipe.yaml").read_text() and "- 4" in (single / "recipe.yaml").read_text()


def test_a_pair_is_learned_as_a_pair_with_the_tasks_scores_and_labels(pairs):
    metrics = metrics_of(pairs)
    assert metrics["eval_accuracy"] > 0.9 and metrics["eval_f1"] > 0.9
    assert json.loads((pairs / "config.json").read_text())["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    assert predictions_of(pairs)[0].keys() == {"text", "text_pair", "gold", "predicted"}


def test_numbers_are_predicted_in_their_own_unit(numbers):
    metrics = metrics_of(numbers)
    assert metrics["eval_pearson"] > 0.9 and metrics["eval_spearman"] > 0.9
    assert metrics["eval_loss"] < metrics["baseline_mean_loss"] / 4
    assert 900 < float(predictions_of(numbers)[0]["predicted"]) < 1800
    assert (numbers / "scatter.png").exists() and not (numbers / "confusion.png").exists()


@pytest.mark.parametrize("name", ["single", "pairs", "numbers"])
def test_the_stock_pipeline_gives_the_recipes_own_answers_long_texts_included(name, request):
    folder = request.getfixturevalue(name)
    rows = predictions_of(folder)
    classify = pipeline("text-classification", model=str(folder))
    texts = [{key: row[key] for key in ("text", "text_pair") if key in row} for row in rows]
    answers = [classify(text, truncation=True) for text in texts]
    if name == "numbers":
        assert [answer["score"] for answer in answers] == pytest.approx(
            [float(row["predicted"]) for row in rows], rel=1e-4
        )
    else:
        assert [answer["label"] for answer in answers] == [row["predicted"] for row in rows]
    if name == "single":
        assert AutoTokenizer.from_pretrained(folder).model_max_length == 12
        assert max(len(row["text"].split()) for row in rows) > 60


@pytest.mark.parametrize(("name", "answer"), [("single", "label"), ("pairs", "label"), ("numbers", "score")])
def test_the_lines_of_code_in_the_card_run_as_printed(name, answer, request, capsys):
    folder = request.getfixturevalue(name)
    card = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].replace('"USER/MODEL"', repr(str(folder)))
    exec(compile(code, "card", "exec"), {})
    assert answer in capsys.readouterr().out
    assert "not recorded" not in card.partition("## How it was trained")[0].replace(
        "Licences of the text: not recorded", ""
    )


def test_the_card_says_what_the_answers_are_and_how_each_label_did(single, numbers):
    card = (single / "README.md").read_text()
    assert "one of 2 labels (down, up)" in card and re.search(r"\| down \| [01]\.\d+ \|", card)
    assert "`f1` is that of the label `up`" in card and "confusion.png" in card
    card = (numbers / "README.md").read_text()
    assert "It gives a text a number." in card and "mean squared error" in card and "scatter.png" in card


def test_a_classifier_with_another_head_is_an_encoder_too(run, pairs):
    folder = run("numbers", "numbers.tsv", *OWN, "--num_train_epochs", 1, "--learning_rate", 1e-9, encoder=pairs)
    old, new = (load_file(path / "model.safetensors") for path in (pairs, folder))
    assert new["classifier.out_proj.weight"].shape[0] == 1
    encoder = [name for name in old if name.startswith("electra.")]
    assert len(encoder) > 10 and all(torch.allclose(old[name], new[name], atol=1e-6) for name in encoder)


def test_the_loss_and_its_gradient_are_a_mean_however_a_step_is_parted(run, capsys):
    logs = []
    for size, parts in ((24, 1), (8, 3)):
        parted = ("--per_device_train_batch_size", size, "--gradient_accumulation_steps", parts)
        run("parted", "single.tsv", *OWN, "--num_train_epochs", 1, *parted)
        (log,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss'"))
        logs.append(ast.literal_eval(log))
    for name in ("loss", "grad_norm"):
        assert float(logs[0][name]) == pytest.approx(float(logs[1][name]), rel=0.02)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task", "sst-2"), "did you mean 'sst2'?"),
        (("--text_columns", "words", "--label_column", "label"), "no column 'words'"),
        ((*OWN, "--max_length", "2000"), "max_length: expected 3 to 32"),
        (("--task", "mrpc"), "sentence1, sentence2, label"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_leaves_nothing(run, capsys, flags, message):
    code, output_dir = run("refused", "single.tsv", *flags)
    assert code == 2 and not output_dir.exists()
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_yaml_files_fit_the_recipe(recipe):
    from electra_hf.recipe import parse_arguments

    files = sorted(ROOT.glob("recipes/*/finetune_text_classification.yaml"))
    assert files
    for file in files:
        _, data, _, training = parse_arguments(*recipe.ARGUMENTS, argv=["--config", str(file), "--train_file", "x"])
        assert data.max_length == 128 and training.layerwise_lr_decay == 0.8

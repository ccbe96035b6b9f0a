import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_discriminator

ROOT = Path(__file__).parents[2]
TEXTS = ["good fine kind warm", "bad poor mean cold"]
# Four of the nine, in their official layouts.
FILES = {
    "CoLA": (None, "gj04\t{number}\t\t{text}"),
    "STS-B": ("index\tsentence1\tsentence2\tscore", "0\t{text}\tgood\t{number}.000"),
    "MNLI": ("index\tsentence1\tsentence2\tgold_label", "0\t{text}\tgood\t{word}"),
    "RTE": ("index\tsentence1\tsentence2\tlabel", "0\t{text}\tgood\t{word2}"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny random discriminator, and glue/ with four tasks."""
    folder = tmp_path_factory.mktemp("inputs")
    for task, (header, line) in FILES.items():
        rows = [
            line.format(
                number=i % 2, text=TEXTS[i % 2], word=("entailment", "neutral", "contradiction")[i % 3],
                word2=("entailment", "not_entailment")[i % 2],
            )
            for i in range(12)
        ]  # fmt: skip
        (folder / "glue" / task).mkdir(parents=True)
        for part in ("train", *(["dev_matched", "dev_mismatched"] if task == "MNLI" else ["dev"])):
            content = "\n".join([header] * bool(header) + rows) + "\n"
            (folder / "glue" / task / f"{part}.tsv").write_text(content)
    save_discriminator(folder / "discriminator", TEXTS, vocab_size=64, length=16)
    return folder


@pytest.fixture
def run(recipe, inputs, monkeypatch):
    """Runs the recipe; returns the (task, seed) pairs that it trained, in order."""

    def make(output_dir, *flags):
        trained, train_classifier = [], recipe.train_classifier

        def watch(seed, encoder_args, training_args, data, model_inputs):
            task = Path(training_args.output_dir).name
            trained.append((task, seed))
            make.starts[task] = Path(encoder_args.model_name_or_path).name
            return train_classifier(seed, encoder_args, training_args, data, model_inputs)

        argv = ["finetune_glue.py", "--model_name_or_path", inputs / "discriminator", "--output_dir", output_dir]
        argv += ["--glue_dir", inputs / "glue", "--num_train_epochs", 1, "--use_cpu", "true", "--disable_tqdm", "true"]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, [*argv, *flags])))
            patch.setattr(recipe, "train_classifier", watch)
            recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)
        return trained

    make.starts = {}
    return make


def test_it_goes_on_where_it_was_stopped_and_does_again_what_is_damaged_or_of_other_settings(run, tmp_path):
    seeds = ("--seeds", 1, 2)
    everything = [(task, seed) for task in ("cola", "stsb", "mnli", "rte") for seed in (1, 2)]
    assert run(tmp_path, *seeds) == everything
    metrics, table = (tmp_path / "metrics.json").read_text(), (tmp_path / "glue.md").read_text()
    assert run(tmp_path, *seeds) == []
    assert (tmp_path / "metrics.json").read_text() == metrics and (tmp_path / "glue.md").read_text() == table

    (tmp_path / "mnli" / "result-2.json").unlink()  # stopped before it
    (tmp_path / "rte" / "result-1.json").write_text('{"scores": ')  # killed while it wrote
    assert run(tmp_path, *seeds) == [("mnli", 2), ("rte", 1)]
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(metrics)

    assert run(tmp_path, "--seeds", 1, 2, 3, "--tasks", "rte") == [("rte", 3)]
    assert run(tmp_path, *seeds, "--tasks", "rte", "--learning_rate", "1e-3") == [("rte", 1), ("rte", 2)]


def test_a_result_in_another_precision_is_made_again(run, tmp_path, monkeypatch):
    rte = ("--seeds", 1, "--tasks", "rte")
    assert run(tmp_path, *rte) == [("rte", 1)]
    monkeypatch.setattr("electra_hf.training.device.choose_precision", lambda use_cpu: "bf16")  # another device
    assert run(tmp_path, *rte) == [("rte", 1)]
    assert run(tmp_path, *rte) == [] == run(tmp_path, *rte, "--bf16")
    assert run(tmp_path, *rte, "--bf16", "false") == [("rte", 1)]


def test_the_tasks_whose_files_are_absent_are_named_and_the_average_says_what_it_is_of(run, tmp_path):
    run(tmp_path, "--seeds", 1)
    table = (tmp_path / "glue.md").read_text()
    for title in ("SST", "MRPC", "QQP", "QNLI", "WNLI"):
        assert f"Not run: {title} (no such files" in table
    assert "Average of the 4 finished (CoLA, STS, MNLI, RTE)" in table
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "glue_average_mean" not in metrics and "glue_average_of_finished_mean" in metrics
    assert {"mnli_eval_accuracy_mean", "mnli_eval_mismatched_accuracy_mean"} <= metrics.keys()


def test_rte_and_sts_start_from_the_mnli_model_if_asked(run, tmp_path):
    flags = ("--start_from_mnli", "true", "--seeds", 1, "--learning_rate", "1e-9")
    assert run(tmp_path, *flags) == [("mnli", 1), ("cola", 1), ("stsb", 1), ("rte", 1)]
    assert run.starts == {
        "mnli": "discriminator", "cola": "discriminator", "stsb": "mnli", "rte": "mnli",
    }  # fmt: skip
    weights = {task: load_file(tmp_path / task / "model.safetensors") for task in ("mnli", "rte", "stsb")}
    for task, outputs in (("rte", 2), ("stsb", 1)):
        assert weights[task]["classifier.out_proj.weight"].shape[0] == outputs  # new, for MNLI has three
        name = "electra.encoder.layer.0.output.dense.weight"
        assert torch.allclose(weights[task][name], weights["mnli"][name], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tasks", "cola", "squad"), "expected some of cola"),
        (("--tasks", "cola", "--start_from_mnli", "true"), "needs mnli"),
        (("--tasks", "wnli"), "holds the files of no task"),
        (("--dataset_name", "x"), "not both"),
        (("--max_length", "99"), "expected 3 to 16"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_leaves_nothing(run, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *flags)
    assert stop.value.code == 2 and not (tmp_path / "out").exists()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("size", "rate"), [("small", 3e-4), ("base", 1e-4)])
def test_the_yaml_files_have_the_papers_numbers(recipe, size, rate):
    from electra_hf.recipe import parse_arguments

    file = ROOT / "recipes" / f"electra_{size}" / "finetune_glue.yaml"
    _, glue, training = parse_arguments(*recipe.ARGUMENTS, argv=["--config", str(file)])
    assert training.learning_rate == rate and training.layerwise_lr_decay == 0.8 and training.warmup_steps == 0.1
    assert training.per_device_train_batch_size == 32 and training.weight_decay == 0
    assert training.num_train_epochs is None and glue.max_length == 128

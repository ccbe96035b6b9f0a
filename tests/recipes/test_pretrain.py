"""The recipes pretrain.py and export.py as a user runs them, on a corpus of some hundred sentences."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, ElectraForMaskedLM, ElectraForPreTraining

from electra_hf.publish.cards import CardArguments
from electra_hf.recipe import parse_arguments
from electra_hf.text.corpus import CorpusArguments
from electra_hf.training.arguments import ModelArguments, PretrainingArguments, TokenizerArguments

ARGUMENTS = (CorpusArguments, TokenizerArguments, ModelArguments, CardArguments, PretrainingArguments)
ROOT = Path(__file__).parents[2]
NETWORK = "{num_hidden_layers: 1, hidden_size: 16, embedding_size: 8, num_attention_heads: 2}"


@pytest.fixture
def folder(tmp_path):
    """A folder with corpus.txt and recipe.yaml."""
    chance = random.Random(0)
    words = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo".split()
    lines = [" ".join(chance.choices(words, k=8)) + "." for _ in range(300)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"output_dir: {tmp_path / 'run'}\ncorpus_files: [{tmp_path / 'corpus.txt'}]\ntest_share: 0.2\n"
        f"data_cache_dir: {tmp_path / 'cache'}\nvocab_size: 128\nmax_length: 16\n"
        f"discriminator: {NETWORK}\ngenerator: {NETWORK}\n"
        "max_steps: 6\nwarmup_steps: 2\nlogging_steps: 2\nsave_steps: 3\nper_device_train_batch_size: 8\n"
        "use_cpu: true\ndisable_tqdm: true\n",
        encoding="utf-8",
    )
    return tmp_path


def run(recipe, *flags):
    command = [sys.executable, str(ROOT / "recipes" / recipe), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_run_leaves_every_result_and_a_second_start_finds_it_done(folder, run_recipe):
    first = run("pretrain.py", "--config", folder / "recipe.yaml")
    assert first.returncode == 0, first.stderr
    output = folder / "run"
    for name in ("corpus.json", "curves.png", "recipe.yaml", "tokenizer", "checkpoint-3", "checkpoint-6"):
        assert (output / name).exists(), name
    metrics = json.loads((output / "metrics.json").read_text())
    expected = {
        *("eval_loss eval_generator_loss eval_discriminator_loss eval_generator_accuracy eval_rtd_accuracy").split(),
        *("eval_rtd_majority_baseline eval_rtd_auc eval_rtd_precision eval_rtd_recall eval_replaced_share").split(),
        *("train_tokens_per_second train_tokens train_runtime").split(),
    }
    assert expected <= set(metrics)
    assert metrics["train_tokens"] == 6 * 8 * 16
    weighted = metrics["eval_generator_loss"] + 50 * metrics["eval_discriminator_loss"]
    assert metrics["eval_loss"] == pytest.approx(weighted)

    tokenizer = AutoTokenizer.from_pretrained(output / "discriminator")
    assert tokenizer.tokenize("ĉevalon") == AutoTokenizer.from_pretrained(output / "tokenizer").tokenize("ĉevalon")
    assert "[UNK]" not in tokenizer.tokenize("ŝia ĝardeno")
    ElectraForPreTraining.from_pretrained(output / "discriminator")
    ElectraForMaskedLM.from_pretrained(output / "generator")

    # The same command again resumes at the last step, trains nothing, and the tokenizer is the first one's.
    vocabulary = (output / "tokenizer" / "tokenizer.json").read_bytes()
    weights = (output / "discriminator" / "model.safetensors").read_bytes()
    again = run_recipe("pretrain.py", "--config", folder / "recipe.yaml")
    assert again.returncode == 0, again.stderr
    repeated = json.loads((output / "metrics.json").read_text())
    assert repeated["train_tokens"] == 6 * 8 * 16 and repeated["eval_rtd_auc"] == metrics["eval_rtd_auc"]
    assert (output / "tokenizer" / "tokenizer.json").read_bytes() == vocabulary
    assert (output / "discriminator" / "model.safetensors").read_bytes() == weights

    # recipe.yaml, everything as it ran, is itself a recipe.
    again = parse_arguments(*ARGUMENTS, argv=["--config", str(output / "recipe.yaml")])
    assert again[4].max_steps == 6 and again[2].generator == yaml.safe_load(NETWORK)

    exported = run_recipe("export.py", "--checkpoint", output / "checkpoint-3", "--output_dir", folder / "exported")
    assert exported.returncode == 0, exported.stderr
    ElectraForPreTraining.from_pretrained(folder / "exported" / "discriminator")
    assert (folder / "exported" / "discriminator" / "tokenizer.json").read_bytes() == vocabulary
    assert (folder / "exported" / "generator" / "model.safetensors").is_file()


@pytest.mark.slow
def test_masked_language_modelling_leaves_one_network_that_fills_gaps(folder, run_recipe):
    flags = ["--objective", "mlm", "--whole_word_selection", "true"]
    result = run_recipe("pretrain.py", "--config", folder / "recipe.yaml", *flags)
    assert result.returncode == 0, result.stderr
    assert not (folder / "run" / "generator").exists()
    ElectraForMaskedLM.from_pretrained(folder / "run" / "discriminator")
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["eval_loss"] == metrics["eval_discriminator_loss"]
    assert 0 <= metrics["eval_token_accuracy"] <= 1 and "eval_rtd_auc" not in metrics


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        ("pretrain.py", ["--corpus_files", "nowhere.txt"], "nowhere.txt"),
        ("pretrain.py", ["--corpus_files", "/dev/null"], "/dev/null: neither a file nor a folder"),
        ("pretrain.py", ["--model_size", "tiny"], "model_size: expected one of small, base, large"),
        ("pretrain.py", ["--tokenizer_type", "words"], "tokenizer_type"),
        ("pretrain.py", ["--objective", "clm"], "objective: expected one of electra, electra_15, all_tokens_mlm"),
        ("pretrain.py", ["--embedding_sharing", "all"], "embedding_sharing: expected one of shared, word, none"),
        ("pretrain.py", ["--objective", "mlm", "--generator_only_steps", "2"], "mlm has no generator"),
        ("pretrain.py", ["--generator", '{"embedding_size": 4}'], "embedding_size: the generator has 4"),
        ("pretrain.py", ["--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint: nowhere"),
        ("pretrain.py", ["--max_length", "600"], "max_length"),
        ("pretrain.py", ["--test_share", "0"], "test_share: 0 holds out nothing to measure on"),
        ("pretrain.py", ["--output_dir", f"{__file__}/run"], f"output_dir: {__file__} cannot be written"),
        ("pretrain.py", ["--per_device_train_batch_size", "4096"], "fewer than one batch of 4096"),
        ("export.py", ["--checkpoint", "nowhere", "--output_dir", "x"], "nowhere"),
    ],
)
def test_wrong_input_is_one_message_exit_code_2_and_nothing_half_written(folder, run_recipe, recipe, flags, message):
    if recipe == "pretrain.py":
        flags = ["--config", folder / "recipe.yaml", *flags]
    result = run_recipe(recipe, *flags)
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.stderr
    assert not (folder / "run" / "metrics.json").exists() and not (folder / "run" / "discriminator").exists()


def test_every_recipe_file_parses():
    for path in ROOT.glob("recipes/*/pretrain.yaml"):
        flags = ["--config", str(path), "--use_cpu", "true", "--corpus_files", "x"]
        *_, training = parse_arguments(*ARGUMENTS, argv=flags)
        assert training.output_dir == f"outputs/{path.parent.name}/pretrain"


@pytest.mark.slow
def test_a_discriminator_is_continued_without_its_generator(folder, run_recipe):
    config = ["--config", folder / "recipe.yaml"]
    assert run_recipe("pretrain.py", *config, "--max_steps", 3).returncode == 0
    published = folder / "published"
    (folder / "run" / "discriminator").rename(published)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for own in ("discriminator", "generator", "vocab_size"):
        del recipe[own]
    (folder / "continue.yaml").write_text(yaml.safe_dump(recipe | {"max_steps": 20}))
    flags = ["--config", folder / "continue.yaml", "--discriminator_name_or_path", published]

    for wrong, message in (
        (["--vocab_size", "500"], "vocab_size: 500 was asked for, but the tokenizer of"),
        (["--model_size", "base"], "model_size: cannot be set beside discriminator_name_or_path"),
        (["--generator_name_or_path", folder / "run" / "tokenizer"], "generator_name_or_path"),
        (["--generator", '{"embedding_size": 4}'], "embedding_size: the generator has 4 and the discriminator 8"),
    ):
        refused = run_recipe("pretrain.py", *flags, *wrong, "--output_dir", folder / "refused")
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr
        assert not list((folder / "refused").glob("*"))

    result = run_recipe("pretrain.py", *flags, "--output_dir", folder / "continued", "--save_steps", 1)
    assert result.returncode == 0, result.stderr
    again = yaml.safe_load((folder / "continued" / "recipe.yaml").read_text())
    assert again["generator_only_steps"] == 10  # half of a run as short as this
    before = ElectraForPreTraining.from_pretrained(published).state_dict()
    after = ElectraForPreTraining.from_pretrained(folder / "continued" / "discriminator").state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(
        before["electra.encoder.layer.0.output.dense.weight"], after["electra.encoder.layer.0.output.dense.weight"]
    )
    folders = published, folder / "continued" / "tokenizer"
    tokenizers = [json.loads((path / "tokenizer.json").read_text()) for path in folders]
    assert tokenizers[0]["model"] == tokenizers[1]["model"]

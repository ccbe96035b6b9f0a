"""A wheel works without the checkout: pretraining, a tagger and their cards, with nothing but installed packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'


def run(*command, folder, **environment):
    # Without PYTHONPATH: what is imported must come from the wheel.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [*map(str, command)], cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that holds the wheel, and else only what the tests' own environment holds."""
    folder = tmp_path_factory.mktemp("environment")
    source = folder / "source"
    source.mkdir()
    for name in ("electra_hf", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source, folder=folder)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder)
    python = folder / "venv/bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).strip()
    # A bare path in a .pth file: the libraries there are found, but not the checkout that is installed editable there.
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = folder.glob("*.whl")
    run(*pip, "install", "--no-deps", "--no-index", "--target", site, wheel, folder=folder)
    return python


@pytest.mark.slow
def test_a_wheel_pretrains_fine_tunes_and_writes_cards_in_a_folder_without_a_checkout(python, tmp_path):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    origin = run(python, "-c", "import electra_hf; print(electra_hf.__file__)", folder=tmp_path)
    assert str(python.parents[1]) in origin
    data = "recipes/quickstart/data"
    shared = ["--max_steps", 2, "--use_cpu", "true", "--report_to", "none"]
    run(
        *(python, "recipes/pretrain.py", "--output_dir", "run", "--data_cache_dir", "cache", "--vocab_size", 256),
        *("--corpus_files", f"{data}/epo_sample_2026_500-sentences.txt", "--max_length", 32, "--test_share", 0.1),
        *("--discriminator", NETWORK, "--generator", NETWORK, "--per_device_train_batch_size", 8),
        *("--warmup_steps", 1, *shared),
        folder=tmp_path,
        HF_HUB_OFFLINE="1",
    )
    run(
        *(python, "recipes/finetune_token_classification.py", "--model_name_or_path", "run/discriminator"),
        *("--train_file", f"{data}/pos-train.txt", "--test_file", f"{data}/pos-test.txt"),
        *("--output_dir", "tagger", *shared),
        folder=tmp_path,
        HF_HUB_OFFLINE="1",
    )
    for card in ("run/discriminator/README.md", "run/generator/README.md", "tagger/README.md"):
        assert "electra_hf wrote this card" in (tmp_path / card).read_text(encoding="utf-8")


def test_the_public_names_are_those_of_the_package_itself():
    import electra_hf

    assert {"ElectraForPretraining", "ElectraPretrainingConfig", "ElectraTrainer", "PretrainingArguments"} <= set(
        electra_hf.__all__
    )
    assert electra_hf.pack_dataset.__module__.startswith("electra_hf")

"""Small models in memory, no network."""

import os
import random
import runpy
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch
from tiny import LENGTH, VOCAB_SIZE, by_row, packed
from transformers.utils import logging

# Scripts that a test starts find what the tests share, as the tests themselves do (`pythonpath` in pyproject.toml).
TESTS = Path(__file__).parent
SHARED = [str(TESTS), str(TESTS / "training"), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(SHARED)

# A shell starts what runs in the background with signals ignored, and what a test starts would ignore them too: a run
# leaves an ignored signal ignored (`nohup`). The tests of signals are about all others.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

logging.set_verbosity_error()
logging.disable_progress_bar()


def pytest_addoption(parser):
    parser.addoption("--whole-sweeps", action="store_true", help="run every case of the tests marked `sweep`")


def pytest_collection_modifyitems(config, items):
    """Keep a sample of each sweep, the same one at every call."""
    sweeps = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep") and not config.getoption("--whole-sweeps"):
            sweeps[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for cases in sweeps.values():
        number = min(len(cases), *cases[0].get_closest_marker("sweep").args)
        left_out |= set(cases) - set(random.Random(0).sample(cases, number))
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def full_disk():
    """A path that takes no byte."""
    if not os.path.exists("/dev/full"):
        pytest.skip("only Linux has /dev/full")
    return "/dev/full"


@pytest.fixture
def run_recipe(monkeypatch, capsys):
    """Runs a recipe as `python recipes/NAME FLAGS` does, but in this process, which has imported torch already."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    monkeypatch.syspath_prepend(TESTS.parent / "recipes")

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(TESTS.parent / "recipes" / name), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return subprocess.CompletedProcess(sys.argv, code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny_config():
    """Makes a configuration of some thousand parameters; keywords are those of `from_size`."""
    from electra_hf.model.configuration import ElectraPretrainingConfig

    def make(discriminator=None, generator=None, **kwargs):
        network = {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "embedding_size": 8,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.2,
        }
        narrow = {**network, "num_hidden_layers": 1, "hidden_size": 8}
        return ElectraPretrainingConfig.from_size(
            "small",
            vocab_size=VOCAB_SIZE,
            discriminator={**network, **(discriminator or {})},
            generator={**narrow, **(generator or {})},
            **kwargs,
        )

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """Makes a pair of random weights, the same at every call."""
    from electra_hf.model.modeling import ElectraForPretraining

    def make(**kwargs):
        torch.manual_seed(0)
        return ElectraForPretraining(tiny_config(**kwargs))

    return make


@pytest.fixture
def rows():
    """Makes (n, LENGTH) random ids between [CLS] and [SEP], without padding."""

    def make(number, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCAB_SIZE, (number, LENGTH), generator=generator)
        ids[:, 0], ids[:, -1] = 2, 3
        return ids

    return make


@pytest.fixture
def make_trainer(tiny_model, rows, tmp_path):
    """Makes an `ElectraTrainer` of a tiny pair; keywords are training arguments, `train_rows` a number or rows."""
    from electra_hf import ElectraTrainer
    from electra_hf.training.arguments import PretrainingArguments

    def make(model=None, train_rows=64, test_rows=21, folder="run", **settings):
        defaults = {"max_steps": 4, "warmup_steps": 0.5, "logging_steps": 2, "per_device_train_batch_size": 8}
        arguments = PretrainingArguments(
            output_dir=str(tmp_path / folder), **{**defaults, **settings}, use_cpu=True, disable_tqdm=True
        )
        return ElectraTrainer(
            model or tiny_model(),
            arguments,
            train_dataset=packed(rows(train_rows)) if isinstance(train_rows, int) else train_rows,
            eval_dataset=packed(rows(test_rows, seed=9)),
        )

    return make


@pytest.fixture
def draws_by_row(monkeypatch):
    monkeypatch.setattr("electra_hf.model.corruption.torch.rand", by_row)

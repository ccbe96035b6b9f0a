"""Whatever happened to its inputs, its cache or its command: a run goes on, or is refused and nothing is touched."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from electra_hf.files import digest_folder
from electra_hf.recipe import parse_arguments

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
import export  # noqa: E402
import pretrain  # noqa: E402

from electra_hf.errors import InputError  # noqa: E402

NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'
TIMES = ("runtime", "per_second")


def text(seed):
    words = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo".split()
    chance = random.Random(seed)
    return "".join(" ".join(chance.choices(words, k=8)) + ".\n" for _ in range(200))


@pytest.fixture
def start(tmp_path):
    """Runs pretraining in `tmp_path / "run"` with flags beside the usual ones."""
    (tmp_path / "corpus.txt").write_text(text(0), encoding="utf-8")

    def run(**flags):
        settings = {
            "output_dir": tmp_path / "run",
            "corpus_files": tmp_path / "corpus.txt",
            "data_cache_dir": tmp_path / "cache",
            "test_share": 0.2,
            "vocab_size": 128,
            "max_length": 16,
            "discriminator": NETWORK,
            "generator": NETWORK,
            "max_steps": 4,
            "warmup_steps": 1,
            "save_steps": 2,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
        } | flags
        argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        pretrain.main(*parse_arguments(*pretrain.ARGUMENTS, argv=argv))

    return run


def results(folder):
    """What a run leaves, but for its times: digests of weights and tokenizers, numbers of the metrics."""
    digests = digest_folder(folder)
    kept = {name: digest for name, digest in digests.items() if name.endswith((".safetensors", "tokenizer.json"))}
    kept = {name: digest for name, digest in kept.items() if "totals_" not in name}
    metrics = json.loads((folder / "metrics.json").read_text())
    return kept | {name: value for name, value in metrics.items() if not any(word in name for word in TIMES)}


@pytest.fixture
def half_done(start, tmp_path):
    """A whole run in `whole`, and in `run` the same one stopped after its first checkpoint."""
    start()
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    for name in ("checkpoint-4", "discriminator", "generator"):
        shutil.rmtree(tmp_path / "run" / name)
    for name in ("metrics.json", "curves.png"):
        (tmp_path / "run" / name).unlink()
    return tmp_path


def touch(folder):
    (folder / "corpus.txt").touch()


def replace_by_equal_content(folder):
    content = (folder / "corpus.txt").read_bytes()
    (folder / "corpus.txt").unlink()
    (folder / "corpus.txt").write_bytes(content)


def lose_the_cache(folder):
    shutil.rmtree(folder / "cache")


def lose_the_tokenizer(folder):
    shutil.rmtree(folder / "run" / "tokenizer")


def cut_the_tokenizer(folder):
    path = folder / "run" / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.slow
@pytest.mark.parametrize(
    "event", [touch, replace_by_equal_content, lose_the_cache, lose_the_tokenizer, cut_the_tokenizer]
)
def test_a_run_goes_on_as_if_nothing_had_happened(half_done, start, event):
    event(half_done)
    start()
    assert results(half_done / "run") == results(half_done / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        ({"vocab_size": 192}, "vocab_size was 128, now 192"),
        ({"tokenizer_type": "bpe"}, "tokenizer_type was wordpiece, now bpe"),
        ({"lowercase": True}, "lowercase was False, now True"),
        ({"max_length": 12}, "max_length was 16, now 12"),
        ({"test_share": 0.5}, "other text"),
        ({"corpus_files": "other.txt"}, "other text"),
        ({"tokenizer_name_or_path": "other_tokenizer"}, "another tokenizer"),
        ({"learning_rate": 1.0}, "learning_rate was"),
        ({"per_device_train_batch_size": 4}, "rows of a step"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_and_leaves_no_trace(half_done, start, monkeypatch, flags, difference):
    monkeypatch.chdir(half_done)
    (half_done / "other.txt").write_text(text(1), encoding="utf-8")
    shutil.copytree(half_done / "run" / "tokenizer", half_done / "other_tokenizer")
    before = digest_folder(half_done / "run")
    with pytest.raises(InputError, match=difference):
        start(**flags)
    assert digest_folder(half_done / "run") == before
    start()
    assert results(half_done / "run") == results(half_done / "whole")


@pytest.mark.slow
def test_nothing_of_an_earlier_run_survives_a_fresh_start(start, tmp_path):
    start()
    tokenizer = (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_bytes()
    start(resume_from_checkpoint="never", objective="mlm", vocab_size=192)
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert not any("rtd" in name or "generator" in name for name in metrics)
    assert not (run / "generator").exists()
    assert (run / "tokenizer.aside" / "tokenizer.json").read_bytes() == tokenizer
    assert "rtd" not in (run / "discriminator" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_export_takes_the_checkpoint_s_own_tokenizer_or_refuses(start, tmp_path):
    start()
    checkpoint, out = tmp_path / "run" / "checkpoint-4", tmp_path / "out"
    (tmp_path / "run" / "tokenizer").rename(tmp_path / "elsewhere")

    def run_export():
        export.main(
            *parse_arguments(*export.ARGUMENTS, argv=["--checkpoint", str(checkpoint), "--output_dir", str(out)])
        )

    run_export()
    exported = json.loads((out / "discriminator" / "tokenizer_config.json").read_text())
    assert exported["model_max_length"] == 16
    trained = json.loads((tmp_path / "run" / "discriminator" / "tokenizer_config.json").read_text())
    assert trained == exported
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"la"', '"al"'), encoding="utf-8")
    with pytest.raises(InputError, match="is not the one that it was trained with"):
        run_export()

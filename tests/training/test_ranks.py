"""Several machines, each a launcher of its own on this one: they prepare once, start from the same, or stop."""

import json
import re
import shutil
from pathlib import Path

import pytest
from tiny import launch_machines, make_packed_rows, torchrun

from electra_hf.errors import AgreedError
from electra_hf.training.checkpoints import find_damage
from electra_hf.training.ranks import check_agreement, in_turns

RECIPE = Path(__file__).parents[2] / "recipes" / "pretrain.py"
NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'
SETTINGS = {
    **{"output_dir": "run", "corpus_files": "corpus.txt", "data_cache_dir": "cache", "test_share": 0.3},
    **{"vocab_size": 64, "max_length": 16, "generator": NETWORK, "discriminator": NETWORK},
    **{"max_steps": 4, "warmup_steps": 1, "logging_steps": 2, "save_steps": 2, "per_device_train_batch_size": 4},
    **{"use_cpu": "true", "disable_tqdm": "true", "report_to": "none"},
}
COMMAND = [part for name, value in SETTINGS.items() for part in (f"--{name}", value)]


def sentences(letters):
    return "\n".join(f"la {a} {b} {c}." for a in letters for b in "hijklmn" for c in "opqrstu")


@pytest.fixture
def machines(tmp_path):
    """Makes folders with a corpus each: those that machines work in which share no disk."""

    def make(*letters):
        folders = [tmp_path / str(number) for number in range(len(letters))]
        for folder, its in zip(folders, letters, strict=True):
            folder.mkdir()
            (folder / "corpus.txt").write_text(sentences(its), encoding="utf-8")
        return folders

    return make


def prepared(folder):
    """What was written once, by the moment of it."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}


def losses(folder, step=4):
    history = json.loads((folder / "run" / f"checkpoint-{step}" / "trainer_state.json").read_text())["log_history"]
    return [log["loss"] for log in history if "loss" in log]


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_machines_that_share_a_disk_prepare_once_and_train_one_model(machines, number):
    (folder,) = machines("abcdefg")
    outputs, codes = launch_machines([folder] * number, RECIPE, *COMMAND)
    assert codes == [0] * number, "\n".join(outputs)
    assert (folder / "run" / "metrics.json").exists()
    assert find_damage(folder / "run" / "checkpoint-4") is None
    assert len(list((folder / "run" / "checkpoint-4").glob("rng_state_*"))) == number
    assert not list((folder / "run").glob(".machine-*"))
    # Two splits, and the rows of each: as many files as one process makes.
    assert len(prepared(folder)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 3])
def test_machines_without_a_common_disk_train_one_model_and_each_can_go_on_from_its_own_checkpoint(machines, number):
    folders = machines(*["abcdefg"] * number)
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND)
    assert codes == [0] * number, "\n".join(outputs)
    for folder in folders:
        assert find_damage(folder / "run" / "checkpoint-4") is None
    first, *others = [(folder / "run" / "checkpoint-4" / "model.safetensors").read_bytes() for folder in folders]
    assert all(other == first for other in others)
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND, "--max_steps", 6)
    assert codes == [0] * number, "\n".join(outputs)
    assert losses(folders[0], 6)[:2] == losses(folders[0])


def check_refused(outputs, codes, *expected):
    """One message of all, on the first machine, that names the difference; every process has ended with code 2."""
    assert all(codes), "\n".join(outputs)
    errors = [line for output in outputs for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] in outputs[0], "\n".join(outputs)
    for words in expected:
        assert words in errors[0]
    for output in outputs:
        assert set(re.findall(r"exitcode *: (-?\d+)", output)) == {"2"}, output
        assert not re.search(r"Traceback.*\n.*recipes", output)


@pytest.mark.slow
def test_machines_with_other_text_are_refused_by_the_names_of_text_vocabulary_and_rows(machines):
    folders = machines("abcdefg", "abcdefgx")
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND, processes=2)
    check_refused(outputs, codes, "text (corpus_files)", "vocabulary.sha256", "rows.train", "on process 2 (")
    assert not (folders[0] / "run" / "corpus.json").exists()


@pytest.mark.slow
def test_machines_with_other_settings_are_refused_before_they_prepare_anything(machines):
    (folder,) = machines("abcdefg")
    own = [["--seed", 1], ["--seed", 2, "--learning_rate", 1e-3]]
    outputs, codes = launch_machines([folder] * 2, RECIPE, *COMMAND, own_arguments=own)
    check_refused(outputs, codes, "seed: 1 on process 0", "2 on process 1", "learning_rate: 0.0005 on process 0")
    assert not (folder / "cache").exists() and not (folder / "run").exists()


@pytest.mark.slow
def test_a_machine_that_lacks_the_corpus_ends_all_with_its_message(machines):
    folders = machines("abcdefg", "abcdefg")
    (folders[1] / "corpus.txt").unlink()
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND)
    check_refused(outputs, codes, "On process 1: ", "corpus.txt")


@pytest.mark.slow
def test_machines_that_would_go_on_from_different_steps_are_refused(machines):
    folders = machines("abcdefg", "abcdefg")
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND)
    assert codes == [0, 0], "\n".join(outputs)
    (folders[1] / "run" / "checkpoint-4" / "manifest.json").unlink()
    outputs, codes = launch_machines(folders, RECIPE, *COMMAND, "--max_steps", 6)
    check_refused(outputs, codes, "checkpoint.name: 'checkpoint-4' on process 0", "'checkpoint-2' on process 1")


def test_one_process_is_asked_nothing_and_waits_for_no_turn():
    check_agreement(lambda: pytest.fail("it was asked"))
    assert in_turns(lambda: 5) == 5


def test_a_difference_is_named_with_two_processes_and_their_machines(monkeypatch):
    sizes = {"a": 3, "b": 3, "c": 4}
    of_all = [{"host": host, "facts": {"seed": 1, "model.size": size}} for host, size in sizes.items()]
    monkeypatch.setattr("electra_hf.training.ranks.several_processes", lambda: True)
    monkeypatch.setattr("electra_hf.training.ranks.gather", lambda facts: of_all)
    with pytest.raises(AgreedError, match=r"differ: model.size: 3 on process 0 \(a\), 4 on process 2 \(c\)\. Start"):
        check_agreement(dict)
    of_all[2]["facts"] = {"seed": 1, "more": None, "model.size": 3}
    with pytest.raises(AgreedError, match="more: 'not there' on process 0"):
        check_agreement(dict)


@pytest.mark.slow
def test_the_signal_of_one_process_ends_both_at_the_same_step_and_no_step_waits_for_the_device(tmp_path):
    script = Path(__file__).parents[1] / "train_and_signal.py"
    with pytest.raises(AssertionError, match="exitcode *: 143"):
        torchrun(script, tmp_path)
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert reports[0]["step"] == reports[1]["step"] and 20 < reports[0]["step"] <= 23
    assert [report["signal"] for report in reports] == [15, 15]
    assert find_damage(tmp_path / "run" / f"checkpoint-{reports[0]['step']}") is None
    for report in reports:
        assert report["backend"] == "gloo"
        assert report["asked"] == [{"all_reduce, CPU, goes on": 1}] * 19


def train_by_row(folder, processes, **settings):
    """Through the real recipe, in `folder`: losses, metrics and output. Settings of None are left out.

    Rows do not fill the last batch of an epoch, nor batches its last step.
    """
    network = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "hidden_size": 128}
    network = json.dumps(json.loads(NETWORK) | network)
    own = {"output_dir": f"run-{processes}", "per_device_train_batch_size": 8 // processes}
    own |= {"gradient_accumulation_steps": 3, "logging_steps": 1, "generator": network, "discriminator": network}
    own = SETTINGS | own | {"max_steps": 6, "save_steps": 6, "learning_rate": 1e-4, **settings}
    flags = [part for name, value in own.items() if value is not None for part in (f"--{name}", value)]
    script = Path(__file__).parents[1] / "pretrain_by_row.py"
    output = torchrun(script, *flags, processes=processes, timeout=600)
    state = json.loads((folder / own["output_dir"] / "checkpoint-6" / "trainer_state.json").read_text())
    metrics = json.loads((folder / own["output_dir"] / "metrics.json").read_text())
    return [log["loss"] for log in state["log_history"] if "loss" in log], metrics, output


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder with a corpus, and losses and metrics of one process there."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "corpus.txt").write_text(sentences("abcdefg"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, *train_by_row(folder, 1)[:2]


# 1 MB, so that DistributedDataParallel and with it the compiler cut the pair into parts, as they do a large one.
COMPILED = {"torch_compile": "true", "ddp_bucket_cap_mb": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="eager"),
        pytest.param({**COMPILED, "torch_compile_backend": "aot_eager"}, id="traced"),
        pytest.param(
            COMPILED,
            id="compiled",
            marks=[
                pytest.mark.sweep(0),  # compiling takes two minutes
                pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU"),
            ],
        ),
    ],
)
def test_two_processes_with_accumulation_and_an_uneven_last_step_have_the_losses_of_one(alone, monkeypatch, settings):
    folder, losses_of_one, metrics_of_one = alone
    monkeypatch.chdir(folder)
    losses, metrics, output = train_by_row(folder, 2, resume_from_checkpoint="never", **settings)
    assert f"Training on 2 × cpu, fp32, {'compiled' if settings else 'not compiled'}." in output
    assert len(set(losses_of_one)) == 6 and losses == pytest.approx(losses_of_one, rel=1e-6)
    # An uneven step: fewer tokens than six of three micro-batches have.
    assert metrics["train_tokens"] == metrics_of_one["train_tokens"] < 6 * 3 * 8 * 16
    assert metrics["eval_loss"] == pytest.approx(metrics_of_one["eval_loss"], rel=1e-6)


@pytest.mark.slow
def test_two_processes_learn_from_shards_what_one_learns_with_accumulation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_packed_rows(tmp_path / "rows", sentences("abcdefg").splitlines(), vocab_size=64, tasks=3)
    of_rows = {"packed_rows": "rows", "corpus_files": None, "test_share": None, "per_device_train_batch_size": 4}
    (one, metrics, _), (two, others, _) = (
        train_by_row(tmp_path, processes, gradient_accumulation_steps=2 // processes, **of_rows)
        for processes in (1, 2)
    )
    assert len(set(one)) == 6 and two == pytest.approx(one, rel=1e-6)
    assert metrics["train_tokens"] == others["train_tokens"] == 6 * 2 * 4 * 16
    assert others["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)

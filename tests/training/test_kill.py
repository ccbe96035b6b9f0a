"""Kills and signals, as the machine of a cloud gives them."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from test_resume import assert_equal, load
from train_until_killed import SAVE, SAVE_STEPS, STEPS, kill_after, kill_at, run
from transformers import TrainerCallback

from electra_hf.recipe import STOP_SIGNALS, exit_on_signals
from electra_hf.training.checkpoints import find_damage, find_last_checkpoint, sorted_checkpoints
from electra_hf.training.stopping import CleanStop


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing has killed."""
    folder = tmp_path_factory.mktemp("never_killed") / "run"
    assert run(folder) == 0
    return folder


def check_end(folder, whole):
    """The run has reached its end, equals the one never killed, and never began before what it had saved."""
    last = f"checkpoint-{STEPS}"
    assert_equal(load(folder / last), load(whole / last))
    assert [find_damage(checkpoint) for checkpoint in sorted_checkpoints(folder)] == [None, None]
    saved, step = 0, 0
    for line in Path(f"{folder}.progress").read_text().splitlines():
        event, number = line.split()[0], int(line.split()[1])
        if event == "begin":
            assert number >= saved, f"began at {number}, though {saved} was saved"
            assert step - number <= SAVE_STEPS, f"{step - number} steps were lost"
        saved = number if event == "saved" else saved
        step = number


@pytest.mark.slow
@pytest.mark.sweep(8)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("function", "call"), SAVE)
def test_a_run_killed_at_a_step_of_a_save_ends_as_the_one_never_killed(whole, tmp_path, function, call, after):
    folder = tmp_path / "run"
    assert run(folder, partial(kill_at, function, call, after)) == -signal.SIGKILL
    assert run(folder) == 0
    check_end(folder, whole)


@pytest.mark.slow
@pytest.mark.sweep(3)
@pytest.mark.parametrize("seed", range(48))
def test_a_run_killed_at_random_moments_ends_as_the_one_never_killed(whole, tmp_path, seed):
    folder, chance = tmp_path / "run", random.Random(seed)
    cpu_seconds = float(Path(f"{whole}.cpu_seconds").read_text())
    # The first kill comes in the first half, so that it meets the run; the others may come too late, or at once.
    moments = [chance.uniform(0.01, latest * cpu_seconds) for latest in (0.5, 1.0, 1.0)]
    codes = [run(folder, partial(kill_after, moment)) for moment in moments]
    assert codes[0] == -signal.SIGPROF and set(codes[1:]) <= {0, -signal.SIGPROF}
    assert run(folder) == 0
    check_end(folder, whole)


@pytest.fixture
def recipe(tmp_path):
    """The command of a run that would take long, and its output_dir."""
    sentences = [f"la {a} {b} {c}." for a in "abcdefg" for b in "hijklmn" for c in "opqrstu"]
    (tmp_path / "corpus.txt").write_text("\n".join(sentences), encoding="utf-8")
    network = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'
    settings = {
        "output_dir": tmp_path / "run",
        "corpus_files": tmp_path / "corpus.txt",
        "data_cache_dir": tmp_path / "cache",
        "test_share": 0.3,
        "vocab_size": 64,
        "max_length": 16,
        "generator": network,
        "discriminator": network,
        "max_steps": 100_000,
        "save_steps": 100_000,
        "logging_steps": 5,
        "per_device_train_batch_size": 4,
        "use_cpu": "true",
        "disable_tqdm": "true",
        "report_to": "none",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [str(Path(__file__).parents[2] / "recipes" / "pretrain.py"), *flags], tmp_path / "run"


@pytest.fixture
def start():
    """Starts commands in process groups of their own, as a shell does. What a failed test leaves of them is killed."""
    processes = []

    def run(command):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen([sys.executable, *command], **pipes, start_new_session=True))
        return processes[-1]

    yield run
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_training(process):
    seen = ""
    for line in process.stdout:
        seen += line
        if "'loss'" in line:
            return
    raise AssertionError(seen)


def check_stopped(output_dir, after_step=1):
    (checkpoint,) = sorted_checkpoints(output_dir)
    assert find_damage(checkpoint) is None
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] >= after_step
    assert not any("eval_loss" in log for log in state["log_history"])
    for name in ("metrics.json", "discriminator", "generator", "curves.png"):
        assert not (output_dir / name).exists(), name


def children(process):
    """The processes that it has started, directly or not."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 0)])
def test_a_signal_to_the_whole_group_leaves_a_complete_checkpoint_and_its_exit_code(recipe, number, workers, start):
    command, output_dir = recipe
    process = start([*command, "--dataloader_num_workers", str(workers)])
    wait_for_training(process)
    assert len(children(process)) == workers
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)  # the same signal passed on a second time
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, output
    assert output.count("Signal received") == 1
    check_stopped(output_dir)


@pytest.mark.slow
def test_a_signal_to_the_group_of_torchrun_leaves_a_complete_checkpoint_of_two_processes_with_workers(recipe, start):
    command, output_dir = recipe
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start([*torchrun, *command, "--dataloader_num_workers", "2"])
    wait_for_training(process)
    everyone = children(process)
    assert len(everyone) >= 6
    for child in everyone:  # as the end of a container or of a cgroup does
        child.send_signal(signal.SIGTERM)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    check_stopped(output_dir)
    assert not any(child.is_running() for child in everyone)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_a_signal_to_the_group_of_a_run_that_compiles_leaves_a_complete_checkpoint(monkeypatch, tmp_path, start):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    process = start([str(Path(__file__).parents[1] / "train_and_compile.py"), str(tmp_path / "run")])
    while not any(child.name() == "cc1plus" for child in children(process)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    check_stopped(tmp_path / "run")


@pytest.mark.slow
def test_no_worker_survives_a_killed_run(recipe, start):
    process = start([*recipe[0], "--dataloader_num_workers", "2"])
    wait_for_training(process)
    workers = children(process)
    process.kill()
    process.wait()
    assert len(workers) == 2 and psutil.wait_procs(workers, timeout=30)[1] == []


def test_a_loader_given_up_half_way_ends_its_workers(make_trainer):
    loader = iter(make_trainer(dataloader_num_workers=2).get_train_dataloader())
    next(loader)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:  # as Python does at its end
        worker.terminate()
        worker.join(timeout=30)
        assert worker.exitcode == 0


@pytest.mark.slow
def test_a_signal_during_an_evaluation_of_two_processes_breaks_it_off_on_both_and_saves(recipe, monkeypatch, start):
    command, output_dir = recipe
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # the log is seen when it is written, and the evaluation follows it
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "5", "--per_device_eval_batch_size", "1"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start([*torchrun, *command, *evaluation, "--test_share", "0.9"])
    wait_for_training(process)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    check_stopped(output_dir, after_step=5)


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_complete_checkpoint_of_two_processes(recipe, start):
    command, output_dir = recipe
    process = start(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command])
    wait_for_training(process)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    check_stopped(output_dir)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of some kilobytes, or makes the one that it has mounted larger; needs root."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(kilobytes, *options):
        mount = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("only root can mount a disk")
        return place

    yield resize
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_is_one_message_and_code_2_and_with_more_room_the_run_goes_on(recipe, small_disk, start):
    command, _ = recipe
    output_dir = small_disk(1000) / "run"
    command += [
        "--output_dir",
        str(output_dir),
        "--max_steps",
        "30",
        "--warmup_steps",
        "5",
        "--save_steps",
        "5",
        "--save_total_limit",
        "99",
    ]
    process = start(command)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 2 and "Traceback" not in output, output
    assert output.count("error: output_dir: a checkpoint could not be saved") == 1, output
    newest = find_last_checkpoint(output_dir)
    assert newest and f"it goes on from {newest.name}." in output
    small_disk(20_000, "remount")
    process = start(command)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert find_last_checkpoint(output_dir).name == "checkpoint-30"
    assert (output_dir / "discriminator" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_limit_of_hours_leaves_a_complete_checkpoint_and_exit_code_0(recipe, start):
    command, output_dir = recipe
    process = start([*command, "--max_train_hours", "1e-9"])
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    check_stopped(output_dir)


@pytest.fixture
def stop():
    """A `CleanStop` whose handlers go with the test."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield CleanStop()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def interrupt(stop):
    """Send SIGTERM to this process, and wait until it has arrived."""
    os.kill(os.getpid(), signal.SIGTERM)
    while not stop.signal:
        time.sleep(0.001)


def run_until_stopped(trainer, stop):
    trainer.add_callback(stop)
    trainer.train()
    with pytest.raises(SystemExit) as end:
        stop.exit_if_stopped()
    assert end.value.code == 143
    assert find_damage(Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}") is None


def test_a_signal_during_an_evaluation_breaks_it_off_and_saves(make_trainer, stop):
    trainer = make_trainer(
        max_steps=50, save_strategy="no", eval_strategy="steps", eval_steps=3, per_device_eval_batch_size=1
    )
    batches = []

    class AtBatch(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            batches.append(state.global_step)
            if len(batches) == 2:
                interrupt(stop)

    trainer.add_callback(AtBatch())
    run_until_stopped(trainer, stop)
    assert trainer.state.global_step == 3 and len(batches) in (2, 3)
    assert not any("eval_loss" in log for log in trainer.state.log_history)


def test_a_signal_during_the_last_evaluation_ends_at_once_with_its_code(make_trainer, stop):
    exit_on_signals()  # as every recipe does
    trainer = make_trainer(max_steps=2, save_steps=2, per_device_eval_batch_size=1)
    trainer.add_callback(stop)
    trainer.train()
    stop.exit_if_stopped()

    class AtBatch(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)

    trainer.add_callback(AtBatch())
    with pytest.raises(SystemExit) as end:
        trainer.evaluate()
    assert end.value.code == 130


def test_after_training_signals_are_handled_as_before(make_trainer):
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    trainer = make_trainer(max_steps=2)
    trainer.add_callback(CleanStop())
    trainer.train()
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)


@pytest.mark.parametrize("max_steps", [2, 50])
def test_a_signal_during_a_save_ends_the_run_with_that_checkpoint(make_trainer, stop, monkeypatch, max_steps):
    trainer = make_trainer(max_steps=max_steps, save_steps=2)
    save = trainer._save_rng_state

    def save_and_signal(folder):
        interrupt(stop)
        save(folder)

    monkeypatch.setattr(trainer, "_save_rng_state", save_and_signal)
    run_until_stopped(trainer, stop)
    assert trainer.state.global_step == 2


def test_a_signal_at_the_end_of_an_epoch_is_not_followed_by_its_evaluation(make_trainer, stop):
    trainer = make_trainer(max_steps=50, train_rows=32, save_strategy="epoch", eval_strategy="epoch")

    class AtStep(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                interrupt(stop)

    trainer.add_callback(AtStep())
    run_until_stopped(trainer, stop)
    assert trainer.state.global_step == 4
    assert not any("eval_loss" in log for log in trainer.state.log_history)


@pytest.mark.parametrize(("seconds", "ends"), [(0.1, False), (3.0, True)])
def test_a_second_signal_ends_at_once_unless_it_is_the_first_one_passed_on_twice(stop, monkeypatch, seconds, ends):
    now, codes = [100.0], []
    monkeypatch.setattr("electra_hf.training.stopping.time.monotonic", lambda: now[0])
    monkeypatch.setattr("electra_hf.training.stopping.os._exit", codes.append)
    stop._receive(signal.SIGTERM, None)
    now[0] += seconds
    stop._receive(signal.SIGTERM, None)
    assert codes == ([143] if ends else [])

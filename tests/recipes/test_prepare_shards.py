"""prepare_shards.py and pretrain.py --packed_rows as a user runs them."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import fsspec
import psutil
import pytest
import yaml

pytest.importorskip("datatrove", reason="needs the extra electra-hf[shards]")

import loguru
from make_shards import start, write_corpus

from electra_hf.errors import InputError
from electra_hf.files import digest_folder
from electra_hf.text.shard_job import write_fault
from electra_hf.text.shards import Ray, TaskFailed, run_in_processes
from electra_hf.text.stages import run_task

ROOT = Path(__file__).parents[2]
NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'
WORDS = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo".split()


@pytest.fixture
def folder(tmp_path):
    """A folder with corpus.txt."""
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=8)) + "." for _ in range(1500)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def prepare_flags(folder, **changes):
    settings = {
        **{"corpus_files": folder / "corpus.txt", "output_dir": folder / "shards", "tasks": 3, "test_share": 0.1},
        **{"vocab_size": 128, "max_length": 16, "data_cache_dir": folder / "cache", **changes},
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def pretrain_flags(folder, **changes):
    settings = {
        **{"packed_rows": folder / "shards", "output_dir": folder / "run", "discriminator": NETWORK},
        **{"generator": NETWORK, "max_steps": 4, "warmup_steps": 2, "logging_steps": 2, "save_steps": 2},
        **{"per_device_train_batch_size": 8, "use_cpu": "true", "disable_tqdm": "true", **changes},
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


@pytest.fixture
def shards(folder, run_recipe):
    """The folder, with finished shards in it."""
    result = run_recipe("prepare_shards.py", *prepare_flags(folder))
    assert result.returncode == 0, result.stderr
    return folder


def check_refused(result, message):
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.stderr


def content(folder):
    return {name: sha256 for name, sha256 in digest_folder(folder).items() if name != ".lock"}


def nothing_in(folder):
    return not folder.exists() or {path.name for path in folder.iterdir()} <= {".lock"}  # which the process removes


def test_shards_are_trained_from_with_the_settings_that_made_them(shards, run_recipe):
    assert not (shards / "shards" / "unfinished").exists()
    before = content(shards / "shards")
    result = run_recipe("pretrain.py", *pretrain_flags(shards))
    assert result.returncode == 0, result.stderr
    run, made = shards / "run", shards / "shards"
    assert json.loads((run / "corpus.json").read_text()) == json.loads((made / "corpus.json").read_text())
    for name in ("discriminator", "tokenizer"):
        assert (run / name / "tokenizer.json").read_bytes() == (made / "tokenizer" / "tokenizer.json").read_bytes()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["max_length"] == 16 and recipe["vocab_size"] == 128 and recipe["test_share"] == 0.1
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["train_tokens"] == 4 * 8 * 16
    # The record of the run is itself a recipe: it finds the run done. And nobody has written to the shards.
    again = run_recipe("pretrain.py", "--config", run / "recipe.yaml")
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "metrics.json").read_text())["eval_loss"] == metrics["eval_loss"]
    assert content(made) == before


def test_a_run_from_rows_at_an_address_is_the_run_from_their_folder(shards, run_recipe):
    storage = fsspec.filesystem("memory")
    storage.put(str(shards / "shards"), "/rented/rows", recursive=True)
    try:
        addressed = {"packed_rows": "memory://rented/rows", "data_cache_dir": shards / "cache"}
        for name, settings in (("here", {}), ("there", addressed)):
            result = run_recipe("pretrain.py", *pretrain_flags(shards, output_dir=shards / name, **settings))
            assert result.returncode == 0, result.stderr
    finally:
        storage.rm("/rented", recursive=True)
    models = [(shards / name / "discriminator" / "model.safetensors").read_bytes() for name in ("here", "there")]
    assert models[0] == models[1]
    check_refused(run_recipe("pretrain.py", *pretrain_flags(shards, **addressed)), "(manifest.json is not there)")


def test_a_finished_job_is_found_finished_and_another_one_is_refused(shards, run_recipe):
    before = content(shards / "shards")
    again = run_recipe("prepare_shards.py", *prepare_flags(shards))
    assert again.returncode == 0 and "1,3" in again.stdout
    check_refused(run_recipe("prepare_shards.py", *prepare_flags(shards, tasks=4)), "tasks was 3, now 4")
    assert content(shards / "shards") == before


def test_near_duplicates_are_left_out_where_they_are_asked_for(folder, run_recipe):
    lines = (folder / "corpus.txt").read_text().splitlines()
    documents = [" ".join(lines[start : start + 10]) for start in range(0, 1500, 10)]
    (folder / "corpus.txt").write_text("\n\n".join(documents + [text.replace(".", ";") for text in documents[:20]]))
    asked = prepare_flags(folder, near_duplicates=0.9)
    check_refused(run_recipe("prepare_shards.py", *asked), "near_duplicates: are looked for among documents")
    assert nothing_in(folder / "shards")
    result = run_recipe("prepare_shards.py", *asked, "--text_unit", "document")
    assert result.returncode == 0, result.stderr
    assert "clusters: 1 tasks" in result.stdout and "near duplicate\n" in result.stdout
    report = json.loads((folder / "shards" / "corpus.json").read_text())
    assert (report["total"]["near_duplicate"], report["total"]["kept"]) == (20, 150)
    card = (folder / "shards" / "README.md").read_text()
    assert "20 near-duplicates (MinHash, Jaccard similarity 0.9)" in card and "documents held out" not in card
    assert "| source | documents read | kept |" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_files": "corpus.txt"}, "corpus_files: cannot be set beside packed_rows"),
        ({"exclude_files": "pos.conll"}, "exclude_files: cannot be set beside packed_rows"),
        ({"vocab_size": 256}, "vocab_size: 256 is not what the packed rows were made with, 128"),
        ({"max_length": 32}, "max_length: 32 is not what the packed rows were made with, 16"),
        ({"tokenizer_type": "bpe"}, "tokenizer_type: 'bpe' is not what the packed rows were made with, 'wordpiece'"),
        ({"packed_rows": "nowhere"}, "packed_rows: nowhere holds no packed rows (there is no such folder)"),
        (
            {"packed_rows": "outputs/nowhere"},
            "packed_rows: there is no folder outputs/nowhere here, and no such dataset",
        ),
        ({"packed_rows": ""}, "packed_rows: is empty"),
        ({"tokenizer_name_or_path": "TOKENIZER"}, "these rows were packed with another tokenizer than that of"),
    ],
)
def test_settings_that_contradict_the_rows_are_refused(shards, run_recipe, changes, message):
    if changes.get("tokenizer_name_or_path"):
        shutil.copytree(shards / "shards" / "tokenizer", shards / "tokenizer")
        text = (shards / "tokenizer" / "tokenizer.json").read_text()
        (shards / "tokenizer" / "tokenizer.json").write_text(text.replace('"##a"', '"##å"'))
        changes = {"tokenizer_name_or_path": shards / "tokenizer"}
    check_refused(run_recipe("pretrain.py", *pretrain_flags(shards, **changes)), message)
    assert nothing_in(shards / "run")


def test_a_flipped_bit_is_refused_before_anything_is_written(shards, run_recipe):
    path = shards / "shards" / "train" / "00001.arrow"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    check_refused(run_recipe("pretrain.py", *pretrain_flags(shards)), "train/00001.arrow is not as manifest.json says")
    assert nothing_in(shards / "run")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_input_stops_the_job_with_its_file_and_line(folder, run_recipe, workers):
    (folder / "b.jsonl").write_text('{"text": "unu"}\n{"text": \n')
    flags = prepare_flags(folder, corpus_files=folder / "b.jsonl", workers=workers)
    if workers == 1:
        result = run_recipe("prepare_shards.py", *flags)
    else:
        command = [sys.executable, str(ROOT / "recipes" / "prepare_shards.py"), *flags]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    check_refused(result, "b.jsonl, line 2: not one JSON object per line")
    assert result.stderr.count("b.jsonl") == 1
    check_refused(run_recipe("pretrain.py", *pretrain_flags(folder)), "is not finished. Start its prepare_shards.py")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus_files": "nowhere.txt"}, "nowhere.txt: there is no such file"),
        ({"tasks": 0}, "tasks: expected at least 1, got 0"),
        ({"executor": "cloud"}, "executor"),
        ({"executor": "jobs"}, "executor: jobs is not built. The Jobs of Hugging Face share no disk"),
        ({"max_length": 2}, "max_length: expected at least 3"),
        ({"tokenizer_type": "words"}, "tokenizer_type"),
        ({"tokenizer_name_or_path": "nowhere"}, "nowhere holds no tokenizer"),
        ({"dataset_name": "me/texts"}, "dataset_name: shards are made from files"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(folder, run_recipe, changes, message):
    check_refused(run_recipe("prepare_shards.py", *prepare_flags(folder, **changes)), message)
    assert not (folder / "shards").exists()


def test_without_what_an_executor_needs_the_message_says_what_to_install(folder, run_recipe, monkeypatch):
    for missing, executor, message in (
        ("datatrove", "local", "pip install 'electra-hf[shards]'"),
        ("ray", "ray", "pip install ray"),
    ):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, *rest, gone=missing: None if name == gone else find_spec(name, *rest),
        )
        check_refused(run_recipe("prepare_shards.py", *prepare_flags(folder, executor=executor)), message)
    assert not (folder / "shards").exists()


@pytest.mark.slow
def test_a_task_that_the_system_ends_ends_the_job_and_says_so():
    with pytest.raises(InputError, match="task 1 was ended by the system .exit code -9.*fewer workers"):
        run_in_processes(end_itself, [0, 1], 2)


def end_itself(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)


class NeedsTwo(Exception):
    """It is pickled with one argument and made again from that one: the second is missing then."""

    def __init__(self, what, where):
        super().__init__(f"{what} in {where}")


class HoldsLock(Exception):
    """It cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@pytest.mark.slow
def test_the_text_of_any_error_of_a_task_comes_back_from_its_process():
    with pytest.raises(TaskFailed, match="task 0 has failed: NeedsTwo: ŝtono in ŝuo"):
        run_in_processes(fail, [0], 2)
    with pytest.raises(TaskFailed, match="task 1 has failed: HoldsLock: ŝtono"):
        run_in_processes(fail, [1], 2)
    with pytest.raises(InputError, match="task 2: ŝuo: No space left on device"):
        run_in_processes(fail, [2], 2)


def fail(task):
    raise (NeedsTwo("ŝtono", "ŝuo"), HoldsLock("ŝtono"), OSError(errno.ENOSPC, "No space left on device", "ŝuo"))[task]


def broken(task, error, stage="clean"):
    """`run_task`, but for one task of a stage."""

    def run_or_fail(job, *names):
        if names == (stage, task):
            raise error
        run_task(job, *names)

    return run_or_fail


def test_a_defect_names_its_task_and_the_job_goes_on_with_a_corpus_that_has_moved(folder, run_recipe, monkeypatch):
    (folder / "old").mkdir()
    shutil.copy(folder / "corpus.txt", folder / "old")
    monkeypatch.setattr("electra_hf.text.shards.run_task", broken(1, HoldsLock("ŝtono")))
    with pytest.raises(TaskFailed, match="task 1 of the stage clean has failed: HoldsLock: ŝtono"):
        run_recipe("prepare_shards.py", *prepare_flags(folder, corpus_files=folder / "old"))
    monkeypatch.undo()
    shutil.rmtree(folder / "old")
    result = run_recipe("prepare_shards.py", *prepare_flags(folder))
    assert result.returncode == 0 and "clean: 2 tasks" in result.stdout, result.stderr


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Starts a part of the tasks as on a machine of its own: each `next` of what comes back is one stage there."""
    write_corpus(tmp_path)
    for name in ("PATIENCE", "LOOK_AGAIN"):
        monkeypatch.setattr(f"electra_hf.text.shards.{name}", 0)
    folder = tmp_path / "shards"
    return lambda first, number, **settings: start(tmp_path, folder, task_offset=first, local_tasks=number, **settings)


def test_a_machine_stops_for_the_fault_of_another_one_and_goes_on_when_both_are_started_again(
    machines, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("electra_hf.text.shards.run_task", broken(2, InputError("b.txt, line 7: broken.")))
        first, second = machines(0, 2), machines(2, 1)
        assert next(first)[:2] == ("clean", 2)
        with pytest.raises(InputError, match="^b.txt, line 7: broken.$"):
            next(second)
        with pytest.raises(InputError, match="Another machine has stopped.*b.txt, line 7: broken.$"):
            next(first)
    # The one that failed is started first, and then the one that waited for it.
    second, first = machines(2, 1), machines(0, 2)
    assert next(second)[:2] == ("clean", 1)
    for stage in ("duplicates", "bands", "links"):
        assert [next(machine)[:2] for machine in (first, second)] == [(stage, 2), (stage, 1)]
    assert next(first)[:2] == ("clusters", 1)
    assert [next(machine)[:2] for machine in (first, second)] == [("texts", 2), ("texts", 1)]
    assert [next(first)[:2] for _ in range(2)] == [("tokenizer", 1), ("rows", 2)]
    assert next(second)[:2] == ("rows", 1)
    assert list(first) == [] and list(second) == []
    assert list(start(tmp_path, tmp_path / "alone"))
    assert content(tmp_path / "shards") == content(tmp_path / "alone")


def test_a_machine_that_was_started_again_in_time_is_waited_for(machines, tmp_path, monkeypatch):
    monkeypatch.setattr("electra_hf.text.shards.PATIENCE", 1e6)
    first = machines(0, 2)
    next(first)
    write_fault(tmp_path / "shards", "clean", 2, "a disk was full")
    second = machines(2, 1)  # which removes what it left itself
    monkeypatch.setattr("electra_hf.text.shards.PATIENCE", 0)
    next(second)
    assert next(first)[:2] == ("duplicates", 2)


def test_a_task_that_the_system_has_ended_stops_the_other_machines_too(machines, monkeypatch):
    first, second = machines(0, 1), machines(1, 2, workers=2)
    assert next(first)[:2] == ("clean", 1)

    def end(run, tasks, workers):
        raise InputError("task 1 was ended by the system.")

    monkeypatch.setattr("electra_hf.text.shards.run_in_processes", end)
    for machine in (second, first):
        with pytest.raises(InputError, match="ended by the system"):
            next(machine)


def run_as_ray(executor):
    """Runs every task, and raises nothing."""
    loguru.logger.disable("datatrove")  # there it writes to the logs of the worker
    for task in executor.get_incomplete_ranks():
        with suppress(Exception):
            executor._run_for_rank(task)


def test_on_ray_the_fault_of_this_start_is_told_and_not_that_of_an_earlier_one(folder, run_recipe, monkeypatch):
    monkeypatch.setattr(Ray, "run", run_as_ray)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *package: name == "ray" or find_spec(name, *package))
    flags = prepare_flags(folder, executor="ray")
    for stage, error, message in (
        ("clean", HoldsLock("ŝtono"), "error: task 1 of the stage clean has failed: HoldsLock: ŝtono"),
        ("texts", InputError("corpus.txt, line 7: broken."), "error: corpus.txt, line 7: broken."),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("electra_hf.text.shards.run_task", broken(1, error, stage))
            check_refused(run_recipe("prepare_shards.py", *flags), message)
    assert run_recipe("prepare_shards.py", *flags).returncode == 0


@pytest.fixture
def ray_cluster(monkeypatch):
    """Ray on this machine, with room for two tasks; a busy machine takes long to start it."""
    ray = pytest.importorskip("ray", reason="needs `pip install ray`")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    patience = {"raylet_start_wait_time_s": 300, "gcs_server_request_timeout_seconds": 300}
    settings = {**patience, "worker_niceness": 0}  # 15, the default, is next to nothing there
    small = {"object_store_memory": 100 << 20, "include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=2, _system_config=settings, **small)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a process for each task, which all import everything
def test_ray_makes_the_same_shards_and_tells_the_fault_of_a_task(shards, run_recipe, ray_cluster):
    flags = {"executor": "ray", "workers": 2, "memory_gb": 1}
    (shards / "b.jsonl").write_text('{"text": "unu"}\n{"text": \n')
    result = run_recipe("prepare_shards.py", *prepare_flags(shards, output_dir=shards / "ray", **flags))
    assert result.returncode == 0, result.stderr
    assert "clean: 3 tasks" in result.stdout and content(shards / "ray") == content(shards / "shards")
    broken = {"corpus_files": shards / "b.jsonl", "output_dir": shards / "broken", "tasks": 1}
    result = run_recipe("prepare_shards.py", *prepare_flags(shards, **broken, **flags))
    check_refused(result, "b.jsonl, line 2: not one JSON object per line")


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them_and_the_next_one_goes_on(shards):
    expected = content(shards / "shards")
    flags = prepare_flags(shards, output_dir=shards / "killed", workers=2)
    command = [sys.executable, str(ROOT / "recipes" / "prepare_shards.py"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("clean: 3 tasks")
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert (shards / "killed" / "unfinished" / "clean" / "00002").is_dir()
    assert subprocess.run(command, timeout=300).returncode == 0
    assert content(shards / "killed") == expected


@pytest.mark.slow
def test_two_machines_by_hand_make_the_same_shards(shards):
    expected = content(shards / "shards")
    processes = []
    for offset, number in ((0, 2), (2, 1)):
        flags = prepare_flags(shards, output_dir=shards / "by_hand", task_offset=offset, local_tasks=number)
        command = [sys.executable, str(ROOT / "recipes" / "prepare_shards.py"), *flags]
        processes.append(subprocess.Popen(command))
        time.sleep(0.5)
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    assert content(shards / "by_hand") == expected


FAKE_SLURM = {
    # Runs the array as Slurm does after the jobs that it depends on, here at once, and says its number last.
    "sbatch": """script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" >> "$FAKE_LOG" 2>&1 || exit 1
done
echo Submitted batch job $RANDOM""",
    "srun": 'shift 3; exec "$@"',
    "scontrol": "echo here",
}


@pytest.fixture
def slurm(folder, monkeypatch):
    """Stand-ins for the commands of Slurm, which run what they are given at once."""
    commands = folder / "bin"
    commands.mkdir()
    for name, script in FAKE_SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("FAKE_LOG", str(folder / "slurm.log"))


@pytest.mark.slow
@pytest.mark.timeout(900)  # a process for each of six stages, which all import everything
def test_slurm_is_given_a_job_for_each_stage_and_makes_the_same_shards(shards, run_recipe, slurm):
    flags = prepare_flags(shards, output_dir=shards / "slurm", executor="slurm", tasks=1)
    result = run_recipe("prepare_shards.py", *flags)
    assert result.returncode == 0, (result.stderr, (shards / "slurm.log").read_text()[-3000:])
    # Once more finds nothing to do: no job is submitted.
    (shards / "bin" / "sbatch").unlink()
    assert run_recipe("prepare_shards.py", *flags).returncode == 0
    assert run_recipe("prepare_shards.py", *prepare_flags(shards, output_dir=shards / "one", tasks=1)).returncode == 0
    assert content(shards / "slurm") == content(shards / "one")


def test_a_dry_run_prints_the_scripts_of_slurm_and_writes_nothing(folder, run_recipe):
    flags = prepare_flags(folder, executor="slurm", workers=2, dry_run="true", slurm_partition="night", memory_gb=3)
    result = run_recipe("prepare_shards.py", *flags)
    assert result.returncode == 0, result.stderr
    for line, number in (
        *(("#SBATCH --partition=night", 6), ("#SBATCH --mem-per-cpu=3G", 6), ("#SBATCH --array=0-2%2", 4)),
        *(("#SBATCH --array=0-0%2", 2), ("#SBATCH --job-name=shards_seal", 1)),
        (f"launch_pickled_pipeline {folder}/shards/unfinished/logs/clean/executor.pik", 1),
        (f"#SBATCH --output={folder}/shards/unfinished/logs/clean/slurm_logs/%A_%a.out", 1),
    ):
        assert result.stdout.count(line) == number, line
    assert not (folder / "shards").exists()


def test_without_slurm_the_message_says_so(folder, run_recipe, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    flags = prepare_flags(folder, executor="slurm")
    check_refused(run_recipe("prepare_shards.py", *flags), "executor: sbatch did not take the job")
    # What a task there has left is told by the next start, and then forgotten.
    write_fault(folder / "shards", "clean", 1, "corpus.txt, line 7: broken.")
    assert "The start before has failed: corpus.txt, line 7" in run_recipe("prepare_shards.py", *flags).stdout
    assert "has failed" not in run_recipe("prepare_shards.py", *flags).stdout

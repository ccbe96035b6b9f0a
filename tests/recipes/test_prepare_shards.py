"""prepare_shards.py and pretrain.py --packed_rows as a user runs them."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

pytest.importorskip("datatrove", reason="needs the extra electra-hf[shards]")

from electra_hf.errors import InputError
from electra_hf.files import digest_folder
from electra_hf.text.shards import run_in_processes

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


def test_a_finished_job_is_found_finished_and_another_one_is_refused(shards, run_recipe):
    before = content(shards / "shards")
    again = run_recipe("prepare_shards.py", *prepare_flags(shards))
    assert again.returncode == 0 and "1,3" in again.stdout
    check_refused(run_recipe("prepare_shards.py", *prepare_flags(shards, tasks=4)), "tasks was 3, now 4")
    assert content(shards / "shards") == before


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
        ({"max_length": 2}, "max_length: expected at least 3"),
        ({"tokenizer_type": "words"}, "tokenizer_type"),
        ({"tokenizer_name_or_path": "nowhere"}, "nowhere holds no tokenizer"),
        ({"dataset_name": "me/texts"}, "dataset_name: shards are made from files"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(folder, run_recipe, changes, message):
    check_refused(run_recipe("prepare_shards.py", *prepare_flags(folder, **changes)), message)
    assert not (folder / "shards").exists()


def test_without_the_extra_the_message_says_what_to_install(folder, run_recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_refused(run_recipe("prepare_shards.py", *prepare_flags(folder)), "pip install 'electra-hf[shards]'")


@pytest.mark.slow
def test_a_task_that_the_system_ends_ends_the_job_and_says_so():
    with pytest.raises(InputError, match="task 1 was ended by the system .exit code -9.*fewer workers"):
        run_in_processes(end_itself, [0, 1], 2)


def end_itself(task):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)


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

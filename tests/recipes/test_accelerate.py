"""How to start on GPUs: accelerate reads the files as they are meant, and the pages name what is there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")


def launched(file, *flags):
    """What accelerate would do with a file."""
    arguments = launch_command_parser().parse_args(["--config_file", str(file), *flags, "recipes/pretrain.py"])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize(
    ("name", "machines", "processes"), [("one_gpu", 1, 1), ("eight_gpus", 1, 8), ("two_machines", 2, 16)]
)
def test_accelerate_starts_so_many_processes_on_gpus_and_leaves_the_precision_to_the_recipe(name, machines, processes):
    arguments = launched(FOLDER / f"{name}.yaml")
    assert (arguments.num_machines, arguments.num_processes) == (machines, processes)
    assert bool(arguments.multi_gpu) == (processes > 1) and not arguments.use_cpu
    assert arguments.mixed_precision == "no" and not arguments.use_fsdp and not arguments.use_deepspeed


def test_flags_say_which_machine_it_is_and_where_the_first_one_is():
    arguments = launched(FOLDER / "two_machines.yaml", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    assert (arguments.machine_rank, arguments.main_process_ip) == (1, "10.0.0.1")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_file_has_the_command_of_accelerate_and_of_torchrun_above_it(file):
    text = file.read_text(encoding="utf-8")
    assert f"--config_file recipes/accelerate/{file.name}" in text and f"recipes/accelerate/{file.name}" in PAGE
    assert re.search(r"^# The same.*(torchrun|python) .*recipes/pretrain.py", text, re.MULTILINE)
    processes = re.search(r"--nproc_per_node (\d+)", text)
    settings = yaml.safe_load(text)
    assert settings["num_processes"] == settings["num_machines"] * int(processes[1] if processes else 1)


def test_the_rows_of_a_step_are_the_product_in_every_line_of_the_table_and_those_of_the_recipe():
    recipe = yaml.safe_load((FOLDER.parent / "esperanto_small" / "pretrain.yaml").read_text())
    lines = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert len(lines) >= 4
    for processes, batch, accumulation, rows in lines:
        assert int(processes) * int(batch) * int(accumulation) == int(rows) == recipe["per_device_train_batch_size"]


def test_the_script_for_slurm_is_one_that_bash_reads_and_gives_each_machine_its_own_number(tmp_path):
    script = FOLDER / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    for name, body in {
        "scontrol": "echo first; echo second",
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "torchrun": 'echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "31234567", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **job}
    flags = ["--config", "a.yaml", "--corpus_files", "my text.txt"]
    run = subprocess.run(["bash", str(script), *flags], env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == (
        "--nnodes 2 --node_rank 1 --nproc_per_node 8 --master_addr first --master_port 24567 "
        "recipes/pretrain.py --config a.yaml --corpus_files my text.txt"
    ), run.stderr


def test_the_time_that_slurm_leaves_is_enough_for_a_checkpoint_and_the_signal_is_one_that_a_run_answers_to():
    assert "#SBATCH --signal=TERM@300" in (FOLDER / "slurm.sh").read_text(encoding="utf-8")

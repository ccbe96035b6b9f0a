"""A tiny run in a process of its own that is killed, at a named step of a save or after some CPU time.

Each process is forked from one that has imported everything already (multiprocessing's fork server).
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from unittest.mock import patch

from train_and_resume import make_trainer
from transformers import TrainerCallback

from electra_hf.training import trainer as trainer_module
from electra_hf.training.checkpoints import checkpoint_to_resume

STEPS, SAVE_STEPS = 12, 3
SETTINGS = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 2, "learning_rate": 1e-3}
SAVE = [  # in the order of a save; the number says at which call of it
    ("transformers.Trainer.save_model", 3),
    ("transformers.Trainer._save_optimizer_and_scheduler", 1),
    ("transformers.Trainer._save_rng_state", 3),
    ("electra_hf.training.trainer.TrainerState.save_to_json", 1),
    ("electra_hf.training.trainer.save_totals", 3),
    ("electra_hf.training.trainer.save_identity", 1),
    ("electra_hf.training.trainer.mark_written", 3),
    ("electra_hf.training.checkpoints.os.replace", 1),  # of the mark
    ("electra_hf.training.trainer.write_manifest", 3),
    ("electra_hf.training.checkpoints._describe", 1),
    ("electra_hf.training.checkpoints._flush", 3),
    ("electra_hf.training.checkpoints.os.replace", 2),  # of the manifest
    ("electra_hf.training.trainer.rotate", 3),
    ("electra_hf.training.checkpoints.shutil.rmtree", 1),
]


def start_nothing() -> None:
    """For a run that nothing kills."""


def kill_at(target: str, call: int, after: bool) -> None:
    """Make this process kill itself before or after the given call of a function."""
    original, calls = resolve_name(target), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    patch(target, wrapped).start()


def kill_after(cpu_seconds: float) -> None:
    """Let the system kill this process once it has worked for so long; waiting for other processes does not count."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


class Progress(TrainerCallback):
    """Writes where the run is to a file that outlives it."""

    def __init__(self, file):
        self.file = open(file, "a", buffering=1)

    def on_train_begin(self, args, state, control, **kwargs):
        self.file.write(f"begin {state.global_step}\n")

    def on_step_end(self, args, state, control, **kwargs):
        self.file.write(f"step {state.global_step}\n")


def train(folder: Path, prepare: Callable[[], None]) -> None:
    """Train to the end, from the newest checkpoint in `folder` if there is one; `prepare` may arrange for a kill."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    prepare()
    trainer = make_trainer(folder, **SETTINGS)
    progress = Progress(f"{folder}.progress")
    trainer.add_callback(progress)
    mark_written = trainer_module.mark_written

    def mark_and_tell(checkpoint):
        mark_written(checkpoint)
        progress.file.write(f"saved {checkpoint.name.split('-')[1]}\n")

    trainer_module.mark_written = mark_and_tell
    trainer.train(checkpoint_to_resume(folder, "auto"))
    Path(f"{folder}.cpu_seconds").write_text(str(time.process_time()))


def run(folder: Path, prepare: Callable[[], None] = start_nothing) -> int:
    """Train in a process of its own; returns its exit code, or the negative number of the signal that killed it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["electra_hf.training.trainer", "transformers.models.electra.modeling_electra"])
    process = server.Process(target=train, args=(folder, prepare))
    process.start()
    process.join()
    return process.exitcode

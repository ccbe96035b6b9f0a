"""A tiny run killed again and again, at named steps of a save and at random moments.

One process imports everything and forks a child for each start; it prints what it counted, or fails.

python tests/train_until_killed.py FOLDER [NAMED RANDOM]: so many of the named steps, and kills at random moments.
Without the two numbers it is the whole sweep: every named step, before and after it, and 145 random kills.
test_kill.py runs a sample.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

from test_resume import assert_equal, load
from train_and_resume import make_trainer
from transformers import TrainerCallback

from electra_hf.training import trainer as trainer_module
from electra_hf.training.checkpoints import checkpoint_to_resume, find_damage, sorted_checkpoints

STEPS, SAVE_STEPS = 12, 3
SETTINGS = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 2, "learning_rate": 1e-3}
SAVE = [  # in the order of a save; the number says at which call of it
    ("transformers.Trainer.save_model", 3),
    ("transformers.Trainer._save_optimizer_and_scheduler", 1),
    ("transformers.Trainer._save_rng_state", 3),
    ("electra_hf.training.trainer.TrainerState.save_to_json", 1),
    ("electra_hf.training.trainer.ElectraTrainer._save_sums", 3),
    ("electra_hf.training.trainer.save_identity", 1),
    ("electra_hf.training.trainer.mark_written", 3),
    ("electra_hf.training.checkpoints.os.replace", 1),  # of the mark
    ("electra_hf.training.trainer.seal", 3),
    ("electra_hf.training.checkpoints._describe", 1),
    ("electra_hf.training.checkpoints._flush", 3),
    ("electra_hf.training.checkpoints.os.replace", 2),  # of the manifest
    ("electra_hf.training.trainer.rotate", 3),
    ("electra_hf.training.checkpoints.shutil.rmtree", 1),
]


class Progress(TrainerCallback):
    """Writes where the run is to a file that outlives it."""

    def __init__(self, file):
        self.file = open(file, "a", buffering=1)

    def on_train_begin(self, args, state, control, **kwargs):
        self.file.write(f"begin {state.global_step}\n")

    def on_step_end(self, args, state, control, **kwargs):
        self.file.write(f"step {state.global_step}\n")


def start(folder, prepare=lambda: None):
    """Fork a child that trains to the end; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
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
        code = 0
    finally:
        os._exit(code)


def kill_at(target, call, after):
    """Makes the process kill itself before or after the given call of a function."""
    from pkgutil import resolve_name

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


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check(folder, whole):
    """The run has reached its end, equals the one never killed, and never began before what it had saved."""
    last = Path(folder) / f"checkpoint-{STEPS}"
    assert find_damage(last) is None
    assert_equal(load(last), whole)
    assert all(find_damage(checkpoint) is None for checkpoint in sorted_checkpoints(folder))
    saved, step, lost = 0, 0, 0
    for line in Path(f"{folder}.progress").read_text().splitlines():
        event, number = line.split()[0], int(line.split()[1])
        if event == "begin":
            assert number >= saved, f"{folder}: began at {number}, though {saved} was saved"
            lost = max(lost, step - number)
        saved = number if event == "saved" else saved
        step = number
    assert lost <= SAVE_STEPS, f"{folder}: {lost} steps were lost"
    return lost


def main(root, named_kills=28, random_kills=145):
    cases = [(target, call, after) for target, call in SAVE for after in (False, True)]
    began = time.monotonic()
    assert wait(start(f"{root}/whole")) == 0
    seconds = time.monotonic() - began
    whole, kills, lost = load(Path(root) / "whole" / f"checkpoint-{STEPS}"), 0, []
    for number, (target, call, after) in enumerate(random.Random(0).sample(cases, named_kills)):
        folder = f"{root}/named-{number}"
        assert wait(start(folder, lambda t=target, c=call, a=after: kill_at(t, c, a))) == -signal.SIGKILL, target
        assert wait(start(folder)) == 0, target
        kills += 1
        lost.append(check(folder, whole))
    chance, run = random.Random(0), 0
    while kills < named_kills + random_kills:
        folder, code, longest = f"{root}/random-{run}", None, 1.3 * seconds
        while code != 0:
            child = start(folder)
            # From the start of the process to behind its end, wherever that is on this machine and at this hour; but
            # a first run that was slow by chance must not make every wait long.
            time.sleep(chance.uniform(0.0, min(longest, 10.0)))
            longest *= 1.1
            os.kill(child, signal.SIGKILL)
            code = wait(child)
            assert code in (0, -signal.SIGKILL), code
            kills += code != 0
        lost.append(check(folder, whole))
        run += 1
    print(f"{kills} kills, {len(lost)} runs, at most {max(lost)} steps lost")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

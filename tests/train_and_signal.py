"""Run by torchrun in test_ranks.py: a signal to the last process alone, and what each step asks of the others."""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from torch import distributed
from train_and_resume import make_trainer
from transformers import TrainerCallback

from electra_hf.recipe import end_processes
from electra_hf.training.ranks import cpu_group
from electra_hf.training.stopping import CleanStop

SIGNAL_AT = 20


class Steps(TrainerCallback):
    """Counts what is asked of other processes between two steps, and sends the signal."""

    def __init__(self):
        self.asked, self.of_steps = Counter(), []

    def count(self, name):
        real = getattr(distributed, name)

        def counted(*args, group=None, async_op=False, **kwargs):
            place = "CPU" if group is cpu_group() else "device"
            self.asked[f"{name}, {place}, {'goes on' if async_op else 'waits'}"] += 1
            return real(*args, group=group, async_op=async_op, **kwargs)

        setattr(distributed, name, counted)

    def on_step_end(self, args, state, control, **kwargs):
        self.of_steps.append(dict(self.asked))
        self.asked.clear()
        if state.global_step == SIGNAL_AT and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder):
    # No log in between: it adds up the numbers of all processes.
    trainer = make_trainer(Path(folder) / "run", max_steps=100_000, save_strategy="no", logging_steps=50_000)
    steps, stop = Steps(), CleanStop()
    trainer.add_callback(stop)
    trainer.add_callback(steps)
    cpu_group()
    for name in ("all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce"):
        steps.count(name)
    trainer.train()
    report = {"step": trainer.state.global_step, "signal": stop.signal, "asked": steps.of_steps[1:SIGNAL_AT]}
    report["backend"] = distributed.get_backend(cpu_group())
    (Path(folder) / f"{trainer.args.process_index}.json").write_text(json.dumps(report))
    return 128 + stop.signal


if __name__ == "__main__":
    code = main(sys.argv[1])
    end_processes()
    sys.exit(code)

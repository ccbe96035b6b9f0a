"""Stop a run cleanly: at a signal, at a limit of hours, or when its numbers are broken."""

import os
import signal
import sys
import time

import torch
from transformers import TrainerCallback


def exit_on_signals():
    """Outside of training there is nothing to save: end at once, with the exit code that says why (143 or 130)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: sys.exit(128 + received))


class CleanStop(TrainerCallback):
    """Ends training after a complete checkpoint on SIGTERM, SIGINT or after `max_train_hours`; no evaluation follows.

    The signal of one process stops all of them at the same step. A second signal ends the process at once.
    """

    def __init__(self, max_train_hours: float | None = None):
        self.max_train_hours = max_train_hours
        self.signal = 0
        self.is_stopping = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    def on_step_end(self, args, state, control, **kwargs):
        hours = (time.monotonic() - self.start) / 3600
        is_late = self.max_train_hours is not None and hours >= self.max_train_hours
        wish = torch.tensor([self.signal, int(is_late)], device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX)
        if args.world_size > 1 or self.signal or is_late:  # one process alone need not wait for its device
            self.signal, is_late = wish.tolist()
        if self.signal or is_late:
            self.is_stopping = True
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        exit_on_signals()

    def exit_if_stopped(self):
        """After training: leave with 143 or 130 after a signal, with 0 after the limit; nothing may follow."""
        if self.is_stopping:
            sys.exit(128 + self.signal if self.signal else 0)

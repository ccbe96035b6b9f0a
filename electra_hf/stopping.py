"""Stop a run cleanly: at a signal, at a limit of hours, or when its numbers are broken."""

import copy
import multiprocessing
import os
import signal
import sys
import threading
import time

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS_OF_ONE_SIGNAL = 2.0  # torchrun's agent and `tini -g` both pass the same signal on, moments apart


class EvaluationStopped(Exception):
    """A signal came during an evaluation: the checkpoint is worth more than its numbers."""


def exit_on_signals():
    """Outside of training there is nothing to save: end at once, with the exit code that says why (143 or 130)."""

    def leave(number, frame):
        for again in SIGNALS:
            signal.signal(again, lambda second, frame: os._exit(128 + number))
        sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, leave)


class _LoaderWorker(multiprocessing.Process):
    """A worker of a data loader that only its parent can end.

    A signal to the whole process group, or to every process of a container, reaches the workers too, and torch's own
    die of it: the step that waits for their batch would never end, and its checkpoint be lost.
    """

    def start(self):
        # A child inherits what is blocked: there is no moment at which a signal finds it unprepared.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self):
        threading.Thread(target=_wait_for_parents_signal, daemon=True).start()
        super().run()


def _wait_for_parents_signal():
    while signal.sigwaitinfo(SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


def protect_workers(loader):
    """Let the workers of a torch `DataLoader` outlive the signals that `CleanStop` answers to."""
    # Linux alone tells who sent a signal; a start method that the user chose has a Process of its own.
    if loader.num_workers and loader.multiprocessing_context is None and sys.platform == "linux":
        context = copy.copy(multiprocessing.get_context())
        context.Process = _LoaderWorker
        loader.multiprocessing_context = context


class CleanStop(TrainerCallback):
    """Ends training after a complete checkpoint on SIGTERM, SIGINT or after `max_train_hours`; no evaluation follows.

    The signal of one process stops all of them at the same step. An evaluation is broken off. A second signal, more
    than `SECONDS_OF_ONE_SIGNAL` after the first, ends the process at once.
    """

    def __init__(self, max_train_hours: float | None = None):
        self.max_train_hours = max_train_hours
        self.signal = 0
        self.is_stopping = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.monotonic()
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        if self.signal and time.monotonic() - self.signal_time > SECONDS_OF_ONE_SIGNAL:
            os._exit(128 + number)
        if not self.signal:
            self.signal, self.signal_time = number, time.monotonic()
            # `print` inside a handler may meet another `print` half-way.
            os.write(2, b"Signal received: ending after a checkpoint; another one ends at once, without it.\n")

    def _decide(self, args, state):
        """Whether to stop: the same answer on every process, so all of them have to ask at the same moment."""
        hours = (time.monotonic() - self.start) / 3600
        is_late = self.max_train_hours is not None and hours >= self.max_train_hours
        is_late = is_late and state.global_step < state.max_steps
        if args.world_size > 1:
            wish = torch.tensor([self.signal, int(is_late)], device=args.device)
            torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX)
            received, is_late = wish.tolist()
            if received and not self.signal:
                self.signal, self.signal_time = received, time.monotonic()
        self.is_stopping = bool(self.signal or is_late)
        return self.is_stopping

    def on_step_end(self, args, state, control, **kwargs):
        if self._decide(args, state):
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.signal and control.should_evaluate:
            raise EvaluationStopped

    def on_save(self, args, state, control, **kwargs):
        if self._decide(args, state):  # it came during the save, which need not be done again
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.is_stopping:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args, state, control, **kwargs):
        self._decide(args, state)
        exit_on_signals()

    def exit_if_stopped(self):
        """After training: leave with 143 or 130 after a signal, with 0 after the limit; nothing may follow."""
        if self.is_stopping:
            sys.exit(128 + self.signal if self.signal else 0)

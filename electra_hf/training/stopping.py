"""Stop a run cleanly: at a signal, at a limit of hours, or when its numbers are broken."""

import os
import signal
import sys
import threading
import time
from functools import partial

import torch
from torch import distributed
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from electra_hf.recipe import STOP_SIGNALS, stop_signals
from electra_hf.training.ranks import cpu_group, several_processes

_END_OF_WATCH = signal.SIGUSR2  # sent to one thread, never to the process
_NOTHING = torch.tensor([0, 0])
SECONDS_OF_ONE_SIGNAL = 2.0  # torchrun's agent and `tini -g` both pass the same signal on, moments apart


class EvaluationStopped(Exception):
    """A signal came during an evaluation: the checkpoint is worth more than its numbers."""


def protect_workers(loader: DataLoader) -> None:
    """Let the workers of a torch `DataLoader` outlive the signals that `CleanStop` answers to.

    A signal to the whole process group, or to every process of a container, reaches the workers too, and torch's own
    die of it: the step that waits for their batch would never end, and its checkpoint be lost.
    """
    loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)


def _start_worker(worker_init_fn, worker_id):
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=_wait_for_parents_signal, daemon=True).start()
    else:  # nothing tells who sent a signal, and the parent must be able to end it
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    worker_init_fn(worker_id)


def _wait_for_parents_signal():
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != os.getppid():
        pass
    os._exit(0)


class CleanStop(TrainerCallback):
    """Ends training after a complete checkpoint: on SIGTERM, SIGINT, SIGHUP, or after `max_train_hours`.

    No evaluation follows. The signal of one process stops all of them at the same step. An evaluation is broken off. A
    second signal, more than `SECONDS_OF_ONE_SIGNAL` after the first, ends the process at once.
    """

    def __init__(self, max_train_hours: float | None = None):
        self.max_train_hours = max_train_hours
        self.signal = 0
        self.is_stopping = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Answer signals from now on, and start the clock."""
        self.start = time.monotonic()
        self._sent = None
        # For a thread that was there before, and may be handed the signal.
        self._signals = stop_signals()
        self._handlers = {number: signal.signal(number, self._receive) for number in self._signals}
        # What this thread blocks, all threads and processes block that it starts: the workers of the data loader, and
        # a compiler. So a signal to the whole group breaks off no step. The watcher answers at once, also while this
        # thread is inside of a long call.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*self._signals, _END_OF_WATCH))
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [_END_OF_WATCH])

    def _watch(self):
        while (number := signal.sigwait((*self._signals, _END_OF_WATCH))) != _END_OF_WATCH:
            self._receive(number, None)

    def _receive(self, number, frame):
        if self.signal and time.monotonic() - self.signal_time > SECONDS_OF_ONE_SIGNAL:
            os._exit(128 + number)
        if not self.signal:
            self.signal_time, self.signal = time.monotonic(), number
            # `print` inside a handler may meet another `print` half-way.
            os.write(2, b"Signal received: ending after a checkpoint; another one ends at once, without it.\n")

    def _wish(self, state):
        """What this process would do, as numbers whose largest over all processes is what all of them do."""
        hours = (time.monotonic() - self.start) / 3600
        is_late = self.max_train_hours is not None and hours >= self.max_train_hours
        return torch.tensor([self.signal, int(is_late and state.global_step < state.max_steps)])

    def _decide(self, wish):
        # By what all processes have heard, and not by this one's own signal, which may have come after that.
        received, is_late = wish.tolist()
        if received and not self.signal:
            self.signal, self.signal_time = received, time.monotonic()
        self.is_stopping = bool(received or is_late)
        return self.is_stopping

    def _ask_all(self, state):
        """Whether to stop, now: the same answer on every process, so all of them have to ask at the same moment."""
        if not several_processes():
            return self._decide(self._wish(state))
        self._hear_all()
        self._send(state)
        return self._decide(self._hear_all())

    def _send(self, state):
        """Begin to tell the others what this process would do, on the CPU group, while it goes on."""
        wish = self._wish(state)
        self._sent = wish, distributed.all_reduce(wish, distributed.ReduceOp.MAX, group=cpu_group(), async_op=True)

    def _hear_all(self):
        """What all processes together have sent, or nothing."""
        if self._sent is None:
            return _NOTHING
        (wish, work), self._sent = self._sent, None
        work.wait()
        return wish

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """End the training here, with a checkpoint, if any process wishes it."""
        if several_processes():
            # What was sent at the end of the step before has come long ago: neither the device nor the others are
            # waited for. All processes hear the same, so all stop at the same step, the one after the signal's.
            is_stopping = self._decide(self._hear_all())
            if not is_stopping:
                self._send(state)
        else:
            is_stopping = self._decide(self._wish(state))
        if is_stopping:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs
    ) -> None:
        """Break off an evaluation of the training at a signal: raises `EvaluationStopped`."""
        if self.signal and control.should_evaluate:
            raise EvaluationStopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """End the training after this checkpoint, if a signal came while it was written."""
        if self._ask_all(state):  # it came during the save, which need not be done again
            control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """No second checkpoint and no evaluation in a run that is stopping."""
        if self.is_stopping:
            control.should_evaluate = control.should_save = False

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        signal.pthread_kill(self._watcher.ident, _END_OF_WATCH)
        self._watcher.join()
        self._ask_all(state)
        for number, handler in self._handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set by another language, and not to be had again
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)

    def exit_if_stopped(self) -> None:
        """After training: leave with 143, 130 or 129 after a signal, with 0 after the limit; nothing may follow."""
        if self.is_stopping:
            sys.exit(128 + self.signal if self.signal else 0)

"""Trackers (`report_to`) that fail alone: a run never depends on a service that only watches it."""

import logging

from transformers import Trainer
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

logger = logging.getLogger(__name__)


class _Guarded:
    """In place of a tracker's callback: at its first error that tracker is given up, and the run goes on."""

    def __init__(self, callback):
        self.callback = callback
        self.is_working = True

    # Not a subclass: each event that the Trainer may call, today or in a later version, goes through here.
    def __getattr__(self, event):
        def call(*args, **kwargs):
            if not self.is_working:
                return
            try:
                getattr(self.callback, event)(*args, **kwargs)
            # Each tracker has its own exceptions, and those of the network below it.
            except Exception as error:
                self.is_working = False
                reason = " ".join(str(error).split()) or type(error).__name__
                logger.warning(
                    "%s failed (%s) and is left out from here on. The run goes on, and every log is in the "
                    "trainer_state.json of its checkpoints. Mend it or leave it out of report_to.",
                    type(self.callback).__name__,
                    reason,
                )

        return call


def guard_trackers(trainer: Trainer) -> None:
    """Put a guard in front of every tracker of a `Trainer`."""
    trackers = tuple(get_reporting_integration_callbacks(trainer.args.report_to))
    handler = trainer.callback_handler
    # In their old places, since callbacks are called in the order of the list. Only trackers are guarded: an error of
    # our own callbacks has to be seen.
    handler.callbacks = [_Guarded(each) if type(each) in trackers else each for each in handler.callbacks]

"""What a person sees of a run: one bar, and one line per log with the numbers that matter."""

from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

# What is shown of a log: its numbers by name, and how each is written. All others are in the history of the run
# (trainer_state.json, trackers), and on the screen too with any other log_level.
SHOWN = {
    "generator_loss": ("generator loss", "6.3f"),
    "discriminator_loss": ("discriminator loss", "6.4f"),
    "rtd_auc": ("AUC", "5.3f"),
    "token_accuracy": ("token accuracy", "5.3f"),
    "effective_rank": ("effective rank", "5.1f"),
    "tokens_per_second": ("tokens/s", "9,.0f"),
}
SHOWN_ELSE = {"loss": ("loss", "7.4f"), "learning_rate": ("learning rate", "8.2e"), "epoch": ("epoch", "5.2f")}


class PlainProgress(ProgressCallback):
    """The Trainer's bar without its dictionaries; no second bar for an evaluation, and none with `disable_tqdm`."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar, if one is wanted."""
        # With `disable_tqdm` the library has another callback than with a bar; this one stands in for both.
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar, if there is one."""
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        """Nothing: an evaluation has no bar."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the line of a log, on the first process alone."""
        # A line through the bar's own `write`: a plain `print` would tear the bar apart.
        if state.is_world_process_zero and (line := format_log(logs or {}, state.global_step)):
            tqdm.write(line) if self.training_bar is None else self.training_bar.write(line)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar, if there is one."""
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)


def format_log(logs: dict[str, float], step: int) -> str:
    """One line for a log of the Trainer; empty where it holds none of the numbers that are shown."""
    # An evaluation logs the same names with a prefix; the line says it once, at its beginning.
    place = "held out" if any(name.startswith("eval_") for name in logs) else f"step {step:,}"
    numbers = {name.removeprefix("eval_"): value for name, value in logs.items()}
    # A pretraining run is known by its losses; a fine-tuning has the one loss of the Trainer.
    shown = SHOWN if "discriminator_loss" in numbers else SHOWN_ELSE if "loss" in numbers else {}
    parts = [f"{label} {numbers[name]:{form}}" for name, (label, form) in shown.items() if name in numbers]
    return "   ".join([f"{place:>12}", *parts]) if parts else ""


def show_plainly(trainer: Trainer) -> None:
    """Show a `Trainer`'s logs as lines where `log_level` is warning or above. A notebook keeps its table."""
    is_quiet = trainer.args.log_level in ("warning", "error", "critical")
    # In a notebook the library has put another callback in their place, and that one stays.
    theirs = {type(each) for each in trainer.callback_handler.callbacks} & {ProgressCallback, PrinterCallback}
    if is_quiet and theirs:
        trainer.remove_callback(*theirs)
        trainer.add_callback(PlainProgress())

"""What happens at fixed moments of a pretraining run: random streams, two stages, going on from a checkpoint."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback

from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.model.sharing import deciding_parameters


class OwnRandomStream(TrainerCallback):
    """Each process draws its own masks, samples and dropout: the Trainer seeds them all alike."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Seed this process by its number."""
        # A resumed run replaces this by the stream of its checkpoint, after the skipped batches.
        torch.manual_seed(args.seed + 1000 * args.process_index)


class TwoStages(TrainerCallback):
    """The generator alone for `generator_only_steps`, then both.

    The discriminator starts from the generator (paper, section 3.2), unless it was published and knows more already.
    """

    def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
        """Choose the stage of this step; at the switch, copy the generator into the discriminator."""
        # A function of the step alone, so that a resumed run does the same.
        model.generator_only = state.global_step < args.generator_only_steps
        # Equal and not "at least": a run that is resumed later must not copy the weights a second time.
        is_the_switch = args.generator_only_steps and state.global_step == args.generator_only_steps
        if is_the_switch and not model.config.discriminator_is_published:
            model.initialize_discriminator()


def resting_parameters(model: ElectraForPretraining) -> list[nn.Parameter]:
    """The parameters that do not learn while the generator learns alone: all but the generator's.

    Beside a published discriminator the tables that both share rest too: they are a part of what it knows.
    """
    # By identity, since shared tables belong to both networks and have one name only.
    learning = {id(parameter) for parameter in model.generator.parameters()}
    if model.config.discriminator_is_published:
        learning -= {id(parameter) for parameter in deciding_parameters(model.discriminator)}
    return [parameter for parameter in model.parameters() if id(parameter) not in learning]


class GoOn(TrainerCallback):
    """Goes on with the totals since the last log, which the Trainer does not save; waits for the last manifest."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        """In a resumed run, load the totals and settle the intervals anew."""
        if state.global_step:
            load_totals(self.trainer)
            # The Trainer would go on with the intervals of the checkpoint, whatever the command says now.
            state.compute_steps(args, state.max_steps)

    def on_train_end(self, args, state, control, **kwargs):
        """Wait for the last manifest, and for the other processes."""
        self.trainer._wait_for_manifest()
        self.trainer.accelerator.wait_for_everyone()  # the first process to exit would end the others


def save_totals(trainer: Trainer, folder: Path) -> None:
    """Save what an `ElectraTrainer` has counted on this process, since the last log and in all.

    Without it the first log after a resume, the loss and the time of the whole run would differ.
    """
    # A quarter of a million bins, of which a few are used: only those are saved.
    histograms = trainer._train_metrics.histograms
    bins = histograms.nonzero().flatten()  # few of them since the last log
    totals = {
        "loss": trainer._tr_loss,
        "logged_loss": torch.tensor(trainer._total_loss_scalar, dtype=torch.float64),
        "last_logged": torch.tensor(trainer._globalstep_last_logged),
        "metrics": trainer._train_metrics.sums,
        "bins": bins,
        "counts": histograms[bins],
        "center_and_scale": trainer._train_metrics.center_and_scale,
        "skipped": trainer._skipped_steps,
        "skipped_in_a_row": trainer._skipped_in_a_row,
        "seconds": torch.tensor(trainer.seconds_trained()),
    }
    save_file(totals, folder / f"totals_{trainer.args.process_index}.safetensors")


def load_totals(trainer: Trainer) -> None:
    """Go on counting from the checkpoint that the trainer resumed from."""
    file = Path(trainer._resumed_from) / f"totals_{trainer.args.process_index}.safetensors"
    if not file.is_file():  # a checkpoint of an earlier version
        return
    totals = {name: tensor.to(trainer.args.device) for name, tensor in load_file(file).items()}
    # The Trainer has set these to zero for the resumed run; they go on where they were.
    trainer._tr_loss, trainer._total_loss_scalar = totals["loss"], float(totals["logged_loss"])
    trainer._globalstep_last_logged = int(totals["last_logged"])
    metrics = trainer._train_metrics
    metrics.sums[: len(totals["metrics"])] = totals["metrics"]  # an earlier version counted less
    metrics.histograms[totals["bins"]] = totals["counts"]
    metrics.center_and_scale = totals["center_and_scale"]
    trainer._skipped_steps, trainer._skipped_in_a_row = totals["skipped"], totals["skipped_in_a_row"]
    trainer._seconds_before = float(totals["seconds"])

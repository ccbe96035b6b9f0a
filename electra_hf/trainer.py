"""`ElectraTrainer`: the Hugging Face Trainer with a log, an evaluation and a learning rate that fit the pair."""

import logging
import shutil
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from electra_hf.checkpoints import rotate, seal
from electra_hf.metrics import PretrainingMetrics, diagnose
from electra_hf.packing import collate_rows

logger = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10  # steps without a finite gradient after which a run does not recover by itself


class _OwnRandomStream(TrainerCallback):
    """Each process masks, samples and drops out on its own: the Trainer seeds them all alike."""

    def on_train_begin(self, args, state, control, **kwargs):
        # A resumed run replaces this by the stream of its checkpoint, after the skipped batches.
        torch.manual_seed(args.seed + 1000 * args.process_index)


class _TwoStages(TrainerCallback):
    """The generator alone for `generator_only_steps`, then both, the discriminator starting from the generator."""

    def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
        # A function of the step alone, so that a resumed run does the same.
        model.generator_only = state.global_step < args.generator_only_steps
        if args.generator_only_steps and state.global_step == args.generator_only_steps:
            model.initialize_discriminator()
            # Adam has averaged zeros for it so far: its first steps would be many times too long.
            shared = {id(parameter) for parameter in model.generator.parameters()}
            for parameter in model.discriminator.parameters():
                if id(parameter) not in shared:
                    optimizer.state.pop(parameter, None)


class ElectraTrainer(Trainer):
    """Trains an `ElectraForPretraining` on packed rows (`packing.PackedRows`).

    It adds to the Trainer: both losses and the detection metrics in every log, summed on the device over all
    micro-batches and processes since the last one; an evaluation whose draws are the same every time and whose
    memory is that of one batch; the authors' learning rate schedule; a random stream for each process.
    Adam corrects its bias, which the authors' does not (rule 14): with warm-up the two differ little.
    """

    def __init__(self, model, args, data_collator=collate_rows, **kwargs):
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        self.add_callback(_OwnRandomStream())
        self.add_callback(_TwoStages())
        self._train_metrics = PretrainingMetrics(args.device)
        self._findings = []
        self._skipped_steps = torch.zeros((), device=args.device)
        self._skipped_in_a_row = torch.zeros((), device=args.device)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As the Trainer's, but a run that has reached its last step is loaded and not trained a step further."""
        if resume_from_checkpoint:
            *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
            state = TrainerState.load_from_json(Path(resume_from_checkpoint) / "trainer_state.json")
            if state.global_step >= max_steps:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                tokens = state.global_step * self._tokens_per_step()
                return TrainOutput(state.global_step, 0.0, {"train_tokens": tokens})
        return super().train(resume_from_checkpoint, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        output = model(**inputs)
        metrics = self._train_metrics if model.training else self._evaluation_metrics
        metrics.update(output, inputs["input_ids"], self._is_real(**inputs))
        return (output.loss, output) if return_outputs else output.loss

    def _is_real(self, input_ids, attention_mask=None):
        is_real = input_ids != self.model.config.pad_token_id
        return is_real if attention_mask is None else is_real & attention_mask.bool()

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs.update(self._training_metrics_since_last_log() | self._check_skipped_steps())
        if "train_runtime" in logs:
            tokens = self._tokens_per_step() * self.state.global_step
            this_session = self._tokens_per_step() * (self.state.global_step - self._initial_global_step)
            logs["train_tokens"] = tokens
            logs["train_tokens_per_second"] = this_session / logs["train_runtime"]
        super().log(logs, start_time)

    def _get_grad_norm(self, model, grad_norm=None):
        """Called between clipping and the optimizer's step: a non-finite gradient must not reach the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        is_broken = (~torch.isfinite(torch.as_tensor(grad_norm, device=self.args.device))).float()
        # The fused AdamW looks at this tensor on the device and leaves weights and state alone: nothing waits.
        self.optimizer.optimizer.found_inf = is_broken
        self._skipped_steps += is_broken
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * is_broken
        return grad_norm

    def _check_skipped_steps(self):
        skipped, in_a_row = int(self._skipped_steps), int(self._skipped_in_a_row)
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"The last {in_a_row} steps had a loss or gradient that is not finite; none changed the weights. "
                "Lower learning_rate, or raise warmup_steps; the last checkpoint in output_dir is good."
            )
        return {"skipped_steps": skipped} if skipped else {}

    def _training_metrics_since_last_log(self):
        """Runs on every process, as `log` does."""
        self._train_metrics.reduce(self.accelerator)
        metrics = self._train_metrics.compute()
        self._train_metrics.reset()
        now, step = time.perf_counter(), self.state.global_step
        last_time, last_step = getattr(self, "_last_log", (None, step))
        if last_time is not None and step > last_step:
            metrics["tokens_per_second"] = self._tokens_per_step() * (step - last_step) / (now - last_time)
        self._last_log = (now, step)
        if metrics and step >= self.args.get_warmup_steps(self.state.max_steps):
            self._warn(diagnose(metrics))
        return metrics

    def _warn(self, findings):
        # The same finding at every log would be noise, and a discriminator that does not run yet is no finding.
        if findings != self._findings and not self.model.generator_only and self.is_world_process_zero():
            for finding in findings:
                logger.warning(finding)
        self._findings = findings

    def _tokens_per_step(self):
        """Tokens of one optimizer step over all processes: packed rows have one length and no padding."""
        row_length = self.train_dataset[0]["input_ids"].shape[0]
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * row_length

    def get_eval_dataloader(self, eval_dataset=None):
        """Whole batches in turn to the processes: none is padded or read twice, and process count changes no draw."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.eval_batch_size
        batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
        mine = batches[self.args.process_index :: self.args.world_size]
        return DataLoader(dataset, batch_sampler=mine, collate_fn=self.data_collator)

    def evaluation_loop(self, dataloader, description, metric_key_prefix="eval", **kwargs):
        """Evaluate on draws from fixed seeds, one per batch, and leave the training's random stream untouched."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.to(self.args.device).eval()
        self._evaluation_metrics = metrics = PretrainingMetrics(self.args.device)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), self.compute_loss_context_manager():
            for number, batch in enumerate(dataloader):
                torch.manual_seed(self.args.process_index + number * self.args.world_size)
                self.compute_loss(model, self._prepare_inputs(batch))
        model.train(was_training)

        metrics.reduce(self.accelerator)
        values = metrics.compute()
        config = model.config
        values["loss"] = (
            config.generator_weight * values["generator_loss"]
            + config.discriminator_weight * values["discriminator_loss"]
        )
        self._warn(diagnose(values))
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in values.items()},
            num_samples=len(dataloader.dataset),
        )

    def _save_checkpoint(self, model, trial):
        """Save as the Trainer does, then seal; only a sealed checkpoint lets an older one go."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            shutil.rmtree(folder, ignore_errors=True)  # of a save that was killed
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder)
            rotate(self.args.output_dir, limit)

    def create_scheduler(self, num_training_steps, optimizer=None):
        """The authors' schedule (rule 15): linear decay over all steps, multiplied by the warm-up."""
        if self.args.lr_scheduler_type != "linear" or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup_steps = self.args.get_warmup_steps(num_training_steps)

        def factor(step):
            return min(1.0, (step + 1) / max(1, warmup_steps)) * max(0.0, 1 - step / num_training_steps)

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

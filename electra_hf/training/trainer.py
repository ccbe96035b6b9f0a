"""`ElectraTrainer`: the Hugging Face Trainer with a log, an evaluation and a learning rate that fit the pair."""

import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from electra_hf.errors import InputError
from electra_hf.model.cpu import keep_freed_memory
from electra_hf.model.flops import flops_per_token
from electra_hf.model.metrics import FINDING_IS_OVER, PretrainingMetrics, diagnose
from electra_hf.text.packed_rows import ShardedRows
from electra_hf.text.packing import PackedRows, collate_rows, unigram_entropy
from electra_hf.training.callbacks import (
    GoOn,
    OwnRandomStream,
    TwoStages,
    load_totals,
    resting_parameters,
    save_totals,
)
from electra_hf.training.checkpoints import (
    clear_way,
    disk_faults_told,
    find_last_checkpoint,
    has_manifest,
    mark_written,
    rotate,
    write_manifest,
)
from electra_hf.training.device import combine_launches
from electra_hf.training.identity import check_same_run, describe_run, save_identity
from electra_hf.training.order import ComputedOrder
from electra_hf.training.progress import show_plainly
from electra_hf.training.ranks import check_agreement
from electra_hf.training.stopping import EvaluationStopped, protect_workers
from electra_hf.training.trackers import guard_trackers

logger = logging.getLogger(__name__)

ROWS_COUNTED = 1 << 17  # for the unigram entropy: a fifth of a second, and 0.01 nats less than all rows would give
MAX_SKIPPED_IN_A_ROW = 10  # steps without a finite gradient after which a run does not recover by itself


class ElectraTrainer(Trainer):
    """Trains an `ElectraForPretraining` on packed rows (`packing.PackedRows`).

    It adds to the Trainer: both losses and the detection metrics in every log, summed on the device over all
    micro-batches and processes since the last one; an evaluation whose draws are the same every time and whose
    memory is that of one batch; the authors' learning rate schedule; a random stream for each process.
    Adam corrects its bias, which the authors' does not (rule 14): with warm-up the two differ little.
    """

    def __init__(self, model, args, data_collator=collate_rows, **kwargs):
        if args.generator_only_steps and model.generator is None:
            raise InputError(
                f"generator_only_steps: the objective {model.config.objective} has no generator to train alone; "
                "set it to 0."
            )
        super().__init__(model, args, data_collator=data_collator, **kwargs)
        combine_launches(args)
        # Settled after the Trainer is made, which alone knows how many steps the run has.
        if args.generator_only_steps is None:
            args.generator_only_steps = self._steps_of_a_new_generator() if model.generator_is_new else 0
        guard_trackers(self)
        show_plainly(self)
        self.add_callback(OwnRandomStream())
        self.add_callback(TwoStages())
        self.add_callback(GoOn(self))
        # On the device: a number asked for at each step would let the GPU wait for Python.
        self._train_metrics = PretrainingMetrics(args.device)
        self._findings = {}  # the kinds that the last log and the last evaluation found
        self._seconds_before = 0.0  # that earlier starts of this run have trained
        self._skipped_steps = torch.zeros((), device=args.device)
        self._skipped_in_a_row = torch.zeros((), device=args.device)
        self._manifest = None  # the checkpoint saved last, while another thread reads and flushes its bytes
        # One thread: manifests are written in the order of their checkpoints.
        self._manifest_writer = ThreadPoolExecutor(max_workers=1)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs) -> TrainOutput:
        """As the Trainer's, but a run that has reached its last step is loaded and not trained a step further."""
        if resume_from_checkpoint is True:  # the Trainer's way to say: the newest
            resume_from_checkpoint = find_last_checkpoint(self.args.output_dir)
        self._resumed_from = resume_from_checkpoint
        self.check_start(resume_from_checkpoint)
        if self.args.should_save:
            step = int(Path(resume_from_checkpoint).name.rpartition("-")[2]) if resume_from_checkpoint else 0
            clear_way(self.args.output_dir, step)
            # A run killed between its last save and the rotation after it would keep one too many for good.
            rotate(self.args.output_dir, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if resume_from_checkpoint:
            max_steps = self._max_steps()
            state = TrainerState.load_from_json(Path(resume_from_checkpoint) / "trainer_state.json")
            # The Trainer would train one step more before it looks at the number.
            if state.global_step >= max_steps:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                load_totals(self)
                loss = (self._total_loss_scalar + float(self._tr_loss)) / max(1, state.global_step)
                metrics = {"train_runtime": self._seconds_before, "train_loss": loss}
                return TrainOutput(state.global_step, loss, metrics | self._speed(self._seconds_before))
        if self.args.device.type == "cpu":
            keep_freed_memory()
        self._start = time.perf_counter()
        output = super().train(resume_from_checkpoint, **kwargs)
        self.check_finite()  # a log or a checkpoint may not have come since the numbers broke
        return output

    def check_start(self, checkpoint: str | Path | None) -> None:
        """Refuse, before anything is written, what this run cannot do: processes that differ, stages that would never
        end, or another run's checkpoint. Raises `InputError`."""
        max_steps = self._max_steps()
        # The first thing of all: what follows may be refused by one process and not by another.
        check_agreement(lambda: describe_run(self, max_steps))
        for name, steps in (
            ("warmup_steps", self.args.get_warmup_steps(max_steps)),
            ("generator_only_steps", self.args.generator_only_steps),
        ):
            if steps and steps >= max_steps:
                raise InputError(
                    f"{name}: {steps} of {max_steps} steps in all would leave none after them. Give fewer"
                    + (", or a share of all steps such as 0.1." if name == "warmup_steps" else ".")
                )
        rows = self.train_dataset.dataset if isinstance(self.train_dataset, Subset) else self.train_dataset
        # The mean of means is the mean only where every part counts as many positions (rule 9).
        parts = self.args.gradient_accumulation_steps * self.args.world_size
        if parts > 1 and not isinstance(rows, PackedRows):
            raise InputError(
                f"A step of {parts} micro-batches is exact on packed rows alone: padded rows differ in what they "
                "count. Pack them (electra_hf.pack_dataset), or take gradient_accumulation_steps: 1 on one process."
            )
        if checkpoint:
            check_same_run(checkpoint, describe_run(self, max_steps))

    def _steps_of_a_new_generator(self):
        """A tenth of the run, but 1,000 steps at least where that leaves half of it: see recipes/README.md."""
        max_steps = self._max_steps()
        return max(max_steps // 10, min(1_000, max_steps // 2))

    def _max_steps(self):
        """Steps of the whole run, as the Trainer will count them."""
        # By the library's own count, which knows accumulation, processes and the last part of an epoch.
        *_, max_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return max_steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The pair's loss, a scalar, and its output too if `return_outputs`; the metrics gain the batch."""
        output = model(**inputs)
        # An evaluation in the middle of training must not add to the training's sums.
        metrics = self._train_metrics if model.training else self._evaluation_metrics
        metrics.update(output)
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with what the pair has counted since the last log."""
        if "loss" in logs:
            logs.update(self._training_metrics_since_last_log() | self._check_skipped_steps())
        if "train_runtime" in logs:
            # All starts of the run together; the Trainer counts the last one alone.
            logs["train_runtime"] += self._seconds_before
            # The Trainer divides by the steps since the resume, though the sum is that of all steps.
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
            logs |= self._speed(logs["train_runtime"])
        super().log(logs, start_time)

    def seconds_trained(self) -> float:
        """Seconds that all starts of this run have trained until now."""
        return self._seconds_before + time.perf_counter() - self._start

    def _speed(self, seconds):
        """Tokens and tokens per second of the whole run, all its starts together."""
        tokens = self._tokens_until(self.state.global_step)
        return {"train_tokens": tokens, "train_tokens_per_second": tokens / seconds if seconds else 0.0}

    def floating_point_ops(self, inputs: dict) -> float:
        """Operations that training spends on the `input_ids` (B, L) of a batch, by `flops_per_token`."""
        # The Trainer's own count walks over all modules at every micro-batch, and leaves attention out.
        input_ids = inputs["input_ids"]
        return input_ids.numel() * flops_per_token(self.model.config, input_ids.shape[1], self.model.generator_only)

    def _clip_grad_norm(self, model):
        # The optimizer holds the parameters in lists; the Trainer collects them from 300 modules at every step.
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def _get_grad_norm(self, model, grad_norm=None):
        """Called between clipping and the optimizer's step: a non-finite gradient must not reach the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        is_broken = (~torch.isfinite(torch.as_tensor(grad_norm, device=self.args.device))).float()
        optimizer = self.optimizer.optimizer
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # Fused optimizers look at this tensor on the device and leave weights and state alone: nothing waits.
            optimizer.found_inf = is_broken
        elif is_broken.item():
            # Every other one passes over a parameter without a gradient. To know it, this waits for the device.
            optimizer.zero_grad(set_to_none=True)
        if self.model.generator_only:
            # Their gradients are zero, there for DistributedDataParallel; weight decay would still shrink them.
            for parameter in resting_parameters(self.accelerator.unwrap_model(self.model)):
                parameter.grad = None
        self._skipped_steps += is_broken
        # Times 0 or 1: a good step sets the row back to 0, without a question to the device.
        self._skipped_in_a_row = (self._skipped_in_a_row + 1) * is_broken
        return grad_norm

    def _check_skipped_steps(self):
        skipped, in_a_row = int(self._skipped_steps), int(self._skipped_in_a_row)
        # Seen at a log, so the run may go on for some steps; the weights do not change meanwhile.
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise FloatingPointError(
                f"The last {in_a_row} steps had a loss or gradient that is not finite. {self._where_to_go_on()}"
            )
        return {"skipped_steps": skipped} if skipped else {}

    def _where_to_go_on(self):
        return (
            "Complete checkpoints in output_dir hold finite numbers only. Start afresh with a lower learning_rate or "
            "more warmup_steps."
        )

    def check_finite(self) -> None:
        """Raise `FloatingPointError` where a weight, or what the optimizer keeps of one, is not finite."""
        self._check_skipped_steps()
        tensors = [*self.model.parameters()]
        if self.optimizer is not None:
            states = self.optimizer.optimizer.state.values()
            tensors += [value for state in states for value in state.values() if torch.is_tensor(value)]
        # One sum of all, so that the device is waited for once and not once per tensor.
        broken = torch.stack([~torch.isfinite(tensor).all() for tensor in tensors]).sum()
        if broken:
            raise FloatingPointError(
                f"At step {self.state.global_step} {int(broken)} tensors of the weights or the optimizer are not "
                f"finite. {self._where_to_go_on()}"
            )

    def _training_metrics_since_last_log(self):
        """Runs on every process, as `log` does."""
        self._train_metrics.reduce(self.accelerator)
        metrics = self._train_metrics.compute()
        self._train_metrics.reset()
        now, step = time.perf_counter(), self.state.global_step
        last_time, last_step = getattr(self, "_last_log", (None, step))
        # The first log after a start has no time to compare with, and it would count the compiler's work.
        if last_time is not None and step > last_step:
            metrics["tokens_per_second"] = self._tokens_per_step() * (step - last_step) / (now - last_time)
        self._last_log = (now, step)
        # During warm-up every discriminator is at chance, and that is no finding.
        if metrics and step >= self.args.get_warmup_steps(self.state.max_steps):
            self._warn("training", diagnose(metrics | self._goal_of_generator()))
        return metrics

    def _goal_of_generator(self):
        """The entropy that its loss should be below, once a tenth of the run is over."""
        is_time = self.model.generator is not None and 10 * self.state.global_step >= self.state.max_steps
        return {"unigram_entropy": self._unigram_entropy} if is_time else {}

    @cached_property
    def _unigram_entropy(self):
        every = -(-len(self.train_dataset) // ROWS_COUNTED)
        sample = Subset(self.train_dataset, range(0, len(self.train_dataset), every))
        # With a generator of its own: else the loader would draw a number from the stream of the training.
        loader = DataLoader(sample, 1_000, collate_fn=self.data_collator, generator=torch.Generator())
        batches = (batch["input_ids"] for batch in loader)
        return unigram_entropy(batches, self.model.config.special_token_ids)

    def _warn(self, source, findings):
        """Tell each kind of finding once, and again when it is over. `source`: training or evaluation."""
        # By kind and not by text: the numbers in the text change at each log, and each would be told again.
        before = set().union(*self._findings.values())
        self._findings[source] = set(findings)
        now = set().union(*self._findings.values())
        if self.is_world_process_zero():
            for kind in sorted(now - before):
                logger.warning(findings[kind])
            for kind in sorted(before - now):
                logger.warning(FINDING_IS_OVER[kind])

    def _tokens_per_step(self):
        """Tokens of one optimizer step over all processes: packed rows have one length and no padding."""
        row_length = self.train_dataset[0]["input_ids"].shape[0]
        args = self.args
        return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * row_length

    def _tokens_until(self, step):
        """Tokens of the first `step` steps. The last step of an epoch may have fewer micro-batches than the others."""
        accumulation = self.args.gradient_accumulation_steps
        micro_batches = len(self.get_train_dataloader())  # of an epoch
        epochs, rest = divmod(step, -(-micro_batches // accumulation))
        read = epochs * micro_batches + min(rest * accumulation, micro_batches)
        return read * self._tokens_per_step() // accumulation

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(rows, ShardedRows):  # a list of their order takes 36 bytes for each row in every process
            return ComputedOrder(len(rows), self.args.data_seed)
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's, with workers that outlive the signals that end a run."""
        loader = super().get_train_dataloader()
        protect_workers(loader.base_dataloader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Whole batches in turn to the processes: none is padded or read twice, and process count changes no draw."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.eval_batch_size
        batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
        # Batches and not rows: a batch, and the draw that its number seeds, is the same for any number of processes.
        mine = batches[self.args.process_index :: self.args.world_size]
        return DataLoader(dataset, batch_sampler=mine, collate_fn=self.data_collator)

    def evaluation_loop(
        self, dataloader: DataLoader, description: str, metric_key_prefix: str = "eval", **kwargs
    ) -> EvalLoopOutput:
        """Evaluate on draws from fixed seeds, one per batch, and leave the training's random stream untouched."""
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.to(self.args.device).eval()
        width = model.config.discriminator_config.hidden_size
        self._evaluation_metrics = metrics = PretrainingMetrics(self.args.device, width)
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        is_stopped = torch.zeros((), device=self.args.device)
        # The stream is put back at the end: how often a run evaluates must not change what it learns.
        with torch.no_grad(), torch.random.fork_rng(devices), self.compute_loss_context_manager():
            try:
                for number, batch in enumerate(dataloader):
                    # The number of the batch among those of all processes.
                    torch.manual_seed(self.args.process_index + number * self.args.world_size)
                    self.compute_loss(model, self._prepare_inputs(batch))
                    self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            except EvaluationStopped:
                is_stopped += 1
        model.train(was_training)
        if self.accelerator.reduce(is_stopped) > 0:  # on one of the processes, so on all
            raise EvaluationStopped

        metrics.reduce(self.accelerator)
        values = metrics.compute()
        config = model.config
        # From the means of all batches: batches of different length would otherwise count alike.
        values["loss"] = config.generator_weight * values.get(
            "generator_loss", 0.0
        ) + config.discriminator_weight * values.get("discriminator_loss", 0.0)
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"The held-out loss is {values['loss']}. {self._where_to_go_on()}")
        self._warn("evaluation", diagnose(values | self._goal_of_generator()))
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in values.items()},
            num_samples=len(dataloader.dataset),
        )

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except EvaluationStopped:
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """Save as the Trainer does; the manifest follows in another thread, and an older checkpoint goes after it."""
        self._wait_for_manifest()
        self.check_finite()  # before anything is written: a broken checkpoint must not rotate a good one away
        self.accelerator.wait_for_everyone()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if has_manifest(folder):  # this step's own: `clear_way` has moved every other
            return
        # The Trainer would delete the oldest checkpoint before the new one is complete; `rotate` does it afterwards.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        with disk_faults_told(self.args.output_dir):
            try:
                super()._save_checkpoint(model, trial)
                save_totals(self, folder)
            finally:
                self.args.save_total_limit = limit
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                # The order matters: all files, then the mark that names them, then the manifest with their hashes.
                save_identity(folder, describe_run(self, self.state.max_steps))
                mark_written(folder)
                self._manifest = self._manifest_writer.submit(self._complete, folder, limit)

    def _complete(self, folder, limit):
        # In this order: an older checkpoint goes only when the new one can stand in for it.
        write_manifest(folder)
        rotate(self.args.output_dir, limit)

    def _wait_for_manifest(self):
        if self._manifest is not None:
            with disk_faults_told(self.args.output_dir):
                # Asks for the result, so that an error of that thread is not lost.
                self._manifest.result()
            self._manifest = None

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The authors' schedule (rule 15): linear decay over all steps, multiplied by the warm-up.

        When a discriminator begins to learn after `generator_only_steps`, the rate warms up once more for
        `discriminator_warmup_steps`: Adam knows nothing of its gradients yet, and first steps at the full rate would
        undo what a published one knows, or push all tokens into one direction.
        """
        # Given by the user, or made before: it stays as it is.
        if self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup_steps = max(1, self.args.get_warmup_steps(num_training_steps))
        waking, steps = self.args.generator_only_steps, self.args.discriminator_warmup_steps
        if steps is None:
            steps = warmup_steps if self.model.config.discriminator_is_published else 0

        def second_warmup(step):
            return min(1.0, (step - waking + 1) / steps) if waking and steps and step >= waking else 1.0

        def factor(step):
            # The scheduler counts from 0, and a first step at a rate of 0 would be lost.
            first = min(1.0, (step + 1) / warmup_steps)
            return first * second_warmup(step) * max(0.0, 1 - step / num_training_steps)

        if self.args.lr_scheduler_type == "linear":
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        else:
            scheduler = super().create_scheduler(num_training_steps, optimizer)
            if waking and steps:
                given = scheduler.lr_lambdas
                scheduler.lr_lambdas = [lambda step, own=own: own(step) * second_warmup(step) for own in given]
        self._created_lr_scheduler = True
        return self.lr_scheduler

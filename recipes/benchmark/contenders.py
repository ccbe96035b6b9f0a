"""What `benchmark.py` compares. Each contender is a process of its own that trains on command.

python recipes/benchmark/contenders.py NAME FOLDER BATCH_SIZE

It trains one step and then reads lines: a number of steps, or "save". Every answer is one line of JSON (`Baton`).
FOLDER is what `racing.write_task` wrote.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import load_from_disk
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.cpu import keep_freed_memory
from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.text.packing import PackedRows, collate_rows
from electra_hf.text.tokenization import load_tokenizer
from electra_hf.training.arguments import PretrainingArguments
from electra_hf.training.trainer import ElectraTrainer

ENDLESS = 1_000_000  # steps: the one that asks says when it is enough


class Baton:
    """Called after every step: runs as many as were asked for, answers how long they took, and waits.

    `work` counts what the steps did: tokens that are no padding, or operations.
    """

    def __init__(self, work_per_step):
        # The answers' own channel: libraries print to 1, and a line of theirs is no JSON.
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints goes to the log
        self.left, self.work, self.work_per_step = 1, 0, work_per_step
        self.is_saving, self.stall = False, None
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def __call__(self, *_):
        self.left -= 1
        self.work += self.work_per_step
        if self.left:
            return
        # The loop belongs to a Trainer or to another package, so the wait between two windows happens in here.
        if torch.cuda.is_available():
            # A GPU runs behind its program: without this only the starts of the kernels would be timed.
            torch.cuda.synchronize()
        answer = {
            "seconds": time.perf_counter() - self.start,
            "cpu_seconds": time.process_time() - self.cpu_start,
            "work": float(self.work),
            "stall": self.stall,
            "memory": _peak_memory(),
        }
        print(json.dumps(answer), file=self.answers, flush=True)
        command = sys.stdin.readline().strip()
        if not command:
            os._exit(0)  # out of the middle of a Trainer, there is nothing to clean up
        self.is_saving = command == "save"
        # The clocks start anew after the wait, which is the turn of the others.
        self.left, self.work = 1 if self.is_saving else int(command), 0
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def count_tokens(self, model):
        """For inputs that hold padding (id 0): count what is real at every forward pass."""

        def count(module, args, kwargs):
            self.work += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).ne(0).sum()

        self.work_per_step = 0
        model.register_forward_pre_hook(count, with_kwargs=True)


def _peak_memory():
    """In bytes, of the device where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()  # `getrusage` would begin with the memory of the parent process
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


class StockPair(nn.Module):
    """Two stock networks with shared embeddings, as one writes them first; the collator has masked the tokens.

    `selected_only` computes logits where a token was masked, otherwise everywhere.
    """

    def __init__(self, config, selected_only):
        super().__init__()
        self.generator = AutoModelForMaskedLM.from_config(config.generator_config)
        self.discriminator = AutoModelForPreTraining.from_config(config.discriminator_config)
        # Shared as the paper has them; otherwise this pair would compute something else than ours.
        self.discriminator.electra.embeddings = self.generator.electra.embeddings
        self.discriminator_weight = config.discriminator_weight
        self.selected_only = selected_only

    def forward(self, input_ids, attention_mask, labels):
        is_masked = labels != -100
        if self.selected_only:
            hidden = self.generator.electra(input_ids, attention_mask=attention_mask).last_hidden_state[is_masked]
            logits = self.generator.generator_lm_head(self.generator.generator_predictions(hidden))
            generator_loss = F.cross_entropy(logits, labels[is_masked])
        else:
            output = self.generator(input_ids, attention_mask=attention_mask, labels=labels)
            generator_loss, logits = output.loss, output.logits[is_masked]
        with torch.no_grad():
            # The authors' way to sample, over the whole vocabulary.
            gumbel_noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(min=1e-9)))
            corrupted_ids = input_ids.masked_scatter(is_masked, (logits + gumbel_noise).argmax(-1))
            is_replaced = is_masked & (corrupted_ids != labels)
        output = self.discriminator(corrupted_ids, attention_mask=attention_mask, labels=is_replaced.float())
        return {"loss": generator_loss + self.discriminator_weight * output.loss}


class _TimedSave(TrainerCallback):
    """How long the training loop stands still for a checkpoint."""

    def __init__(self, baton):
        self.baton = baton

    def on_step_end(self, args, state, control, **kwargs):
        # Trainer saves right after this, and then calls `on_save`.
        control.should_save = self.baton.is_saving
        self.start = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        self.baton.stall = time.perf_counter() - self.start


def train_stock(baton, folder, batch_size, rows="rows", selected_only=False, own_pair=False):
    """Under the stock Trainer: stock modules on padded sentences or packed rows, or our pair on packed rows."""
    config = ElectraPretrainingConfig.from_pretrained(folder)
    # Not for our pair: to drop columns, Trainer would take apart each batch that `PackedRows` has gathered.
    arguments = TrainingArguments(**_settings(folder, batch_size), remove_unused_columns=not own_pair)
    packed = load_from_disk(folder / rows)
    if own_pair:
        model, dataset, collator = ElectraForPretraining(config), PackedRows(packed), collate_rows
    else:
        collator = DataCollatorForLanguageModeling(load_tokenizer(folder), mlm_probability=config.mask_probability)
        model, dataset = StockPair(config, selected_only), packed
    # Padding is no work: a padded batch must not look faster for it.
    if rows == "sentences":
        baton.count_tokens(model)
    Trainer(model, arguments, data_collator=collator, train_dataset=dataset).train()


def train_ours(baton, folder, batch_size, bf16=False, **settings):
    """`ElectraTrainer` as `recipes/pretrain.py` uses it."""
    model = ElectraForPretraining(ElectraPretrainingConfig.from_pretrained(folder))
    arguments = PretrainingArguments(**_settings(folder, batch_size), bf16=bf16, **settings)
    trainer = ElectraTrainer(model, arguments, train_dataset=PackedRows(load_from_disk(folder / "rows")))
    trainer.add_callback(_TimedSave(baton))
    trainer.train()


def train_bare(baton, folder, batch_size, bf16=False, compiled=True):
    """The loop one would write by hand around the same step, to see what the Trainer costs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    model = ElectraForPretraining(ElectraPretrainingConfig.from_pretrained(folder)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, eps=1e-6, weight_decay=0.01, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10_000))
    step = torch.compile(model) if compiled else model
    rows = PackedRows(load_from_disk(folder / "rows"))
    while True:
        for batch in DataLoader(rows, batch_size, shuffle=True, drop_last=True, collate_fn=collate_rows):
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                loss = step(batch["input_ids"].to(device)).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def train_simpletransformers(baton, folder, batch_size):
    """The package of that name on the same text, in its own environment (`make benchmark-peers`); it saves nothing."""
    from simpletransformers.language_modeling import LanguageModelingModel

    PreTrainedModel.resize_token_embeddings = lambda *_: None  # it would shrink the model to a small tokenizer
    config = ElectraPretrainingConfig.from_pretrained(folder)
    settings = {
        "tokenizer_name": str(folder),
        "generator_config": config.generator_config.to_diff_dict(),
        "discriminator_config": config.discriminator_config.to_diff_dict(),
        "vocab_size": config.discriminator_config.vocab_size,
        "dataset_type": "simple",
        "max_seq_length": _row_length(folder),
        "train_batch_size": batch_size,
        "num_train_epochs": 1_000,
        "output_dir": str(folder / "simpletransformers"),
        "cache_dir": str(folder / "simpletransformers_cache"),
        "tensorboard_dir": str(folder / "simpletransformers_log"),
        "overwrite_output_dir": True,
        "reprocess_input_data": True,
        "use_multiprocessing": False,
        "save_steps": -1,
        "save_model_every_epoch": False,
        "fp16": False,
    }
    model = LanguageModelingModel("electra", None, args=settings, use_cuda=torch.cuda.is_available())
    baton.count_tokens(model.model)
    model.save_model = lambda *args, **kwargs: None  # it cannot save shared tensors with transformers 5
    model.train_model(str(folder / "text.txt"), verbose=False)


def multiply(baton, folder, batch_size, dtype):
    """Nothing but products of large matrices: what the machine could do. A step is ten of them."""
    # Large, so that neither the start of a product nor the edges of the matrices count.
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    baton.work_per_step = 10 * 2 * size**3
    while True:
        for _ in range(10):
            left @ right
        baton()


def _settings(folder, batch_size):
    return {
        "output_dir": str(folder / f"run-{os.getpid()}"),
        "per_device_train_batch_size": batch_size,
        "max_steps": ENDLESS,
        "warmup_steps": 10_000,
        "logging_steps": 100,
        "save_strategy": "no",
        "dataloader_drop_last": True,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),  # else bf16 is refused there
    }


CONTENDERS = {
    "simpletransformers": train_simpletransformers,
    "stock_padded": partial(train_stock, rows="sentences"),
    "stock": train_stock,
    "selected_only": partial(train_stock, selected_only=True),
    "own_pair": partial(train_stock, own_pair=True),
    "ours": train_ours,
    "ours_compiled": partial(train_ours, torch_compile=True),
    "ours_bf16": partial(train_ours, bf16=True),
    "ours_bf16_compiled": partial(train_ours, bf16=True, torch_compile=True),
    "bare": partial(train_bare, compiled=False),
    "bare_compiled": train_bare,
    "bare_bf16_compiled": partial(train_bare, bf16=True),
    "products_float32": partial(multiply, dtype=torch.float32),
    "products_bfloat16": partial(multiply, dtype=torch.bfloat16),
}


def _row_length(folder):
    return load_from_disk(folder / "rows").features["input_ids"].length


def main(name, folder, batch_size):
    folder, batch_size = Path(folder), int(batch_size)
    baton = Baton(batch_size * _row_length(folder))
    # One hook for every Trainer, and for loops that are not ours.
    register_optimizer_step_post_hook(baton)
    torch.manual_seed(0)
    CONTENDERS[name](baton, folder, batch_size)


if __name__ == "__main__":
    main(*sys.argv[1:])

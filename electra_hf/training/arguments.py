"""Settings of a pretraining run: the pair, its tokenizer, and the training itself."""

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.utils import is_torch_tf32_available

from electra_hf.errors import InputError
from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.recipe import as_dict
from electra_hf.text.tokenization import load_tokenizer
from electra_hf.training.device import DeviceArguments, can_compile, lacks_float64, wants_cpu


@dataclass
class ModelArguments:
    """The pair: from scratch in one of the paper's sizes, or from published networks."""

    model_size: str = field(default="small", metadata={"help": "small, base or large (paper, table 6)."})
    generator: dict | str | None = field(
        default=None, metadata={"help": "ElectraConfig fields of the generator that differ from its size."}
    )
    discriminator: dict | str | None = field(
        default=None, metadata={"help": "ElectraConfig fields of the discriminator that differ from its size."}
    )
    discriminator_name_or_path: str | None = field(
        default=None, metadata={"help": "Continue this published discriminator (its size, its tokenizer)."}
    )
    generator_name_or_path: str | None = field(
        default=None,
        metadata={"help": "The generator published with it (default: a new one, which learns alone first)."},
    )
    objective: str = field(
        default="electra",
        metadata={"help": "electra, electra_15, all_tokens_mlm, replace_mlm or mlm (paper, table 5)."},
    )
    embedding_sharing: str = field(
        default="shared", metadata={"help": "Embeddings of the two: shared, word, none or gradient_disentangled."}
    )
    sinusoidal_start: bool = field(
        default=False, metadata={"help": "Start the position table as sinusoids: small models find neighbours sooner."}
    )
    mask_probability: float | None = field(
        default=None, metadata={"help": "Share of tokens the generator must guess (default: 0.15, large 0.25)."}
    )
    whole_word_selection: bool = field(
        default=False, metadata={"help": "Select whole words for the generator to guess, not single tokens."}
    )
    sampling_temperature: float = field(
        default=1.0, metadata={"help": "Of the generator's samples: above 1 they are wrong more often."}
    )
    generator_weight: float = field(default=1.0, metadata={"help": "Weight of the generator's loss."})
    discriminator_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the discriminator's loss (default: 50, or 1 where it predicts tokens)."},
    )

    def __post_init__(self):
        # A mapping in YAML, or JSON on the command line: from here on it is a dictionary.
        self.generator = as_dict("generator", self.generator)
        self.discriminator = as_dict("discriminator", self.discriminator)
        if self.discriminator_name_or_path:
            self._check_published()
        elif self.generator_name_or_path:
            raise InputError(
                "generator_name_or_path: a generator is continued together with its discriminator. Give the "
                "discriminator_name_or_path, too."
            )
        else:  # a wrong size or field must not wait for the corpus
            ElectraPretrainingConfig.from_size(
                self.model_size, generator=self.generator, discriminator=self.discriminator, **self.pair_settings()
            )

    def _check_published(self):
        """Published networks have a shape and weights of their own, which these settings would contradict."""
        # A new generator beside a published discriminator may have fields of its own; a published one may not.
        contradicting = {
            "model_size": self.model_size != "small",
            "generator": bool(self.generator) and self.generator_name_or_path is not None,
            "discriminator": bool(self.discriminator),
            "sinusoidal_start": self.sinusoidal_start,
        }
        for name, is_given in contradicting.items():
            if is_given:
                raise InputError(
                    f"{name}: cannot be set beside discriminator_name_or_path, whose network has a shape and weights "
                    "of its own. Leave one of the two out."
                )

    def published_networks(self) -> dict:
        """What `ElectraForPretraining.from_published` continues, and the fields of a new generator."""
        return {
            "discriminator": self.discriminator_name_or_path,
            "generator": self.generator_name_or_path,
            "new_generator": self.generator,
        }

    def pair_settings(self) -> dict:
        """The settings of the pair itself, for `ElectraPretrainingConfig`."""
        settings = {
            "objective": self.objective,
            "embedding_sharing": self.embedding_sharing,
            "whole_word_selection": self.whole_word_selection,
            "sampling_temperature": self.sampling_temperature,
            "generator_weight": self.generator_weight,
            "discriminator_weight": self.discriminator_weight,
        }
        # Left out and not None: the default depends on the size, which this class may not know.
        return settings if self.mask_probability is None else settings | {"mask_probability": self.mask_probability}


@dataclass
class TokenizerArguments:
    """The tokenizer: trained on the corpus, or an existing one."""

    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "An existing tokenizer, local or from the Hub; otherwise one is trained."}
    )
    tokenizer_type: Literal["wordpiece", "bpe", "unigram"] = field(
        default="wordpiece", metadata={"help": "wordpiece, bpe (byte-level) or unigram."}
    )
    vocab_size: int = field(default=52_000, metadata={"help": "Entries, rounded up to a multiple of 64."})
    lowercase: bool = field(
        default=False,
        metadata={
            "help": "Lower-case the text; accents stay. Wrong for Turkish and Azeri, whose small I is ı: leave it off."
        },
    )
    max_length: int = field(
        default=128, metadata={"help": "Length of a packed row in tokens, [CLS] and [SEP] included."}
    )

    def check_existing(self, name: str | None) -> None:
        """Refuse a `vocab_size` that the existing tokenizer `name` does not have. Raises `InputError`."""
        # The default counts as not given: nobody asked for that number.
        if name and self.vocab_size != TokenizerArguments.vocab_size:
            size = len(load_tokenizer(name))
            if size != self.vocab_size:
                raise InputError(
                    f"vocab_size: {self.vocab_size} was asked for, but the tokenizer of {name} has {size} entries. "
                    f"Give vocab_size: {size}, or leave one of the two out."
                )

    def training_settings(self) -> dict:
        """What a new tokenizer is trained with, for `tokenization.train_tokenizer`."""
        return {
            "vocab_size": self.vocab_size,
            "tokenizer_type": self.tokenizer_type,
            "lowercase": self.lowercase,
        }


# Each is tried with a step whose gradient is not finite (tests/training/test_every_setting.py).
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adafactor", "sgd", "adagrad", "rmsprop")
_UNUSED = "this trainer does not use it"
_INEXACT = "a run that is stopped and resumed would not equal the run that never stopped"
_ONE_COPY = "a model of this size needs no sharding: every process holds a whole copy"
# Settings of `TrainingArguments` that would do nothing here, or harm; any other value than these is refused.
FIXED = {
    "load_best_model_at_end": (False, "the model of the last step is the one that is exported"),
    "label_smoothing_factor": (0.0, _UNUSED),
    "neftune_noise_alpha": (None, _UNUSED),
    "prediction_loss_only": (False, _UNUSED),
    "eval_accumulation_steps": (None, _UNUSED),
    "batch_eval_metrics": (False, _UNUSED),
    "label_names": (None, _UNUSED),
    "use_liger_kernel": (False, _UNUSED),
    "optim_target_modules": (None, _UNUSED),
    "train_sampling_strategy": ("random", "packed rows all have one length"),
    "auto_find_batch_size": (False, _INEXACT),
    "save_only_model": (False, _INEXACT),
    "ignore_data_skip": (False, _INEXACT),
    "enable_jit_checkpoint": (False, _INEXACT),
    "deepspeed": (None, _ONE_COPY),
    "fsdp": (None, _ONE_COPY),
    "parallelism_config": (None, _ONE_COPY),
}


def check_launcher() -> None:
    """Refuse an accelerate that is set to share one model among processes. Raises `InputError`."""
    # Settings of `accelerate config` reach the process by these variables and never pass our own settings.
    for way in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() in ("true", "1"):
            raise InputError(f"accelerate is set to use {way}, but {_ONE_COPY}. Start it with --multi_gpu instead.")


def check_fixed(arguments: TrainingArguments, fixed: dict[str, tuple]) -> None:
    """Refuse settings that would be ignored or do harm. Raises `InputError`.

    Comes before the library's own checks, which would ask for more settings or packages to go with them.
    """
    for name, (value, reason) in fixed.items():
        given = getattr(arguments, name)
        # The library writes "nothing" in several ways, depending on the setting and on its version.
        if given != value and given not in ([], "", {}):
            raise InputError(f"{name}: expected {value}, got {given}, because {reason}. Leave it out.")


def check_training_settings(arguments: TrainingArguments) -> None:
    """Refuse ways of starting that would fail later. Raises `InputError`."""
    # The Trainer would wrap the model in DataParallel, where the sums of the metrics do not stack.
    if arguments.n_gpu > 1:
        raise InputError(
            f"{arguments.n_gpu} GPUs are visible to one process. Start one process for each with `accelerate launch "
            f"--multi_gpu --num_processes {arguments.n_gpu}`, or use one with the variable CUDA_VISIBLE_DEVICES=0."
        )
    # The library would divide by the number of steps.
    if arguments.max_steps == 0 or (arguments.max_steps < 0 and arguments.num_train_epochs <= 0):
        name = "max_steps" if arguments.max_steps == 0 else "num_train_epochs"
        raise InputError(f"{name}: expected more than 0, since nothing would be trained.")
    # Only a run that has evaluated saves then, and a killed run may not have.
    if arguments.save_strategy == "best":
        raise InputError("save_strategy: expected no, steps or epoch; `best` would leave nothing to go on from.")


@dataclass
class PretrainingArguments(DeviceArguments):
    """`DeviceArguments` with the paper's numbers (table 6, small) as defaults, and what exact resume needs."""

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=10_000, metadata={"help": "Steps of warm-up; below 1, a share of all."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows a device takes at a time."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows a device evaluates at a time."})
    generator_only_steps: int | None = field(
        default=None,
        metadata={
            "help": "Two stages: the generator alone for these steps, then both from its weights (default: 0; where a "
            "published discriminator gets a new generator a tenth of all steps, but 1,000 at least, or half)."
        },
    )
    discriminator_warmup_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps for which the rate warms up once more when the discriminator begins to learn after "
            "generator_only_steps (default: 0; where it was published as many as at the start)."
        },
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Not on biases and LayerNorm."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between two logs; below 1, a share of all."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    resume_from_checkpoint: str | None = field(
        default="auto", metadata={"help": "auto: the newest checkpoint in output_dir, if any; never; or a folder."}
    )
    max_train_hours: float | None = field(
        default=None, metadata={"help": "Stop after a checkpoint when this time is over, with exit code 0."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True would log a NaN loss as 0."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Packed rows have one column."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Every step sees a batch of one shape."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "There are none."})
    ddp_broadcast_buffers: bool | None = field(default=False, metadata={"help": "Ours are constants, sent once."})
    # Of type `bool`, so that the flag alone means true; None until `__post_init__` has chosen.
    torch_compile: bool = field(default=None, metadata={"help": "Compile the step, on whatever device."})
    compile_on_gpu: bool = field(
        default=False, metadata={"help": "Compile the step where the device is a GPU; torch_compile wins over it."}
    )

    def __post_init__(self):
        # Before the library's own `__post_init__`, which decides by these values and then fixes them.
        self.use_cpu |= lacks_float64()
        # On a CPU a compiled step gains little, and the first one compiles for 100 s (recipes/benchmark/LOG.md).
        if self.torch_compile is None:
            self.torch_compile = self.compile_on_gpu and can_compile(wants_cpu(self))
        if self.tf32 is None and is_torch_tf32_available():
            self.tf32 = True  # for matrix products that stay in fp32
        check_launcher()
        check_fixed(self, FIXED)
        super().__post_init__()
        # After it, since it is the library that finds the devices.
        check_training_settings(self)
        if self.optim not in OPTIMIZERS:
            raise InputError(f"optim: expected one of {', '.join(OPTIMIZERS)}, got {self.optim.value}.")
        if (self.generator_only_steps or 0) < 0:
            raise InputError(f"generator_only_steps: expected 0 or more, got {self.generator_only_steps}.")
        if (self.discriminator_warmup_steps or 0) < 0:
            raise InputError(f"discriminator_warmup_steps: expected 0 or more, got {self.discriminator_warmup_steps}.")
        # A batch goes to the device while that computes; otherwise every copy would wait for the step before it.
        self.accelerator_config.non_blocking = torch.cuda.is_available()
        # It would be written into every checkpoint (training_args.bin) and pushed with it.
        if self.hub_token is not None:
            raise InputError(
                "hub_token: give the token by `hf auth login` or the variable HF_TOKEN, never as a setting."
            )
        # The order of a large corpus is computed from it (`ComputedOrder`), so it has to be a number.
        if self.data_seed is None:
            self.data_seed = self.seed
        try:  # a tracker that is not installed must not wait for the corpus
            for tracker in get_reporting_integration_callbacks(self.report_to):
                tracker()
        except RuntimeError as error:
            raise InputError(f"report_to: {error}") from None
        self.dataloader_pin_memory &= torch.cuda.is_available()  # on a CPU it does nothing but warn

"""What every fine-tuning task shares: the encoder, the settings, seeds, layer-wise rates and the summary of runs."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from electra_hf.errors import InputError
from electra_hf.text.tokenization import load_tokenizer
from electra_hf.training import arguments as pretraining
from electra_hf.training.arguments import check_fixed, check_launcher, check_training_settings
from electra_hf.training.checkpoints import check_writable
from electra_hf.training.device import DeviceArguments
from electra_hf.training.progress import show_plainly
from electra_hf.training.trackers import guard_trackers


@dataclass
class EncoderArguments:
    """The encoder to fine-tune, or its random twin."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A discriminator: a folder or a model on the Hub."}
    )
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Its tokenizer (default: beside it)."})
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Take its shape and tokenizer, but random weights: what pretraining is worth."},
    )


_ONE_TEST = "the test part is scored once, at the end of each run"
# Settings of `TrainingArguments` that fine-tuning would ignore; any other value than these is refused.
FIXED = {
    "optim": ("adamw_torch_fused", "layer-wise learning rates are those of AdamW"),
    "resume_from_checkpoint": (None, "a run is short and starts from its encoder"),
    "eval_strategy": ("no", _ONE_TEST),
    "load_best_model_at_end": (False, _ONE_TEST),
    **{name: pretraining.FIXED[name] for name in ("deepspeed", "fsdp", "parallelism_config", "optim_target_modules")},
}


@dataclass
class FinetuningArguments(DeviceArguments):
    """`DeviceArguments` with the paper's numbers for fine-tuning (table 7, small) as defaults."""

    seeds: list[int] = field(
        default_factory=list, metadata={"help": "One run per seed, mean and sd over them (default: `seed` alone)."}
    )
    layerwise_lr_decay: float = field(default=0.8, metadata={"help": "Each layer learns at this times the one above."})
    published_decay: bool = field(default=False, metadata={"help": "The official code's form: one factor more."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of the head."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training part."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Windows a device takes at a time."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Windows a device evaluates at a time."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up; below 1, a share of all."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW."})
    logging_steps: float = field(default=0.1, metadata={"help": "Steps between two logs; below 1, a share of all."})
    save_strategy: str = field(default="no", metadata={"help": "A run is short: the model at its end is enough."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "True would log a NaN loss as 0."})

    def __post_init__(self):
        check_launcher()
        # Before the library's own checks, which would ask for packages that go with a refused setting.
        check_fixed(self, FIXED)
        super().__post_init__()
        check_training_settings(self)
        self.seeds = self.seeds or [self.seed]
        self.dataloader_pin_memory &= torch.cuda.is_available()  # on a CPU it does nothing but warn
        # Their spread would be too small, and one folder would be written twice.
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds: expected different numbers, got {self.seeds}; a seed twice is the same run.")
        if self.hub_token is not None:
            raise InputError(
                "hub_token: give the token by `hf auth login` or the variable HF_TOKEN, not as a setting."
            )


def check_folders(encoder_args: EncoderArguments, output_dir: str) -> None:
    """Refuse, before any work, a missing encoder and a result that would overwrite it. Raises `InputError`."""
    check_writable(output_dir)
    name = encoder_args.model_name_or_path
    if name is None:
        raise InputError("Give model_name_or_path: the folder `discriminator` of a pretraining run, or a Hub model.")
    # Resolved, since two spellings may mean one folder.
    if Path(output_dir).resolve() == Path(name).resolve():
        raise InputError(f"output_dir {output_dir} is the model to start from. Give the result a folder of its own.")
    if any(Path(output_dir).glob("checkpoint-*/run.json")) or (Path(output_dir) / "generator").exists():
        raise InputError(f"output_dir {output_dir} holds a pretraining run. Give the result a folder of its own.")


def load_encoder_tokenizer(encoder_args: EncoderArguments) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside the encoder, or the one that was named. Raises `InputError`."""
    return load_tokenizer(encoder_args.tokenizer_name_or_path or encoder_args.model_name_or_path)


def load_config(model_name_or_path: str, labels: list[str]) -> PretrainedConfig:
    """The configuration of a published encoder with `labels` for outputs. Raises `InputError` if it is not a model."""
    try:
        # Read first without building anything: the library's message for a pair would not say what to give instead.
        model_type = PretrainedConfig.get_config_dict(model_name_or_path)[0].get("model_type")
        if model_type == "electra-pretraining":
            raise InputError(
                f"model_name_or_path: {model_name_or_path} is the pair of generator and discriminator. Give its "
                "discriminator: the folder `discriminator` of the run, or what recipes/export.py writes."
            )
        return AutoConfig.from_pretrained(
            model_name_or_path, id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
        )
    except (OSError, ValueError) as error:
        # It is a ValueError too, and says already what is wrong.
        if isinstance(error, InputError):
            raise
        raise _not_a_model(model_name_or_path, error) from None


def build_model(
    auto_class: type, model_name_or_path: str, config: PretrainedConfig, from_scratch: bool = False
) -> PreTrainedModel:
    """The encoder with a new head for a task, in fp32; all of its weights are random if `from_scratch`.

    `auto_class` names the task, such as `AutoModelForTokenClassification`. A head of another task, with another number
    of labels, is left behind. Raises `InputError` where the encoder's own weights are not all there, or do not fit.
    """
    # The random twin has the same shape and tokenizer, so only the pretraining differs.
    if from_scratch:
        return auto_class.from_config(config, dtype="float32")
    try:
        # Another number of labels is no reason to refuse: the old head is thrown away in any case.
        model, loading = auto_class.from_pretrained(
            model_name_or_path,
            config=config,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _not_a_model(model_name_or_path, error) from None
    # Only the head is new. Weights of another architecture would leave a random encoder behind, with a mere warning.
    misfits = [key for key, *_ in loading["mismatched_keys"]]
    missing = [key for key in [*loading["missing_keys"], *misfits] if key.startswith(f"{model.base_model_prefix}.")]
    if missing:
        raise InputError(
            f"model_name_or_path: {model_name_or_path} lacks {len(missing)} weights or has them in another shape, "
            f"{missing[0]} first."
        )
    return model


def _not_a_model(name, error):
    return InputError(
        f"model_name_or_path: {name} is neither a folder with a model (config.json, model.safetensors) nor a model on "
        f"the Hub that can be loaded. ({str(error).splitlines()[0]})"
    )


def longest_window(max_length: int | None, tokenizer, config: PretrainedConfig) -> int:
    """`max_length` checked against the model, or the longest that model and tokenizer allow, in tokens.

    Raises `InputError` where the model reads less, and where the tokenizer has more entries than the model.
    """
    # The smaller one: a tokenizer may allow more than the model has positions, or name no limit at all.
    limit = min(tokenizer.model_max_length, config.max_position_embeddings)
    if max_length is not None and not 3 <= max_length <= limit:
        raise InputError(f"max_length: expected 3 to {limit} tokens, the longest this model reads, got {max_length}.")
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"The tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}: give the tokenizer that "
            "the model was trained with as tokenizer_name_or_path."
        )
    return max_length or limit


def layerwise_parameter_groups(
    model: nn.Module, learning_rate: float, decay: float, weight_decay: float = 0.0, published_decay: bool = False
) -> list[dict]:
    """Parameter groups for an optimizer, with a learning rate that shrinks from the head towards the input.

    With n layers the head learns at `learning_rate`, layer n (the top) at `learning_rate * decay`, layer 1 at
    `decay**n`, the embeddings (with their projection) at `decay**(n + 1)`. `published_decay` reproduces the official
    code, which is off by one: everything below the head gets one more factor of `decay`. Biases and LayerNorm are not
    decayed by `weight_decay`. The head's group comes first, so the logged learning rate is the head's.
    """
    if not 0 < decay <= 1:
        raise InputError(f"layerwise_lr_decay: expected a factor above 0 and up to 1, got {decay}.")
    # By identity: the names of the whole model begin with the family's prefix, which differs.
    encoder = model.base_model
    in_encoder = {id(parameter): name for name, parameter in encoder.named_parameters()}
    depths = _depths(encoder, decay)
    num_layers = max(depths.values(), default=0)
    groups = {}
    # A shared parameter comes once here; an optimizer refuses one that stands in two groups.
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        name = in_encoder.get(id(parameter))
        steps = 0 if name is None else num_layers + 1 - depths[name] + published_decay
        # Only matrices are decayed: every vector here is a bias or belongs to a LayerNorm.
        groups.setdefault((steps, parameter.ndim < 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay**steps,
            "weight_decay": 0.0 if is_vector else weight_decay,
        }
        for (steps, is_vector), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def _depths(encoder, decay):
    """For each parameter of an encoder by name: 0 in the embeddings, 1 in the first layer, n in the last."""
    names = [name for name, _ in encoder.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 0)  # one rate for all
    number = encoder.config.num_hidden_layers
    # Every family names its layers in its own way, but all of them keep them in one list.
    lists = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == number and any(True for _ in module.parameters())
    ]
    # ALBERT shares one layer among all, and others keep several lists: guessing would give wrong rates.
    if len(lists) != 1:
        raise InputError(
            f"layerwise_lr_decay: {type(encoder).__name__} has no list of {number} layers with weights of their own. "
            "Set layerwise_lr_decay: 1.0, which is one rate for all."
        )
    # In the order of the model, which is the order of its layers.
    depths, depth = {}, 0
    for name in names:
        if layer := re.match(re.escape(lists[0]) + r"\.(\d+)\.", name):
            depth = int(layer.group(1)) + 1
        # What follows the last layer, such as a LayerNorm, learns as that one does.
        depths[name] = 0 if "embeddings" in name and not layer else depth
    return depths


def fine_tune(
    seed: int,
    auto_class: type,
    encoder_args: EncoderArguments,
    training_args: FinetuningArguments,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset,
    data_collator: Callable,
    preprocess_logits_for_metrics: Callable | None = None,
) -> Trainer:
    """Train one model with this seed, and return the `Trainer` that holds it.

    With several seeds each run has a folder of its own, `seed-N`, inside of output_dir. The head learns at
    learning_rate, and every layer at layerwise_lr_decay times the rate of the layer above it (rule 18).
    """
    # Before the model is made: the head starts from random weights.
    set_seed(seed)
    model = build_model(auto_class, encoder_args.model_name_or_path, config, encoder_args.from_scratch)
    # Every head averages its loss; else the Trainer multiplies that by accumulation steps and processes.
    model.accepts_loss_kwargs = False
    several = len(training_args.seeds) > 1
    output_dir = Path(training_args.output_dir, f"seed-{seed}" if several else "")
    groups = layerwise_parameter_groups(
        model,
        training_args.learning_rate,
        training_args.layerwise_lr_decay,
        training_args.weight_decay,
        training_args.published_decay,
    )
    betas = (training_args.adam_beta1, training_args.adam_beta2)
    trainer = Trainer(
        model,
        replace(training_args, seed=seed, output_dir=str(output_dir)),
        data_collator=data_collator,
        train_dataset=train_dataset,
        processing_class=tokenizer,
        # The library would make one group for all layers. The schedule stays its own (None).
        optimizers=(torch.optim.AdamW(groups, betas=betas, eps=training_args.adam_epsilon), None),
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    guard_trackers(trainer)
    show_plainly(trainer)
    trainer.train()
    return trainer


def summarise_runs(runs: list[dict[str, float]]) -> dict[str, float]:
    """The first run's scores as they are and, of several runs, each score's mean and sample standard deviation."""
    # The first run is the one whose model is kept, so its own scores stand without a suffix.
    summary = dict(runs[0])
    if len(runs) > 1:
        for name in runs[0]:
            values = [run[name] for run in runs]
            summary |= {f"{name}_mean": mean(values), f"{name}_sd": stdev(values)}
    return summary


def show_score(title: str, metrics: dict[str, float], key: str, width: int = 40, digits: int = 4) -> str:
    """A line with one score of `summarise_runs` and, where there are several seeds, its mean ± sd over them."""
    line = f"{title:<{width}} {metrics[key]:.{digits}f}"
    if f"{key}_sd" in metrics:
        line += f"   over the seeds {metrics[f'{key}_mean']:.{digits}f} ± {metrics[f'{key}_sd']:.{digits}f}"
    return line

"""What a recipe may set: dataclasses filled from a flat YAML file and the command line."""

import difflib
import json
import os
import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.utils import is_torch_tf32_available

from electra_hf.configuration import ElectraPretrainingConfig
from electra_hf.errors import InputError, disk_fault
from electra_hf.stopping import exit_on_signals


class _Parser(HfArgumentParser):
    def error(self, message):
        # argparse would print its usage first: 150 options, and the message lost below them.
        raise InputError(message)


def parse_arguments(*argument_classes, argv=None):
    """Fill the dataclasses from `--config FILE.yaml` and the flags in `argv` (default: the command line).

    A key of the file is the name of a flag. Flags win over the file, the file over the defaults; an unknown key is an
    error. Returns one instance per class. Raises `InputError`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_classes, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="The recipe: a flat YAML file of the flags below.")
    config, _ = parser.parse_known_args(argv)
    tokens = _tokens_from_yaml(parser, config.config) if config.config else []
    # The file's values stand before the user's flags, and argparse lets the last one win.
    try:
        *arguments, _, unknown = parser.parse_args_into_dataclasses(
            tokens + argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError) as error:  # what the dataclasses themselves refuse, bf16 without a GPU say
        raise InputError(str(error)) from error
    if unknown:
        known = {option for action in parser._actions for option in action.option_strings}
        raise InputError(f"{unknown[0]} is not a setting of this recipe{_suggestion(unknown[0], known)}.")
    return arguments


def _tokens_from_yaml(parser, path):
    """The file as command-line tokens, each key checked alone so that an error can name its line."""
    known = {action.dest for action in parser._actions} - {"help", "config"}
    tokens = []
    for key, value, line in _read_flat_yaml(path):
        if key not in known:
            raise InputError(f"{path}, line {line}: unknown key '{key}'{_suggestion(key, known)}.")
        try:
            key_tokens = as_flags(key, value)
            parser.parse_known_args(key_tokens)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        tokens += key_tokens
    return tokens


def _read_flat_yaml(path):
    """Yield (key, value, line number) in the order of the file."""
    if not Path(path).is_file():
        raise InputError(f"--config: there is no file {path}.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        node, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected one 'key: value' per line, found a {type(values).__name__}.")
    seen = set()
    for key_node, _ in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if key in seen:
            raise InputError(f"{path}, line {line}: the key '{key}' stands there a second time.")
        seen.add(key)
        yield key, values.get(key), line


def as_flags(key, value) -> list[str]:
    """A setting as it stands in a YAML file, as the flags of a command line."""
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    if isinstance(value, list):
        if not value or any(isinstance(item, (list, dict)) for item in value):
            raise InputError(f"{key}: expected a list of plain values.")
        return [f"--{key}", *map(str, value)]
    return [f"--{key}={value}"]


def _suggestion(name, known):
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def as_dict(key, value):
    """A setting that is itself a set of settings: a mapping in YAML, JSON on the command line."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{key}: expected JSON such as '{{\"num_hidden_layers\": 3}}', got {value!r} ({error})."
            ) from None
    if not isinstance(value, dict):
        raise InputError(f"{key}: expected settings by name, got {value!r}.")
    return value


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
        default=None, metadata={"help": "Continue from this published discriminator (its size, its tokenizer)."}
    )
    generator_name_or_path: str | None = field(
        default=None, metadata={"help": "The published generator that belongs to it."}
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
        self.generator = as_dict("generator", self.generator)
        self.discriminator = as_dict("discriminator", self.discriminator)
        given = [self.discriminator_name_or_path is not None, self.generator_name_or_path is not None]
        if self.objective != "mlm" and len(set(given)) > 1:
            raise InputError(
                "discriminator_name_or_path and generator_name_or_path go together: a discriminator learns nothing "
                "without the generator that fills its input."
            )
        # A wrong size or field must not wait for the corpus.
        ElectraPretrainingConfig.from_size(
            self.model_size, generator=self.generator, discriminator=self.discriminator, **self.pair_settings()
        )

    def pair_settings(self):
        """The settings of the pair itself, for `ElectraPretrainingConfig`."""
        settings = {
            "objective": self.objective,
            "embedding_sharing": self.embedding_sharing,
            "whole_word_selection": self.whole_word_selection,
            "sampling_temperature": self.sampling_temperature,
            "generator_weight": self.generator_weight,
            "discriminator_weight": self.discriminator_weight,
        }
        return settings if self.mask_probability is None else settings | {"mask_probability": self.mask_probability}


@dataclass
class TokenizerArguments:
    """The tokenizer: trained on the corpus, or an existing one."""

    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "An existing tokenizer, local or from the Hub; otherwise one is trained."}
    )
    tokenizer_type: Literal["wordpiece", "bpe"] = field(
        default="wordpiece", metadata={"help": "wordpiece or bpe (byte-level)."}
    )
    vocab_size: int = field(default=52_000, metadata={"help": "Entries, rounded up to a multiple of 64."})
    lowercase: bool = field(default=False, metadata={"help": "Lower-case the text; accents stay either way."})
    max_length: int = field(
        default=128, metadata={"help": "Length of a packed row in tokens, [CLS] and [SEP] included."}
    )

    def training_settings(self):
        """What a new tokenizer is trained with, for `tokenization.train_tokenizer`."""
        return {
            "vocab_size": self.vocab_size,
            "tokenizer_type": self.tokenizer_type,
            "lowercase": self.lowercase,
        }


@dataclass
class PretrainingArguments(TrainingArguments):
    """`TrainingArguments` with the paper's numbers (table 6, small) as defaults, and what exact resume needs."""

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    warmup_steps: float = field(default=10_000, metadata={"help": "Steps of warm-up; below 1, a share of all."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Rows a device takes at a time."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Rows a device evaluates at a time."})
    generator_only_steps: int = field(
        default=0, metadata={"help": "Two stages: the generator alone for these steps, then both from its weights."}
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

    def __post_init__(self):
        if self.tf32 is None and is_torch_tf32_available():
            self.tf32 = True  # for matrix products that stay in fp32
        super().__post_init__()
        # A batch goes to the device while that computes; otherwise every copy would wait for the step before it.
        self.accelerator_config.non_blocking = torch.cuda.is_available()
        if self.hub_token is not None:
            raise InputError(
                "hub_token: give the token by `hf auth login` or the variable HF_TOKEN, never as a setting."
            )
        if self.data_seed is None:
            self.data_seed = self.seed
        try:  # a tracker that is not installed must not wait for the corpus
            for tracker in get_reporting_integration_callbacks(self.report_to):
                tracker()
        except RuntimeError as error:
            raise InputError(f"report_to: {error}") from None
        self.dataloader_pin_memory &= torch.cuda.is_available()  # on a CPU it does nothing but warn


def save_recipe(path, *arguments):
    """Write every setting as it ran to a YAML file that `--config` reads again. Secrets are never written."""
    recipe = {}
    for group in arguments:
        for setting in fields(group):
            value = getattr(group, setting.name)
            if is_dataclass(value):
                value = asdict(value)
            if setting.init and value is not None and value != [] and not setting.name.endswith("_token"):
                recipe[setting.name] = value.value if isinstance(value, Enum) else value
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")


def run_recipe(main, *argument_classes):
    """Parse, run `main(*arguments)`, and turn a wrong input into one message and exit code 2 (DESIGN: exit codes)."""
    exit_on_signals()
    try:
        arguments = parse_arguments(*argument_classes)
        main(*arguments)
    except Exception as error:
        if isinstance(error, (InputError, FloatingPointError)):  # numbers broke: the message says what to lower
            message = error
        elif fault := disk_fault(error):
            message = f"{fault}. Make room there, or name a place that you may use, and start the same command again."
        else:
            raise
        # Every rank meets the same wrong input; one message is enough.
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

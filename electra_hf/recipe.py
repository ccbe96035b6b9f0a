"""A recipe from its start to its exit code: settings from a YAML file and flags, their record, signals, errors."""

import difflib
import json
import os
import signal
import sys
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from electra_hf.errors import InputError, disk_fault

# SIGHUP comes when a terminal closes or an ssh line drops: the commonest interruption of all.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """The signals that end a run. One that this process was started to ignore (`nohup`) stays ignored."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


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


def write_json(values: dict, path: str | Path) -> None:
    """Write numbers by name, such as metrics.json."""
    Path(path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


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


def exit_on_signals():
    """Outside of training there is nothing to save: end at once, with the exit code of the signal (143, 130, 129)."""
    signals = stop_signals()

    def leave(number, frame):
        for again in signals:
            signal.signal(again, lambda second, frame: os._exit(128 + number))
        sys.exit(128 + number)

    for number in signals:
        signal.signal(number, leave)

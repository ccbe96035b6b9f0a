"""A recipe from its start to its exit code: settings from a YAML file and flags, their record, signals, errors."""

import argparse
import difflib
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from electra_hf.errors import InputError, disk_fault
from electra_hf.files import write_text

# SIGHUP comes when a terminal closes or an ssh line drops: the commonest interruption of all.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_signals() -> list[signal.Signals]:
    """The signals that end a run. One that this process was started to ignore (`nohup`) stays ignored."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


class _Parser(HfArgumentParser):
    def error(self, message):
        # argparse would print its usage first: 150 options, and the message lost below them.
        raise InputError(message)


def parse_arguments(*argument_classes: type, argv: list[str] | None = None) -> list:
    """Fill the dataclasses from `--config FILE.yaml` and the flags in `argv` (default: the command line).

    A key of the file is the name of a flag. Flags win over the file, the file over the defaults; an unknown key is an
    error. Returns one instance per class. Raises `InputError`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(argument_classes, allow_abbrev=False)
    config, _ = _config_parser().parse_known_args(argv)
    parser.add_argument("--config", metavar="FILE.yaml", help="The recipe: a flat YAML file of the flags below.")
    tokens = _read_config(parser, config.config, argument_classes) if config.config else []
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


def _config_parser():
    """Looks for --config alone: flags that a recipe requires may stand in the file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser


def _read_config(parser, path, argument_classes):
    """The file as command-line tokens, each key checked alone so that an error can name its line.

    What no token can say (null, an empty list) becomes the parser's default.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    settings = _settings_of(argument_classes)
    tokens = []
    for key, value, node in _read_flat_yaml(path):
        place = f"{path}, line {node.start_mark.line + 1}"
        if key not in actions:
            raise InputError(f"{place}: unknown key '{key}'{_suggestion(key, actions)}.")
        actions[key].required = False
        try:
            if value is None or value == []:
                parser.set_defaults(**{key: _check_empty(key, value, settings[key])})
                continue
            key_tokens = _as_tokens(key, value, node, settings[key])
            _check_tokens(parser, key_tokens)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        tokens += key_tokens
    return tokens


def _settings_of(argument_classes):
    """The types that a value of each setting may have, by its name, such as {int, NoneType}."""
    types = {}
    for group in argument_classes:
        hints = get_type_hints(group)
        for setting in fields(group):
            parts = get_args(hints[setting.name]) if _is_union(hints[setting.name]) else [hints[setting.name]]
            types[setting.name] = {get_origin(part) or part for part in parts}
            if setting.default is None:
                types[setting.name].add(type(None))
    return types


def _is_union(hint):
    return get_origin(hint) in (Union, UnionType)


def _check_empty(key, value, types):
    if value is None and type(None) not in types:
        raise InputError(f"{key}: null is no value of this setting. Leave the line out to get the default.")
    if value == [] and list not in types:
        raise InputError(f"{key}: expected a plain value, found an empty list.")
    return value


def _check_tokens(parser, tokens):
    """Let argparse read these tokens alone, without asking for the flags that a recipe requires."""
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False
    try:
        parser.parse_known_args(tokens)
    finally:
        for action in required:
            action.required = True


def _as_tokens(key, value, node, types):
    """One setting of the file as flags: numbers as YAML means them, text as it stands in the file."""
    if isinstance(value, dict):
        if not types & {dict, str}:
            raise InputError(f"{key}: expected a plain value, found settings by name.")
        return [f"--{key}={json.dumps(value, default=str)}"]
    if isinstance(value, (list, tuple, set)):
        if any(not isinstance(item, yaml.ScalarNode) for item in node.value) or isinstance(value, set):
            raise InputError(f"{key}: expected a list of plain values.")
        if list not in types:
            raise InputError(f"{key}: expected one value, found a list of {len(value)}.")
        return [
            f"--{key}",
            *(_as_text(item, item_node, types) for item, item_node in zip(value, node.value, strict=True)),
        ]
    return [f"--{key}={_as_text(value, node, types)}"]


def _as_text(value, node, types):
    if isinstance(value, bool):
        # YAML reads no, off and yes as truth values. Where a setting is text (eval_strategy: no), they are text.
        return str(value) if bool in types else node.value
    if isinstance(value, (int, float)) and types & {int, float}:
        return repr(int(value)) if isinstance(value, float) and value.is_integer() else repr(value)
    if int in types and not types & {str, float}:
        return _whole_number(node.value)
    return node.value


def _whole_number(text):
    """1e3, which YAML takes for text, as 1000."""
    try:
        number = float(text)
        return str(int(number)) if number.is_integer() else text
    except (ValueError, OverflowError):
        return text


def _read_flat_yaml(path):
    """Yield (key, value, node of the value) in the order of the file."""
    if not Path(path).is_file():
        raise InputError(f"--config: there is no file {path}.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        document, values = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    # A date that is none is a ValueError of its own; deep nesting ends in a RecursionError.
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected one 'key: value' per line, found a {type(values).__name__}.")
    seen = set()
    for key_node, node in document.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{path}, line {line}: expected the name of a setting before the colon.")
        key = key_node.value
        if key in seen:
            raise InputError(f"{path}, line {line}: the key '{key}' stands there a second time.")
        seen.add(key)
        # The loader's own reading of the key: `on: 1` has the key True.
        yield key, values.get(key, node.value), node


def as_flags(key: str, value: object) -> list[str]:
    """A setting by its value, as the flags of a command line."""
    if value is None or value == []:
        return []
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    if isinstance(value, list):
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


def save_recipe(path: str | Path, *arguments: object) -> None:
    """Write every setting as it ran to a YAML file that `--config` reads again.

    Those that differ from their defaults come first, all others below. Secrets are never written: no token, and no
    password or signed query of an address.
    """
    chosen, others = {}, {}
    for group in arguments:
        for setting in fields(group):
            if not setting.init or setting.name.endswith("_token"):
                continue
            default = setting.default_factory() if setting.default is MISSING else setting.default
            value, default = _plain(getattr(group, setting.name)), _plain(default)
            (others if value == default else chosen)[setting.name] = redact(value)
    others = {name: value for name, value in others.items() if value is not None and value != []}
    texts = ["# Chosen by the user or the recipe. An address is without its password and query.", _dump(chosen)]
    texts += ["# All other settings, at their defaults.", _dump(others)] if others else []
    write_text(path, "\n".join(texts))


def _plain(value):
    if value is MISSING:
        return None
    if is_dataclass(value):
        return asdict(value)
    return value.value if isinstance(value, Enum) else value


def _dump(settings):
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True) if settings else ""


def redact(value: object) -> object:
    """The value without what an address in it may carry for the server alone: a password, a signed query."""
    if isinstance(value, str) and "://" in value:
        return re.sub(r"(\w+://)(?:[^\s/@]*@)?([^\s?#]*)(?:[?#]\S*)?", r"\1\2", value)
    if isinstance(value, dict):
        return {key: redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value


def run_recipe(main: Callable, *argument_classes: type) -> None:
    """Parse, run `main(*arguments)`, and turn a wrong input into one message and exit code 2 (DESIGN: exit codes)."""
    exit_on_signals()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a letter that the terminal lacks must not end a run
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

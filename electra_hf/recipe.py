"""A recipe from its start to its exit code: settings from a YAML file and flags, their record, signals, errors."""

import difflib
import gc
import io
import json
import math
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import get_type_hints

from transformers import HfArgumentParser

from electra_hf.addresses import public_text
from electra_hf.errors import AgreedError, InputError, disk_fault
from electra_hf.settings import convert_setting, read_settings, write_settings

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
    # Flags first: they name the file.
    flags = _parse_flags(argument_classes, sys.argv[1:] if argv is None else argv)
    config = flags.pop("config", None)
    return _build(argument_classes, (_read_config(argument_classes, config) if config is not None else {}) | flags)


def fill_arguments(argument_classes: tuple[type, ...], settings: dict) -> list:
    """Fill the dataclasses from plain values by name, as a YAML file has them. Raises `InputError`."""
    known = _known_settings(argument_classes)
    for name in settings:
        _check_known(name, known)
    return _build(argument_classes, {name: convert_setting(*known[name], value) for name, value in settings.items()})


def _parse_flags(argument_classes, argv):
    """The settings that stand on the command line, and no others."""
    # Without abbreviations: a misspelt flag would be taken for a longer one.
    parser = _Parser(argument_classes, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="The recipe: a flat YAML file of the flags below.")
    for action in parser._actions:
        action.required = False  # the file may have it
    # argparse fills in defaults, which would hide what the file says. It leaves a name alone that has a value already.
    not_given = object()
    namespace = Namespace(**{action.dest: not_given for action in parser._actions if action.dest != "help"})
    namespace, unknown = parser.parse_known_args(list(argv), namespace)
    if unknown:
        known = {option for action in parser._actions for option in action.option_strings}
        raise InputError(f"{unknown[0]} is not a setting of this recipe{_suggestion(unknown[0], known)}.")
    given = {name: value for name, value in vars(namespace).items() if value is not not_given}
    for name, value in given.items():
        # argparse takes nan and inf for numbers; a file with them is refused as well.
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name}: expected a number, got {value}.")
    return given


def _known_settings(argument_classes):
    """Each setting's name with its field and its type."""
    known = {}
    for argument_class in argument_classes:
        types = get_type_hints(argument_class)
        known |= {field.name: (field, types[field.name]) for field in fields(argument_class) if field.init}
    return known


def _read_config(argument_classes, path):
    known, chosen = _known_settings(argument_classes), {}
    settings = read_settings(path)
    try:
        for setting in settings:
            _check_known(setting.name, known)
        for setting in settings:
            chosen[setting.name] = convert_setting(*known[setting.name], setting.value)
    except InputError as error:
        raise InputError(f"{path}, line {setting.line}: {error}") from None
    return chosen


def _check_known(name, known):
    if name not in known:
        raise InputError(f"unknown key '{name}'{_suggestion(name, known)}.")


def _build(argument_classes, chosen):
    known = _known_settings(argument_classes)
    required = [name for name, (field, _) in known.items() if field.default is field.default_factory is MISSING]
    if missing := [f"--{name}" for name in required if name not in chosen]:
        raise InputError(f"{', '.join(missing)} must be given, as a flag or as a key of the file for --config.")
    groups = []
    for argument_class in argument_classes:
        names = {field.name for field in fields(argument_class)}
        own = {name: value for name, value in chosen.items() if name in names}
        try:
            group = argument_class(**own)
        except (ValueError, ImportError) as error:  # what the dataclasses themselves refuse, bf16 without a GPU say
            raise InputError(str(error)) from error
        group.chosen_settings = tuple(own)  # for `save_recipe`; a tuple, since a set is pickled in any order
        groups.append(group)
    return groups


def _suggestion(name, known):
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def as_dict(key: str, value: dict | str | None) -> dict:
    """A setting that is itself a set of settings: a mapping in YAML, JSON on the command line. Raises `InputError`."""
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


def recipe_settings(*groups) -> dict:
    """Every setting as it runs, by name, as a YAML file has it; tokens are left out.

    `groups` are what `parse_arguments` returned; of a name that stands in two of them the last one counts.
    """
    recipe = {}
    chosen = _chosen(groups)
    for group in groups:
        for setting in fields(group):
            value = getattr(group, setting.name)
            value = asdict(value) if is_dataclass(value) else value.value if isinstance(value, Enum) else value
            # An empty value is worth a line only where the default is another one.
            is_said = (
                value not in (None, []) or setting.name in chosen or setting.default not in (None, [], "", MISSING)
            )
            if setting.init and is_said and not setting.name.endswith("_token"):
                recipe[setting.name] = value
    return recipe


def _chosen(groups):
    return {name for group in groups for name in vars(group).get("chosen_settings", ())}


def save_recipe(path: str | Path, *groups) -> None:
    """Write every setting as it ran (`recipe_settings`) to a YAML file that `--config` reads again.

    The settings that were chosen stand first. Addresses lose what only the server may read.
    """
    recipe, chosen = recipe_settings(*groups), _chosen(groups)
    write_settings(
        path,
        {name: value for name, value in recipe.items() if name in chosen},
        {name: value for name, value in recipe.items() if name not in chosen},
    )


def run_recipe(main: Callable, *argument_classes: type) -> None:
    """Parse, run `main(*arguments)`, and turn a wrong input into one message and exit code 2 (DESIGN: exit codes)."""
    exit_on_signals()
    print_whatever_comes()
    code = _exit_code(main, argument_classes)
    end_processes()  # here, where nothing holds what `main` has made
    if code:
        sys.exit(code)


def _exit_code(main, argument_classes):
    try:
        main(*parse_arguments(*argument_classes))
    except SystemExit as end:  # stopped by a signal, or trained but not pushed
        return end.code
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        is_agreed = isinstance(error, AgreedError)
        # Every process of a machine meets the same wrong input, and those of all machines an agreed one.
        if os.environ.get("RANK" if is_agreed else "LOCAL_RANK", "0") == "0":
            print(f"error: {public_text(message)}", file=sys.stderr)
        if is_agreed:  # the launcher ends the last processes as soon as the first has left: they keep their code
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return 2


def explain(error: Exception) -> str | None:
    """What to tell the user about an error that comes from the input or the machine; None where it is a defect."""
    if isinstance(error, (InputError, FloatingPointError)):  # numbers broke: the message says what to lower
        return str(error)
    if isinstance(error, UnicodeEncodeError):  # LC_ALL=C: names of files are ASCII there
        letters = ascii(error.object[error.start : error.end])
        return (
            f"{letters} has no place in the encoding of this terminal or file system ({error.encoding}). "
            "Set the variable PYTHONUTF8=1, and start the same command again."
        )
    if fault := disk_fault(error):
        return f"{fault}. Make room there, or name a place that you may use, and start the same command again."
    return None


def end_processes() -> None:
    """Leave the group of processes, if there is one.

    Its threads outlive a program that only ends, and meet an interpreter that is half gone: now and then a run that
    has done all its work would end with "terminate called" and a code that says it failed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # a trainer refers to itself, and its model to the group
        distributed.destroy_process_group()


def print_whatever_comes() -> None:
    """Print a letter that the terminal's encoding lacks, such as ĉ under LC_ALL=C, as its number (\\u0109)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_on_signals() -> None:
    """Outside of training there is nothing to save: end at once, with the exit code of the signal (143, 130, 129)."""
    signals = stop_signals()

    def leave(number, frame):
        for again in signals:
            signal.signal(again, lambda second, frame: os._exit(128 + number))
        sys.exit(128 + number)

    for number in signals:
        signal.signal(number, leave)

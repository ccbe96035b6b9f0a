"""A YAML file of settings. A setting gets what YAML means by its value; what does not fit is refused with its name."""

import math
import re
from collections.abc import Iterator
from dataclasses import Field
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml

from electra_hf.addresses import public_text
from electra_hf.errors import InputError
from electra_hf.files import write_text

_STRING, _MERGE, _NULL = ("tag:yaml.org,2002:" + name for name in ("str", "merge", "null"))
_CHOSEN = "# The settings that the recipe and the command line chose.\n"
_OTHERS = "\n# All other settings, as they ran.\n"
_CUT = "# Addresses stand here without passwords and queries. Put them back to fetch from there again.\n"
# PyYAML's constructors check nothing: what they meet in `!!int x` or in the date 2026-13-45 is any of these.
_CONSTRUCTION_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


class _SafeLoader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1, where 1e3 and 5e-4 are texts. Here they are numbers, as in YAML 1.2."""


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


class Setting(NamedTuple):
    """A line of the file: the name, what YAML means by the value, and the number of the line, from 1."""

    name: str
    value: Any
    line: int


def read_settings(path: str | Path) -> list[Setting]:
    """The settings of a flat YAML file, in its order. Raises `InputError` with the line of what is wrong."""
    loader = _open(path)
    try:
        # Nodes, not values: they still know their lines, and how a number was written.
        node = loader.get_single_node()
        # An empty file is a recipe without settings.
        if node is None or node.tag == _NULL:
            return []
        if not isinstance(node, yaml.MappingNode):
            found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise InputError(f"{path}: expected one 'key: value' per line, found {found}.")
        for line, fault in _faults(node):
            raise InputError(f"{path}, line {line}: {fault}")
        loader.flatten_mapping(node)  # `<<: *anchor`
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return [Setting(key.value, _construct(loader, key, value, path), _line(key)) for key, value in node.value]


def _open(path):
    # A pipe or a device would be read for ever.
    if not Path(path).is_file():
        raise InputError(f"--config: there is no file {path}.")
    try:
        loader = _SafeLoader(Path(path).read_bytes())  # bytes: PyYAML knows UTF-8, UTF-16 and their marks
        loader.name = str(path)  # for its messages
        return loader
    except OSError as error:
        raise InputError(f"--config: {path} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _line(node):
    return node.start_mark.line + 1


def _faults(node: yaml.MappingNode) -> Iterator[tuple[int, str]]:
    """(line, fault) of what PyYAML would take without a word: doubled keys, numbers as names, ambiguous numbers."""
    yield from _faults_of_keys(node)
    for key, value in node.value:
        for line, fault in _faults_of_value(value, [node]):
            yield line, f"{key.value}: {fault}"


def _faults_of_value(node, above):
    if any(node is other for other in above):
        yield _line(node), "the anchor stands inside of itself."
        return
    children = []
    if isinstance(node, yaml.MappingNode):
        yield from _faults_of_keys(node)
        # PyYAML keeps the last of two equal keys at any depth, and says nothing.
        children = [value for _, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    # 010 is 8 in YAML 1.1 and 10 in YAML 1.2; 1:30 is 90 or a text.
    elif node.tag.endswith((":int", ":float")) and re.match(r"[-+]?(0[0-9_]+$|[0-9_]+:)", node.value):
        yield _line(node), f"{node.value} is not the same number in every YAML. Write it without leading 0 or colon."
    for child in children:
        yield from _faults_of_value(child, [*above, node])


def _faults_of_keys(node):
    names = set()
    for key, _ in node.value:
        if key.tag not in (_STRING, _MERGE):
            yield _line(key), "expected a name before the colon. Put a name that is a number or a yes in quotes."
        elif key.value in names:
            yield _line(key), f"the key '{key.value}' stands there a second time."
        names.add(str(key.value))


def _construct(loader, key, value, path):
    try:
        return loader.construct_object(value, deep=True)
    except _CONSTRUCTION_FAULTS as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}, line {_line(key)}: {key.value}: the value is not valid YAML ({reason}).") from None


def convert_setting(field: Field, annotation: Any, value: Any) -> Any:
    """The plain value as a dataclass field of the type `annotation` has it. Raises `InputError` if it does not fit.

    A whole number is a number, 1e3 is a whole number, and one value is a list of one.
    """
    choices = field.metadata.get("choices")
    # YAML reads a plain `no` as false. Where "no" is one of the words of a setting, it is that word.
    readings = [value, "no"] if value is False and (field.default == "no" or "no" in _words(annotation)) else [value]
    for reading in readings:
        try:
            found = _convert(reading, annotation)
        except (ValueError, OverflowError):  # a whole number of 400 digits is no float
            continue
        if found is None or not choices or found in choices:
            return found
    expected = f"one of {', '.join(map(str, choices))}" if choices else _describe(annotation)
    raise InputError(f"{field.name}: expected {expected}, got {_show(value)}.{_hint(annotation, value)}")


def _members(annotation):
    """The types of a union, or the one type."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    # `SchedulerType | str` means: one of the names in SchedulerType.
    # Taken as a text, a misspelt name would pass here and fail much later.
    return [member for member in members if not (member is str and any(map(_is_enum, members)))]


def _is_enum(annotation):
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _words(annotation):
    """The words that the setting accepts, where they are listed."""
    words = []
    for member in _members(annotation):
        words += [option.value for option in member] if _is_enum(member) else []
        words += get_args(member) if get_origin(member) is Literal else []
    return words


def _convert(value, annotation):
    members = _members(annotation)
    if len(members) == 1:
        return _convert_to(value, members[0])
    for member in members:
        try:
            return _convert_to(value, member)
        except ValueError:
            pass
    raise ValueError


def _convert_to(value, annotation):
    kind = get_origin(annotation) or annotation
    if kind is list:
        return [_convert(item, get_args(annotation)[0]) for item in (value if isinstance(value, list) else [value])]
    if kind is Literal or _is_enum(kind):
        # True equals 1 and 1.0 in Python; in a file they are not the same.
        if any(type(value) is type(word) and value == word for word in _words(annotation)):
            return value
    elif kind is Any:
        return value
    # A learning rate of .inf or .nan is a slip of the pen, and would be met after hours.
    elif kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif kind is int and type(value) is float and value.is_integer():
        return int(value)
    # By the exact type: a bool is an int to Python, and `seed: yes` is not 1.
    elif kind is not float and type(value) is kind:
        return value
    raise ValueError


def _describe(annotation):
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    descriptions = []
    for member in _members(annotation):
        kind = get_origin(member) or member
        if kind is list:
            descriptions.append(f"a list of plain values, each {_describe(get_args(member)[0])}")
        elif words := _words(member):
            descriptions.append(f"one of {', '.join(map(str, words))}")
        else:
            descriptions.append("settings by name" if kind is dict else names.get(kind, kind.__name__))
    return " or ".join(descriptions)


def _show(value):
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", int: "number", float: "number", dict: "settings"}
    shown = f"the {names.get(type(value), type(value).__name__)} {repr(value) if isinstance(value, str) else value}"
    return shown if len(shown) < 100 else f"{shown[:100]}..."


def _hint(annotation, value):
    if value is None:
        return " Leave the line out for the default."
    items = value if isinstance(value, list) else [value]
    # `run_name: 2024` is a number to YAML, and means a name.
    wants_text = "a text" in _describe(annotation)
    return (
        " Put it in quotes." if wants_text and not any(isinstance(item, (str, list, dict)) for item in items) else ""
    )


def write_settings(path: str | Path, chosen: dict, others: dict) -> None:
    """Write a file that `read_settings` reads again: the chosen settings, then all others. Addresses become public."""
    public = {name: _public(value) for name, value in (chosen | others).items()}
    text = _CUT if public != chosen | others else ""
    for heading, names in ((_CHOSEN, chosen), (_OTHERS, others)):
        if names:
            # In the order of the dataclasses, as the help has them.
            block = {name: public[name] for name in names}
            text += heading + yaml.safe_dump(block, sort_keys=False, allow_unicode=True)
    write_text(path, text)


def chosen_part(text: str) -> str:
    """The first block of a file that `write_settings` wrote, or all of another one."""
    return text.partition(_OTHERS)[0].removeprefix(_CUT).removeprefix(_CHOSEN).strip("\n")


def _public(value):
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return public_text(value) if isinstance(value, str) else value

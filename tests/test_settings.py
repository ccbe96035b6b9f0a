"""What YAML means by a value is what the setting gets, or it is refused by its name."""

import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.recipe import _known_settings, fill_arguments
from electra_hf.settings import chosen_part, convert_setting, read_settings, write_settings

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import export  # noqa: E402
import finetune_token_classification  # noqa: E402
import pretrain  # noqa: E402
import push  # noqa: E402

KNOWN = {}
for classes in (pretrain.ARGUMENTS, finetune_token_classification.ARGUMENTS, export.ARGUMENTS, (push.PushArguments,)):
    KNOWN |= {(classes, name): known for name, known in _known_settings(classes).items()}

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.datetimes(), st.binary(max_size=4),
    st.sampled_from(["no", "yes", "steps", "3", "1e3", "5e-4", "null", "", "010", "0x1f", "~", "ĉ", "a: b"]),
    st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=8),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS,
    st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=1)), max_size=3),
    st.dictionaries(st.text("abc"), SCALARS),
)


def is_of(value, annotation):
    """Whether the value has the annotated type, by the words of the annotation alone."""
    if isinstance(value, list):
        return "list[" in annotation and all(is_of(item, annotation.partition("list[")[2]) for item in value)
    options = [option.value for kind in Enum.__subclasses__() for option in kind] if isinstance(value, str) else []
    name = "None" if value is None else type(value).__name__
    return name in annotation or value in options or "Literal" in annotation


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(KNOWN)), VALUES)
def test_every_setting_gets_the_value_that_it_was_given_or_is_named(key, value):
    known, annotation = KNOWN[key]
    try:
        found = convert_setting(known, annotation, value)
    except InputError as error:
        assert str(error).startswith(f"{key[1]}: expected ")
        return
    assert found == value or found == [value] or (value is False and found in ("no", ["no"]))
    assert is_of(found, str(annotation)), (found, annotation)


CHOSEN_BY_THE_DEVICE = ("bf16", "fp16", "torch_compile")


@pytest.mark.parametrize("key", list(KNOWN), ids=lambda key: key[1])
def test_every_default_is_a_value_of_its_setting(key):
    """So that what `recipe.yaml` holds can be read again."""
    known, annotation = KNOWN[key]
    if known.default is None and known.name in CHOSEN_BY_THE_DEVICE:
        return  # it is true or false before anything is written (test_device.py)
    if isinstance(known.default, (bool, int, float, str)) or known.default is None:
        default = known.default.value if isinstance(known.default, Enum) else known.default
        if default != "":
            assert convert_setting(known, annotation, default) == default


@dataclass
class Plain:
    limit: int | None = 2
    steps: int = 1
    rate: float = 0.1
    name: str = "x"
    when: str = "no"
    files: list[str] = field(default_factory=lambda: ["a"])
    network: dict | str | None = None
    flag: bool = True


def read(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {setting.name: setting.value for setting in read_settings(path)}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("limit: null", {"limit": None}),
        ("limit:", {"limit": None}),
        ("files: []", {"files": []}),
        ("files: a", {"files": ["a"]}),
        ("steps: 1e3", {"steps": 1000}),
        ("steps: 1_000", {"steps": 1000}),
        ("steps: 0x10", {"steps": 16}),
        ("rate: 5e-4", {"rate": 5e-4}),
        ("rate: .5e1", {"rate": 5.0}),
        ("rate: 2", {"rate": 2.0}),
        ("when: no", {"when": "no"}),
        ("flag: off", {"flag": False}),
        ("network: {a: {b: [1, no]}}", {"network": {"a": {"b": [1, False]}}}),
        ("name: '1.0'", {"name": "1.0"}),
        ("<<: {steps: 3, rate: 1.0}\nsteps: 4", {"steps": 4, "rate": 1.0}),
        ("limit: &a 3\nsteps: *a", {"limit": 3, "steps": 3}),
        (b"\xef\xbb\xbfsteps: 3\r\n", {"steps": 3}),
        ("steps: 3".encode("utf-16"), {"steps": 3}),
        ("---\n# nothing\n", {}),
    ],
)
def test_a_setting_gets_what_yaml_means(tmp_path, text, values):
    (plain,) = fill_arguments((Plain,), read(tmp_path, text))
    assert plain == Plain(**values)
    assert all(type(getattr(plain, name)) is type(value) for name, value in values.items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: null", "steps: expected a whole number, got null. Leave the line out"),
        ("steps: 1.5", "steps: expected a whole number, got the number 1.5"),
        ("steps: true", "steps: expected a whole number, got true"),
        ("rate: .nan", "rate: expected a number, got the number nan"),
        ("rate: 1e999", "rate: expected a number, got the number inf"),
        ("name: no", "name: expected a text, got false. Put it in quotes"),
        ("name: 1.0", "name: expected a text, got the number 1.0. Put it in quotes"),
        ("name: 2026-11-25", "name: expected a text, got the date 2026-11-25. Put it in quotes"),
        ("files: [no]", "files: .* got the list .False.. Put it in quotes"),
        ("files: [[a]]", "files: expected a list of plain values"),
        ("flag: 'true'", "flag: expected true or false, got the text 'true'"),
        ("network: [a]", "network: expected settings by name or a text or null"),
        ("a: 1\nsteps: 010", "line 2: steps: 010 is not the same number in every YAML"),
        ("steps: 1:30", "line 1: steps: 1:30 is not the same number"),
        ("network: {a: 1, a: 2}", "line 1: network: the key 'a' stands there a second time"),
        ("network: {1: 2}", "line 1: network: expected a name before the colon"),
        ("network: &a {b: *a}", "line 1: network: the anchor stands inside of itself"),
        ("1: 2", "line 1: expected a name before the colon"),
        ("? [a]\n: 2", "line 1: expected a name before the colon"),
        ("name: 2026-13-45", "line 1: name: the value is not valid YAML"),
        ("steps: !!int x", "line 1: steps: the value is not valid YAML"),
        ("steps: !!python/name:os.system", "line 1: steps: the value is not valid YAML"),
        ("\tsteps: 1", "is not valid YAML"),
        ("a: " + "[" * 3000, "is not valid YAML"),
        ("a: 1\n---\na: 2", "is not valid YAML"),
        (b"\xffa: 1", "is not valid YAML"),
        ("- a", "found a list"),
        ("a", "found a single value"),
    ],
)  # fmt: skip
def test_what_a_setting_cannot_be_is_refused_by_its_name(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        fill_arguments((Plain,), read(tmp_path, text))


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.yaml"):
        with pytest.raises(InputError, match=f"--config: there is no file {path}"):
            read_settings(path)


@given(st.dictionaries(st.sampled_from(["name", "when"]), st.text(st.characters(exclude_categories=["Cs", "Cc"]))))
def test_what_is_written_reads_the_same_again(tmp_path_factory, values):
    values = {name: value for name, value in values.items() if "://" not in value}
    path = tmp_path_factory.mktemp("settings") / "recipe.yaml"
    write_settings(path, values, {"steps": 1, "rate": 5e-4, "files": [], "limit": None})
    assert {setting.name: setting.value for setting in read_settings(path)} == values | {
        "steps": 1, "rate": 5e-4, "files": [], "limit": None
    }  # fmt: skip
    assert (yaml.safe_load(chosen_part(path.read_text(encoding="utf-8"))) or {}) == values

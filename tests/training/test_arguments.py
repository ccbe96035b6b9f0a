import errno
import json
from dataclasses import dataclass, field

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments, run_recipe, save_recipe
from electra_hf.training.arguments import ModelArguments, PretrainingArguments, TokenizerArguments


@dataclass
class Settings:
    kept: int | None = field(default=2)
    strategy: str = field(default="steps")
    steps: int = field(default=1)
    rate: float = field(default=0.1)
    files: list[str] = field(default_factory=list)
    network: dict | str | None = field(default=None)
    flag: bool = field(default=False)


def parse(tmp_path, text, *flags):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    (settings,) = parse_arguments(Settings, argv=["--config", str(path), *flags])
    return settings


def test_the_file_wins_over_defaults_and_flags_win_over_the_file(tmp_path):
    settings = parse(tmp_path, "steps: 1_000_000\nrate: 5e-4\nfiles: [a, b]\nflag: true\n", "--steps", "7")
    assert settings == Settings(steps=7, rate=5e-4, files=["a", "b"], flag=True)


def test_a_mapping_reaches_the_recipe_as_json(tmp_path):
    settings = parse(tmp_path, "network: {num_hidden_layers: 3}\n")
    assert json.loads(settings.network) == {"num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\nstep: 4\n", r"recipe.yaml, line 2: unknown key 'step' \(did you mean 'steps'\?\)"),
        ("rate: fast\n", "recipe.yaml, line 1: .*rate.*'fast'"),
        ("steps: 1\n\nsteps: 2\n", "recipe.yaml, line 3: the key 'steps' stands there a second time"),
        ("files: {a: 1}\n", "line 1: files: expected a plain value, found settings by name"),
        ("files: [[1]]\n", "line 1: files: expected a list of plain values"),
        ("steps: [1\n", "recipe.yaml is not valid YAML"),
        ("- steps\n", "expected one 'key: value' per line, found a list"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("kept: null", "kept", None),
        ("kept: ~", "kept", None),
        ("kept:", "kept", None),
        ("kept: 0x10", "kept", 16),
        ("steps: 1e3", "steps", 1000),
        ("steps: 1_000", "steps", 1000),
        ("steps: 1000.0", "steps", 1000),
        ("rate: 1e-3", "rate", 1e-3),
        ("rate: 3", "rate", 3.0),
        ("strategy: no", "strategy", "no"),
        ("strategy: on", "strategy", "on"),
        ("strategy: 2026-11-25", "strategy", "2026-11-25"),
        ("strategy: 007", "strategy", "007"),
        ("strategy: 1.10", "strategy", "1.10"),
        ("strategy: 'null'", "strategy", "null"),
        ("files: []", "files", []),
        ("files: [no, 1.10, ĉ.txt]", "files", ["no", "1.10", "ĉ.txt"]),
        ("flag: yes", "flag", True),
        ("flag: off", "flag", False),
    ],
)
def test_a_setting_gets_what_yaml_means(tmp_path, line, name, value):
    assert getattr(parse(tmp_path, line), name) == value


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps: null", "steps: null is no value of this setting"),
        ("steps: 1.5", "steps"),
        ("steps: yes", "steps"),
        ("steps: [1, 2]", "steps: expected one value, found a list of 2"),
        ("steps: []", "steps: expected a plain value, found an empty list"),
        ("steps: {a: 1}", "steps: expected a plain value, found settings by name"),
        ("rate: no", "rate"),
        ("flag: 7", "flag"),
        ("? [a, b]\n: 1", "not valid YAML"),
        ("<<: {steps: 1}", "<<|merge|expected"),
        ("on: 1", "unknown key 'on'"),
        ("steps: 2026-13-45", "steps|YAML"),
        ("files: [{a: 1}]", "files: expected a list of plain values"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused_by_name(tmp_path, line, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, line)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates()


@given(
    key=st.sampled_from(["steps", "rate", "files", "network", "flag", "kept", "strategy"]),
    value=PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2),
)
def test_any_plain_yaml_value_is_taken_or_refused_with_its_line(tmp_path_factory, key, value):
    text = yaml.safe_dump({key: value}, allow_unicode=True)
    try:
        settings = parse(tmp_path_factory.mktemp("yaml"), text)
    except InputError as error:
        assert key in str(error) or "not valid YAML" in str(error)
        return
    result = getattr(settings, key)
    if isinstance(value, (bool, int, float)) and key in ("steps", "rate", "kept"):
        assert result == value and not isinstance(value, bool)
    if key == "strategy" and isinstance(value, str):
        assert result == value
    if value is None:
        assert result is None
    if value == []:
        assert result == []


def test_flags_that_a_recipe_requires_may_stand_in_the_file(tmp_path):
    @dataclass
    class Required:
        folder: str = field()

    (tmp_path / "recipe.yaml").write_text("folder: here\n")
    (settings,) = parse_arguments(Required, argv=["--config", str(tmp_path / "recipe.yaml")])
    assert settings.folder == "here"
    with pytest.raises(InputError, match="--folder"):
        parse_arguments(Required, argv=[])


def test_a_saved_recipe_shows_first_what_was_chosen_and_keeps_null_and_no_secret(tmp_path):
    chosen = Settings(kept=None, files=["https://me:word@host/text.txt?sig=SECRET#x", "plain.txt"], strategy="no")
    save_recipe(tmp_path / "recipe.yaml", chosen)
    text = (tmp_path / "recipe.yaml").read_text()
    assert "SECRET" not in text and "word" not in text.replace("password", "")
    assert text.index("strategy: ") < text.index("# All other settings") < text.index("steps: 1")
    (again,) = parse_arguments(Settings, argv=["--config", str(tmp_path / "recipe.yaml")])
    assert again == Settings(kept=None, files=["https://host/text.txt", "plain.txt"], strategy="no")


def test_an_unknown_flag_is_an_error_that_suggests_the_right_one(tmp_path):
    with pytest.raises(InputError, match=r"--step is not a setting of this recipe \(did you mean '--steps'\?\)"):
        parse(tmp_path, "steps: 1\n", "--step", "2")


def test_a_missing_recipe_file_is_named(tmp_path):
    with pytest.raises(InputError, match="there is no file .*nowhere.yaml"):
        parse_arguments(Settings, argv=["--config", str(tmp_path / "nowhere.yaml")])


def test_a_saved_recipe_gives_the_same_settings_again(tmp_path):
    classes = (TokenizerArguments, ModelArguments, PretrainingArguments)
    flags = ["--output_dir", str(tmp_path), "--generator", '{"num_hidden_layers": 3}', "--max_steps", "9", "--use_cpu"]
    arguments = parse_arguments(*classes, argv=flags)
    save_recipe(tmp_path / "again.yaml", *arguments)
    again = parse_arguments(*classes, argv=["--config", str(tmp_path / "again.yaml")])
    assert again[0] == arguments[0] and again[1] == arguments[1]
    assert again[2].to_dict() == arguments[2].to_dict()


def test_a_token_as_a_setting_is_refused_and_never_written(tmp_path):
    with pytest.raises(InputError, match="hub_token: give the token by"):
        parse_arguments(PretrainingArguments, argv=["--output_dir", str(tmp_path), "--hub_token", "hf_secret"])


def test_what_training_arguments_refuse_is_the_users_to_mend(tmp_path):
    with pytest.raises(InputError, match="eval_stepps|evaluation|steps|strategy"):
        parse_arguments(PretrainingArguments, argv=["--output_dir", str(tmp_path), "--eval_strategy", "sometimes"])


def test_a_discriminator_to_continue_from_needs_its_generator():
    with pytest.raises(InputError, match="go together"):
        ModelArguments(discriminator_name_or_path="a")


def test_a_wrong_input_is_one_message_and_exit_code_2(capsys, monkeypatch):
    def main(settings):
        raise InputError("corpus.txt, line 3: not UTF-8.")

    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(main, Settings)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: corpus.txt, line 3: not UTF-8.\n"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    def main(settings):
        raise ValueError("shapes differ")

    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(ValueError, match="shapes differ"):
        run_recipe(main, Settings)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "cache/corpus.arrow"), "cache/corpus.arrow: No space left"),
        (FloatingPointError("Start afresh with a lower learning_rate."), "error: Start afresh with a lower"),
        (OSError(errno.EROFS, "Read-only file system", "run"), "run: Read-only file system. Make room there, or name"),
    ],
)
def test_what_the_disk_refuses_and_broken_numbers_are_one_message_and_exit_code_2(capsys, monkeypatch, error, words):
    def main(*arguments):
        raise error

    monkeypatch.setattr("sys.argv", ["recipe.py", "--model_size", "small"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(main, ModelArguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1 and words in message


def test_a_tracker_that_is_not_installed_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(InputError, match="report_to: TensorBoardCallback requires tensorboard"):
        PretrainingArguments(output_dir=str(tmp_path), report_to="tensorboard", use_cpu=True)

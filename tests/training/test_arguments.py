import errno
import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import yaml

from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments, run_recipe, save_recipe
from electra_hf.training.arguments import ModelArguments, PretrainingArguments, TokenizerArguments


@dataclass
class Settings:
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


def test_a_mapping_reaches_the_recipe_as_it_is(tmp_path):
    settings = parse(tmp_path, "network: {num_hidden_layers: 3}\n")
    assert settings.network == {"num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 3\nstep: 4\n", r"recipe.yaml, line 2: unknown key 'step' \(did you mean 'steps'\?\)"),
        ("rate: fast\n", "recipe.yaml, line 1: .*rate.*'fast'"),
        ("steps: 1\n\nsteps: 2\n", "recipe.yaml, line 3: the key 'steps' stands there a second time"),
        ("files: {a: 1}\nfiles2: [[1]]\n", "line 2: unknown key 'files2'"),
        ("files: [[1]]\n", "line 1: files: expected a list of plain values"),
        ("steps: [1\n", "recipe.yaml is not valid YAML"),
        ("- steps\n", "expected one 'key: value' per line, found a list"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, text)


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


def test_a_wrong_input_is_one_message_and_exit_code_2(capsys, monkeypatch):
    def main(settings):
        raise InputError("corpus.txt, line 3: not UTF-8.")

    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(main, Settings)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: corpus.txt, line 3: not UTF-8.\n"


def test_a_required_setting_may_stand_in_the_file(tmp_path):
    @dataclass
    class Push:
        folder: str
        repo_id: str
        public: bool = False

    (tmp_path / "push.yaml").write_text("folder: a\n")
    argv = ["--config", str(tmp_path / "push.yaml")]
    with pytest.raises(InputError, match="^--repo_id must be given, as a flag or as a key of the file"):
        parse_arguments(Push, argv=argv)
    assert parse_arguments(Push, argv=[*argv, "--repo_id", "me/x"]) == [Push("a", "me/x")]


def test_a_recipe_shows_what_was_chosen_first_and_reads_the_same_again(tmp_path):
    first = parse(tmp_path, "files: []\nrate: 1e-3\n", "--flag")
    save_recipe(tmp_path / "saved.yaml", first)
    chosen, others = (tmp_path / "saved.yaml").read_text().split("\n\n")
    assert yaml.safe_load(chosen) == {"files": [], "rate": 1e-3, "flag": True}
    assert yaml.safe_load(others) == {"steps": 1}
    assert parse_arguments(Settings, argv=["--config", str(tmp_path / "saved.yaml")]) == [first]


def test_no_password_and_no_signed_query_is_saved_or_printed(tmp_path, capsys, monkeypatch):
    address = "https://me:SECRET@host.org/a.txt?sig=SECRET"
    settings = parse(tmp_path, f"files: ['{address}']\nnetwork: {{from: '{address}'}}\n")
    assert settings.files == [address]
    save_recipe(tmp_path / "saved.yaml", settings)
    saved = (tmp_path / "saved.yaml").read_text()
    assert (
        "SECRET" not in saved and "- https://host.org/a.txt\n" in saved and saved.startswith("# Addresses stand here")
    )

    def main(settings):
        raise InputError(f"{address}: cannot be fetched.")

    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(SystemExit):
        run_recipe(main, Settings)
    assert capsys.readouterr().err == "error: https://host.org/a.txt: cannot be fetched.\n"


def test_letters_that_the_terminal_lacks_are_printed_as_numbers():
    script = """
from electra_hf import recipe
from electra_hf.errors import InputError
from dataclasses import dataclass
@dataclass
class Nothing: pass
def main(nothing):
    print("\\u0109 printed")
    open("\\u0109.txt")
recipe.run_recipe(main, Nothing)
"""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "\\u0109 printed\n")
    assert done.stderr.startswith(r"error: '\u0109' has no place in the encoding") and "PYTHONUTF8=1" in done.stderr


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

"""What a tokenizer loses of a language is counted apart from what its training text could not know."""

import gzip
import sys
from pathlib import Path

import pytest

from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import measure_tokenizers  # noqa: E402

TRAINING = ["la hundo kuras", "la kato dormas", "hundo kaj kato"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/epo.txt").write_text("\n".join([*TRAINING, "la kato", "ŝi kuras"]), encoding="utf-8")
    (tmp_path / "texts/zho.txt.gz").write_bytes(gzip.compress("\n".join(["漢字", "字"] * 3).encode()))
    return tmp_path


def run(folder, *flags):
    flags = ["--folder", str(folder / "texts"), "--train_lines", "3", "--vocab_size", "64", *flags]
    measure_tokenizers.main(*parse_arguments(*measure_tokenizers.ARGUMENTS, argv=flags))


def rows(output):
    table = [line.strip("| ").split(" | ") for line in output.splitlines() if line]
    return {(row[0], number): row[1:] for number, row in enumerate(table)}


def test_a_table_for_each_type_has_a_row_for_each_language_and_the_worst(folder, capsys):
    run(folder)
    names = [name for name, _ in rows(capsys.readouterr().out)]
    assert names == [name for kind in ("wordpiece", "bpe", "unigram") for name in (kind, "---", "epo", "zho", "worst")]


def test_what_was_not_in_the_training_text_is_told_apart(folder, capsys):
    run(folder, "--tokenizer_types", "wordpiece")
    row = rows(capsys.readouterr().out)["epo", 2]
    # "ŝi" is unknown, 2 of 13 characters, for an ŝ that was not there: of two sentences the one without it is whole.
    assert row[2:] == ["15.38", "15.38", "0.00", "50.0", "100.0"]


def test_a_tokenizer_that_exists_is_measured(folder, capsys):
    save_tokenizer(train_tokenizer([*TRAINING, "ŝi"], 64), folder / "wordpiece/epo")
    (folder / "texts/zho.txt.gz").unlink()
    run(folder, "--tokenizer_types", "wordpiece", "--tokenizers", str(folder))
    assert rows(capsys.readouterr().out)["epo", 2][2:] == ["0.00", "0.00", "0.00", "100.0", "100.0"]


def test_a_file_that_is_too_short_is_named(folder):
    with pytest.raises(InputError, match="epo.txt has 5 lines, none beyond the 9 of train_lines"):
        run(folder, "--train_lines", "9")


def test_words_of_running_text_have_its_tokens_in_a_tagger(run_recipe, tmp_path):
    rows = {1: "食べ", 2: "て", 3: "いる"}
    words = "".join(f"{number}\t{word}\t_\tX" + "\t_" * 6 + "\n" for number, word in rows.items())
    (tmp_path / "ja.conllu").write_text(f"# text = 食べている\n{words}\n" * 20)
    done = run_recipe("measure_tokenizers.py", "--tagged_files", tmp_path / "ja.conllu", "--vocab_size", 64)
    assert done.returncode == 0, done.stderr
    table = [line.split(" | ") for line in done.stdout.splitlines() if "ja.conllu" in line]
    assert [row[1] for row in table] == ["wordpiece", "bpe", "unigram"]
    for row in table:
        # In BPE the blank before a text can be a token of its own, which covers no word.
        assert row[2] == "60" and float(row[4]) >= (0.667 if row[1] == "bpe" else 1) > float(row[3])


def test_neither_a_folder_nor_a_tagged_file_is_refused(run_recipe):
    done = run_recipe("measure_tokenizers.py")
    assert done.returncode == 2 and "Give either folder" in done.stderr

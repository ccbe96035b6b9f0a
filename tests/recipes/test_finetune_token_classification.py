import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from tiny import save_discriminator
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainingArguments,
    pipeline,
)

from electra_hf.text.tagged_text import read_tagged_sentences
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
FILES = [file for kind in ("pos", "ner", "chunking") for file in sorted(ROOT.glob(f"recipes/*/finetune_{kind}.yaml"))]
RECIPE = ROOT / "recipes" / "finetune_token_classification.py"
SENTENCES = [
    "la/DET kato/NOUN dormas/VERB ./PUNCT",
    "la/DET hundo/NOUN kuras/VERB ./PUNCT",
    "granda/ADJ kato/NOUN kuras/VERB ./PUNCT",
    "la/DET granda/ADJ hundo/NOUN dormas/VERB ./PUNCT",
]
TEST = [SENTENCES[0], "la/DET bela/ADJ kato/NOUN \u00ad/PUNCT dormas/VERB ./PUNCT", "ho/INTJ hundo/NOUN"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny random discriminator and tagged files."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, sentences in (("train.txt", SENTENCES * 8), ("test.txt", TEST)):
        lines = [sentence.replace(" ", "\n").replace("/", " ") + "\n" for sentence in sentences]
        (folder / name).write_text("\n".join(lines))
    words = [sentence.replace("/", " ") for sentence in SENTENCES]
    save_discriminator(folder / "discriminator", words, vocab_size=64, length=64, num_hidden_layers=2)
    return folder


@pytest.fixture
def run(recipe, inputs, monkeypatch, capsys):
    """Runs the recipe with flags beside the usual ones; returns what it printed."""

    def make(output_dir, **flags):
        flags = {
            "model_name_or_path": inputs / "discriminator",
            "train_file": inputs / "train.txt",
            "test_file": inputs / "test.txt",
            "output_dir": output_dir,
            "num_train_epochs": 30,
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 16,
            "use_cpu": True,
            "disable_tqdm": True,
            **flags,
        }
        argv = [RECIPE.name]
        for name, value in flags.items():
            if value is not None:
                argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        monkeypatch.setattr(sys, "argv", argv)
        recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)
        return capsys.readouterr().out

    return make


def refuse(run, capsys, output_dir, **flags):
    """The message of a run that must end with exit code 2 and leave nothing behind."""
    with pytest.raises(SystemExit) as stop:
        run(output_dir, **flags)
    assert stop.value.code == 2
    assert not Path(output_dir).exists()
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def finished(recipe, inputs, tmp_path_factory):
    """The output folder of one run with two seeds, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        output_dir = tmp_path_factory.mktemp("runs") / "tagger"
        flags = [
            f"--model_name_or_path={inputs / 'discriminator'}",
            f"--train_file={inputs / 'train.txt'}",
            f"--test_file={inputs / 'test.txt'}",
            f"--output_dir={output_dir}",
            *"--num_train_epochs 30 --learning_rate 5e-3 --per_device_train_batch_size 16".split(),
            *"--use_cpu true --disable_tqdm true --seeds 3 4".split(),
        ]
        patch.setattr(sys, "argv", [RECIPE.name, *flags])
        recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)
    return output_dir


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_tagger_learns_and_leaves_everything_in_its_folder(finished):
    files = {path.name for path in finished.iterdir()}
    assert files == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "metrics.json",
        "predictions.tsv",
        "README.md",
        "confusion.png",
        "recipe.yaml",
        "seed-3",
        "seed-4",
    }
    known_sentence = [line.split("\t") for line in (finished / "predictions.tsv").read_text().split("\n")[:4]]
    assert [predicted for _, _, predicted in known_sentence] == ["DET", "NOUN", "VERB", "PUNCT"]


def test_metrics_are_flat_numbers_with_the_baseline_beside_them(finished):
    metrics = metrics_of(finished)
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    # bela, ho and U+00AD are new words; as NOUN, the first of the commonest tags, they are wrong.
    assert metrics["baseline_most_frequent_tag_accuracy"] == 9 / 12
    assert metrics["test_words"] == 12
    assert metrics["test_words_with_unknown_label"] == 1


def test_the_saved_model_is_the_first_seeds_and_the_spread_is_over_all(finished):
    metrics, first, second = (metrics_of(folder) for folder in (finished, finished / "seed-3", finished / "seed-4"))
    assert first.items() <= metrics.items()
    assert metrics["eval_loss_mean"] == pytest.approx((first["eval_loss"] + second["eval_loss"]) / 2)
    assert first["eval_loss"] != second["eval_loss"]


def test_there_is_one_line_per_word_and_accuracy_is_their_share_of_right_ones(finished, inputs):
    lines = (finished / "predictions.tsv").read_text().split("\n")
    rows = [line.split("\t") for line in lines if line]
    words = [word for sentence in read_tagged_sentences(inputs / "test.txt") for word in sentence.words]
    assert [row[0] for row in rows] == words
    assert sum(gold == predicted for _, gold, predicted in rows) / len(rows) == metrics_of(finished)["eval_accuracy"]


def test_the_saved_model_alone_gives_the_written_predictions(finished):
    model, tokenizer = (auto.from_pretrained(finished) for auto in (AutoModelForTokenClassification, AutoTokenizer))
    rows = [line.split("\t") for line in (finished / "predictions.tsv").read_text().split("\n\n")[2].split("\n")]
    encoding = tokenizer([row[0] for row in rows], is_split_into_words=True, return_tensors="pt")
    predicted = model(**encoding).logits[0].argmax(-1)
    first_tokens = [encoding.word_ids().index(word) for word in range(len(rows))]
    assert [model.config.id2label[int(predicted[token])] for token in first_tokens] == [row[2] for row in rows]


def test_the_saved_tokenizer_has_a_class_that_older_transformers_know(finished):
    assert json.loads((finished / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_pipeline_of_transformers_tags_with_the_result(finished):
    tagger = pipeline("token-classification", str(finished), aggregation_strategy="first")
    groups = tagger("la kato dormas .")
    assert [group["entity_group"] for group in groups] == ["DET", "NOUN", "VERB", "PUNCT"]
    assert [group["word"] for group in groups] == ["la", "kato", "dormas", "."]


def test_the_recipe_that_was_written_runs_again_to_the_same_numbers(finished, run, tmp_path):
    settings = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert settings["seeds"] == [3, 4]
    run(tmp_path / "again", config=finished / "recipe.yaml", seeds=[3])
    assert metrics_of(tmp_path / "again")["eval_loss"] == metrics_of(finished)["eval_loss"]


def test_no_file_of_a_run_is_a_pickle(finished):
    assert not [path for path in finished.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_spread_and_the_unknown_labels_are_printed(run, tmp_path):
    printed = run(tmp_path / "run", num_train_epochs=1, seeds=[1, 2])
    assert "±" in printed
    assert "INTJ (1)" in printed


@pytest.mark.parametrize(("flags", "precision"), [({}, "bf16"), ({"bf16": False}, "fp32")])
def test_the_precision_is_the_device_s_where_nothing_is_said_and_it_is_told_and_recorded(
    run, tmp_path, monkeypatch, flags, precision
):
    monkeypatch.setattr("electra_hf.training.device.choose_precision", lambda use_cpu: "bf16")
    printed = run(tmp_path / "run", num_train_epochs=1, **flags)
    assert printed.count("Training on") == printed.count(f"Training on 1 × cpu, {precision}, not compiled.\n") == 1
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert (recorded["bf16"], recorded["fp16"]) == (precision == "bf16", False)


def test_a_share_is_held_out_where_there_is_no_test_file(run, tmp_path, inputs):
    tagged = "".join(f"la DET\nvorto{i} NOUN\n\n" for i in range(50))
    (tmp_path / "train.txt").write_text(tagged)
    run(tmp_path / "run", train_file=tmp_path / "train.txt", test_file=None, num_train_epochs=1, test_share=0.3)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["train_sentences"] + metrics["test_sentences"] == 50
    assert 5 < metrics["test_sentences"] < 25


def test_sentences_longer_than_the_model_are_scored_word_by_word(run, tmp_path):
    words = ["la DET", "kato NOUN"] * 100
    (tmp_path / "test.txt").write_text("\n".join(words))
    (tmp_path / "train.txt").write_text(("\n".join(words[:10]) + "\n\n") * 32)
    run(tmp_path / "run", train_file=tmp_path / "train.txt", test_file=tmp_path / "test.txt", max_length=12)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["test_words"] == 200
    assert metrics["eval_accuracy"] > 0.9


def test_the_loss_does_not_depend_on_the_batch_it_is_computed_in(run, tmp_path):
    losses = []
    for size in (1, 8):
        run(tmp_path / f"{size}", num_train_epochs=1, per_device_eval_batch_size=size)
        losses.append(metrics_of(tmp_path / f"{size}")["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"model_name_or_path": None}, "model_name_or_path"),
        ({"train_file": "missing.txt"}, "missing.txt"),
        ({"test_file": "missing.txt"}, "missing.txt"),
        ({"labels_file": "missing.txt"}, "missing.txt"),
        ({"max_length": 999}, "max_length"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"layerwise_lr_decay": 2}, "layerwise_lr_decay"),
        ({"learning_rat": 1}, "learning_rate"),
        ({"hub_token": "secret"}, "HF_TOKEN"),
    ],
)
def test_bad_input_ends_with_code_2_and_one_message_and_leaves_nothing(run, capsys, tmp_path, flags, named):
    message = refuse(run, capsys, tmp_path / "run", **flags)
    assert named in message
    assert "secret" not in message


def test_a_label_that_the_labels_file_lacks_is_named_with_file_and_line(run, capsys, tmp_path):
    (tmp_path / "labels.txt").write_text("DET\nNOUN\n")
    message = refuse(run, capsys, tmp_path / "run", labels_file=tmp_path / "labels.txt")
    assert "train.txt, line 3" in message
    assert "'VERB'" in message


def test_a_folder_that_is_not_a_model_is_refused(run, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "neither a folder with a model" in refuse(
        run, capsys, tmp_path / "run", model_name_or_path=tmp_path / "empty"
    )


def test_a_tokenizer_larger_than_the_model_is_refused(run, capsys, tmp_path):
    tokenizer = train_tokenizer([f"vorto{i}" for i in range(500)], vocab_size=512)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    assert "tokenizer_name_or_path" in refuse(
        run, capsys, tmp_path / "run", tokenizer_name_or_path=tmp_path / "tokenizer"
    )


def test_the_model_to_start_from_is_not_overwritten(run, inputs):
    before = (inputs / "discriminator" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        run(inputs / "discriminator")
    assert (inputs / "discriminator" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_recipe_file_is_accepted(recipe, path):
    from electra_hf.recipe import parse_arguments

    model_args, *_, training_args = parse_arguments(*recipe.ARGUMENTS, argv=["--config", str(path)])
    assert isinstance(training_args, TrainingArguments)
    assert model_args.model_name_or_path


# The lines of code in the card


CONLLU_WORDS = {"La": "DET", "kato": "NOUN", "dormas": "VERB", ".": "PUNCT", "granda": "ADJ", "hundo": "NOUN"}


def conllu(text, *units):
    """A sentence in CoNLL-U; a unit is a word, or a range with its words (`del=de+el`)."""
    lines, number = [f"# text = {text}"], 1
    for unit in units:
        form, _, inside = unit.partition("=")
        words = inside.split("+") if inside else [form]
        if inside:
            lines.append(f"{number}-{number + len(words) - 1}\t{form}" + "\t_" * 8)
        for word in words:
            lines.append(f"{number}\t{word}\t_\t{CONLLU_WORDS.get(word, 'X')}" + "\t_" * 6)
            number += 1
    return "\n".join(lines) + "\n\n"


def tags_of(predictions):
    """The words of each sentence and the tags that the recipe predicted."""
    blocks = predictions.read_text().split("\n\n")
    rows = [[line.split("\t") for line in block.split("\n") if line] for block in blocks]
    return [([row[0] for row in sentence], [row[2] for row in sentence]) for sentence in rows if sentence]


def code_of(folder):
    """The blocks of code of a tagger's card, with its folder where a reader sees the repository."""
    text = (folder / "README.md").read_text()
    return [code.replace("USER/MODEL", str(folder)) for code in re.findall("```python\n(.*?)```", text, re.DOTALL)]


def test_the_card_s_lines_print_the_recipe_s_own_predictions_of_long_texts_too(run, tmp_path, capsys):
    words = [f"{word} {tag}" for word, tag in CONLLU_WORDS.items()]
    test = "\n".join(words * 30) + "\n\n" + "\n".join([*words, "\u00ad PUNCT", "nova ADJ"]) + "\n"
    (tmp_path / "test.txt").write_text(test)
    (tmp_path / "train.txt").write_text("\n".join(words) + "\n\n" + "\n".join(words[::-1]) + "\n")
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "test")}
    run(tmp_path / "run", train_file=files["train"], test_file=files["test"], max_length=12, num_train_epochs=8)
    first, of_file, stock = code_of(tmp_path / "run")
    sentences = tags_of(tmp_path / "run" / "predictions.tsv")
    assert len(sentences[0][0]) == 180
    namespace = {}
    for words, tags in sentences:
        exec(first.replace("Put a sentence of your own here .", " ".join(words)), namespace)
        assert capsys.readouterr().out.splitlines() == [f"{w} {t}" for w, t in zip(words, tags, strict=True)]
    exec(of_file.replace("test.conllu", str(tmp_path / "test.txt")), namespace)
    assert namespace["tags"] == [tags for _, tags in sentences]
    for words in (list(CONLLU_WORDS)[:2], list(CONLLU_WORDS)[::-1][:2]):  # one window
        exec(stock.replace("Put a sentence of your own here .", " ".join(words)), {})
        tags = namespace["tag_words"](words, namespace["model"], namespace["tokenizer"])
        assert capsys.readouterr().out.splitlines() == [f"{w} {t}" for w, t in zip(words, tags, strict=True)]


RUNNING = [
    conllu("La kato dormas.", "La", "kato", "dormas", "."),
    conllu("Lakato dormas.", "La", "kato", "dormas", "."),  # one token can cover two words
    conllu("Granda del hundo.", "Granda", "del=de+el", "hundo", "."),
]


def test_a_tagger_of_running_text_says_so_and_its_card_s_lines_give_its_own_predictions(run, tmp_path, capsys):
    long = conllu("La kato dormas. " * 20, *["La", "kato", "dormas", "."] * 20)
    (tmp_path / "train.conllu").write_text("".join(RUNNING) * 4)
    (tmp_path / "test.conllu").write_text("".join(RUNNING) + long)
    files = {f"{name}_file": tmp_path / f"{name}.conllu" for name in ("train", "test")}
    printed = run(tmp_path / "run", **files, max_length=16, num_train_epochs=5)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["test_words_in_running_text"] == metrics["test_words"] == 93
    assert 1 <= metrics["test_words_with_shared_token"] < 4  # `el` at least
    assert "test: 93 words in running text" in printed
    first, of_file = code_of(tmp_path / "run")
    sentences = tags_of(tmp_path / "run" / "predictions.tsv")
    namespace = {}
    exec(first, namespace)  # as it is printed
    assert len(capsys.readouterr().out.splitlines()) == 8
    exec(of_file.replace("test.conllu", str(files["test_file"])), namespace)
    assert namespace["tags"] == [tags for _, tags in sentences]
    for (words, tags), text in ((sentences[1], "Lakato dormas."), (sentences[3], "La kato dormas. " * 20)):
        code = first.replace("Put a text of your own here.", text)
        exec(re.sub(r"words = .*", f"words = {words}", code), namespace)
        assert capsys.readouterr().out.splitlines() == [f"{w} {t}" for w, t in zip(words, tags, strict=True)]


def test_a_tagger_trained_word_by_word_stays_so_whatever_text_it_gets(run, tmp_path):
    from electra_hf.tasks.predicting import tag_sentences

    (tmp_path / "all.conllu").write_text("".join(RUNNING) * 4)
    files = {f"{name}_file": tmp_path / "all.conllu" for name in ("train", "test")}
    run(tmp_path / "run", **files, running_text="false", num_train_epochs=1)
    assert metrics_of(tmp_path / "run")["test_words_in_running_text"] == 0
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    tags = tag_sentences(read_tagged_sentences(tmp_path / "all.conllu"), model, tokenizer)
    assert tags == [tags for _, tags in tags_of(tmp_path / "run" / "predictions.tsv")]

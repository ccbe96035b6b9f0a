import gzip
import json
import random
import re
import sys
from pathlib import Path

import datasets
import pytest
from tiny import save_discriminator
from transformers import AutoTokenizer

from electra_hf.publish.cards import address_card
from electra_hf.publish.hub import select_files

ROOT = Path(__file__).parents[2]
FLAGS = "--use_cpu true --disable_tqdm true --learning_rate 5e-3 --layerwise_lr_decay 1.0 --max_length 24".split()
FILLERS, COLOURS = "the cat dog sees a house and runs far".split(), "red green blue".split()
QUESTION = "which colour ?"


def make_articles(number, seed, without=0):
    """Articles of one question each, whose answer is the colour in a text longer than a window; some have none."""
    draw = random.Random(seed)
    articles = []
    for index in range(number):
        words = draw.choices(FILLERS, k=draw.choice([8, 40]))
        answers = []
        if index >= without:
            place = draw.randrange(len(words))
            words[place] = draw.choice(COLOURS)
            answers = [{"text": words[place], "answer_start": len(" ".join([*words[:place], ""]))}]
        question = {"id": f"{seed}-{index}", "question": QUESTION, "answers": answers}
        context = " ".join(words)
        articles.append({"title": f"T{index}", "paragraphs": [{"context": context, "qas": [question]}]})
    return articles


def write(path, articles):
    content = json.dumps({"version": "x", "data": articles}).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a tiny random discriminator and files to learn from."""
    folder = tmp_path_factory.mktemp("inputs")
    write(folder / "train.json.gz", make_articles(60, seed=1))
    write(folder / "test.json", make_articles(12, seed=2))
    write(folder / "train2.json", make_articles(80, seed=3, without=40))
    write(folder / "test2.json", make_articles(20, seed=4, without=10))
    save_discriminator(
        folder / "discriminator", [" ".join([*FILLERS, *COLOURS, QUESTION])] * 3, vocab_size=128, length=32
    )
    return folder


@pytest.fixture(scope="module")
def run(recipe, inputs, tmp_path_factory):
    """Runs the recipe with flags beside the usual ones; returns its output folder, or its exit code too."""

    def make(name, *flags):
        output_dir = tmp_path_factory.mktemp("runs") / name
        argv = ["finetune_question_answering.py", *FLAGS, "--model_name_or_path", inputs / "discriminator"]
        argv += ["--output_dir", output_dir, *flags]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, argv)))
            try:
                recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)
            except SystemExit as stop:
                return stop.code, output_dir
        return output_dir

    return make


@pytest.fixture(scope="module")
def squad1(run, inputs):
    files = ("--train_file", inputs / "train.json.gz", "--test_file", inputs / "test.json")
    return run("squad1", *files, "--seeds", 3, 4, "--num_train_epochs", 12)


@pytest.fixture(scope="module")
def squad2(run, inputs):
    files = ("--train_file", inputs / "train2.json", "--test_file", inputs / "test2.json")
    return run("squad2", *files, "--num_train_epochs", 15, "--threshold_share", 0.2, "--language", "eo")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def questions_of(path):
    for article in read(path)["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield question, paragraph["context"]


def test_an_answerer_learns_and_leaves_everything_in_its_folder(squad1, inputs):
    assert {path.name for path in squad1.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "metrics.json"),
        *("predictions.json", "recipe.yaml", "README.md", "seed-3", "seed-4"),
    }
    metrics = read(squad1 / "metrics.json")
    assert metrics["eval_exact_match"] > 90 and metrics["eval_f1"] > 90
    for name in ("exact_match", "f1", "loss"):
        assert {f"eval_{name}", f"eval_{name}_mean", f"eval_{name}_sd"} <= metrics.keys()
    assert not any("no_answer" in name or "has_answer" in name for name in metrics)
    assert metrics["baseline_closest_sentence_exact_match"] == 0
    assert metrics["test_windows"] > metrics["test_questions"] == 12
    predictions = read(squad1 / "predictions.json")
    questions = [question for question, _ in questions_of(inputs / "test.json")]
    assert list(predictions) == [question["id"] for question in questions]
    right = sum(predictions[question["id"]] == question["answers"][0]["text"] for question in questions)
    assert 100 * right / 12 == pytest.approx(metrics["eval_exact_match"])


def test_questions_without_an_answer_get_none_by_a_threshold_that_was_not_chosen_on_the_test(squad2, inputs):
    metrics = read(squad2 / "metrics.json")
    assert metrics["eval_exact_match"] > 85
    assert {"eval_has_answer_f1", "eval_no_answer_f1", "eval_has_answer_exact_match"} <= metrics.keys()
    assert metrics["eval_best_f1_on_test"] >= metrics["eval_f1"]
    assert metrics["baseline_no_answer_f1"] == 50
    assert (metrics["threshold_questions"], metrics["train_questions"]) == (16, 64)
    predictions, probabilities = read(squad2 / "predictions.json"), read(squad2 / "na_prob.json")
    assert predictions.keys() == probabilities.keys()
    border = 1 / (1 + 2.718281828459045 ** -metrics["no_answer_threshold"])
    assert all((probabilities[key] > border) == (predictions[key] == "") for key in predictions)
    without = {question["id"] for question, _ in questions_of(inputs / "test2.json") if not question["answers"]}
    assert len(without) == 10
    right = sum(predictions[key] == "" for key in without)
    assert metrics["eval_no_answer_exact_match"] == pytest.approx(100 * right / 10)


@pytest.mark.parametrize("train", ["train.json.gz", "train2.json"])
@pytest.mark.parametrize(("threshold", "given"), [(1_000, 0), (-1_000, 12)])
def test_a_threshold_that_is_given_decides_alone(run, inputs, train, threshold, given):
    data = ("--train_file", inputs / train, "--test_file", inputs / "test.json", "--max_steps", 1)
    folder = run("given", *data, f"--null_score_diff_threshold={threshold}")
    metrics = read(folder / "metrics.json")
    assert (metrics["no_answer_threshold"], metrics["threshold_questions"]) == (threshold, 0)
    assert sum(answer == "" for answer in read(folder / "predictions.json").values()) == given
    assert "given as a setting" in (folder / "README.md").read_text()


def printed_by_the_card(folder, question, context):
    """What the lines of code in the card print for this question, as they stand there."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    for there, here in (
        ('"USER/MODEL"', repr(str(folder))),
        ('"Put a question here."', repr(question)),
        ('"Put the text that answers it here."', repr(context)),
    ):
        assert there in code
        code = code.replace(there, here)
    printed = []
    exec(compile(code, "card", "exec"), {"print": printed.append})
    return printed


@pytest.mark.parametrize(("name", "test"), [("squad1", "test.json"), ("squad2", "test2.json")])
def test_the_lines_of_code_in_the_card_give_the_recipes_own_answers_long_texts_included(name, test, inputs, request):
    folder = request.getfixturevalue(name)
    predictions = read(folder / "predictions.json")
    lengths = set()
    for question, context in questions_of(inputs / test):
        lengths.add(len(context.split()))
        answer = predictions[question["id"]] or "no answer in the text"
        assert printed_by_the_card(folder, question["question"], context) == [answer]
    assert lengths == {8, 40} and AutoTokenizer.from_pretrained(folder).model_max_length == 24


def test_the_saved_tokenizer_cuts_no_text_of_another_client(squad1):
    assert read(squad1 / "tokenizer.json")["truncation"] is None


def test_the_card_says_how_it_was_scored_and_how_the_threshold_was_found(squad1, squad2):
    card = (squad1 / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card and "SQuAD's rule for English" in card
    assert "a, an, the" in card and "no answer" not in card.partition("## How it was trained")[0]
    card = (squad2 / "README.md").read_text()
    assert "MLQA's rule, without articles for the language eo" in card and "the words" not in card
    assert "the best one for F1 on 16 questions whose articles were kept out of training" in card
    before = card.partition("## How it was trained")[0]
    assert "not recorded" not in before.replace("Licences of the text: not recorded", "")


def test_the_folder_can_be_pushed_and_its_lines_of_code_then_name_the_repository(squad1, inputs):
    files = set(select_files(squad1))
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    card = squad1 / "README.md"
    before = card.read_text()
    address_card(squad1, "me/answerer")
    after = card.read_text()
    card.write_text(before)
    assert after.count('from_pretrained("me/answerer")') == 2 and "USER/MODEL" not in after


def test_rows_of_a_dataset_give_the_same_run_as_the_files(run, inputs, tmp_path):
    rows = {}
    for split, file in (("train", "train.json.gz"), ("validation", "test.json")):
        content = (inputs / file).read_bytes()
        data = json.loads(gzip.decompress(content) if file.endswith(".gz") else content)["data"]
        rows[split] = [
            {
                "id": question["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": question["question"],
                "answers": {key: [answer[key] for answer in question["answers"]] for key in ("text", "answer_start")},
            }
            for article in data
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    for split, of_split in rows.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_list(of_split).to_parquet(tmp_path / "data" / f"{split}.parquet")
    files = ("--train_file", inputs / "train.json.gz", "--test_file", inputs / "test.json")
    runs = [run("rows", "--max_steps", 2, *data) for data in (("--dataset_name", tmp_path / "data"), files)]
    assert read(runs[0] / "predictions.json") == read(runs[1] / "predictions.json")
    assert read(runs[0] / "metrics.json") == read(runs[1] / "metrics.json")


def test_the_untrained_twin_and_files_of_a_folder_run_too(run, inputs, tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.json", make_articles(3, seed=10 + number))
    data = ("--train_file", tmp_path, "--test_file", inputs / "test.json")
    twin = run("twin", *data, "--from_scratch", "true", "--max_steps", 1)
    assert "It was trained from random weights" in (twin / "README.md").read_text()
    assert read(twin / "metrics.json")["train_questions"] == 6


def change(**changes):
    """The articles of a file with one question changed."""
    articles = make_articles(4, seed=5)
    articles[1]["paragraphs"][0]["qas"][0] |= changes
    return articles


def changed_context(context):
    articles = make_articles(4, seed=5)
    articles[1]["paragraphs"][0]["context"] = context
    return articles


BAD = {
    "not where it should": (change(answers=[{"text": "red", "answer_start": 10_000}]), "is not in its context at"),
    "nowhere": (change(answers=[{"text": "mauve", "answer_start": 0}]), "It is nowhere in the context"),
    "before the text": (change(answers=[{"text": "red", "answer_start": -3}]), "is not in its context at"),
    "empty answer": (change(answers=[{"text": " ", "answer_start": 0}]), "give an empty list"),
    "no start": (change(answers=[{"text": "red"}]), "no key 'answer_start'"),
    "start as text": (change(answers=[{"text": "red", "answer_start": "3"}]), "expected a whole number"),
    "answers as text": (change(answers="red"), "expected a list or an object as 'answers'"),
    "empty question": (change(question=" \n"), "the question is empty"),
    "null question": (change(question=None), "expected a text as 'question', found a null"),
    "empty context": (changed_context("  "), "the context is empty"),
    "duplicate id": (change(id="5-0"), "the same id stands at"),
    "empty id": (change(id=""), "the id is empty"),
    "half a character": (change(question="\ud800"), "half a character"),
    "contradiction": (change(is_impossible=True), "by is_impossible (True)"),
    "other contradiction": (change(is_impossible=False, answers=[]), "by is_impossible (False)"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("part", ["train_file", "test_file"])
def test_a_bad_question_ends_with_2_and_names_file_article_and_id(run, inputs, capsys, tmp_path, name, part):
    articles, message = BAD[name]
    bad = write(tmp_path / "bad.json", articles)
    files = {"train_file": inputs / "train.json.gz", "test_file": inputs / "test.json"} | {part: bad}
    code, output_dir = run("refused", *(word for key, file in files.items() for word in (f"--{key}", file)))
    assert code == 2 and not output_dir.exists()
    error = capsys.readouterr().err
    assert message in error and f"{bad}, article 2" in error and "Traceback" not in error
    if name not in ("empty id", "duplicate id"):
        assert "(id 5-1)" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b'{"data": [', "no JSON"),
        (b'{"id": 1}\n{"id": 2}\n', "give the folder of their files as dataset_name"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "found a list"),
        (b'{"train": []}', "no key 'data'"),
        (b'{"data": {}}', "expected a list as 'data'"),
        (b'{"data": []}', "has no question"),
        (b'{"data": [7]}', "article 1: expected an object"),
        (b'{"data": [{"title": "T", "paragraphs": [{"text": "x"}]}]}', "article 1 (T), paragraph 1: no key 'context'"),
        (b'{"data": [{"title": "T", "paragraphs": [{"context": "x", "qas": [{}]}]}]}', "no key 'id'"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_what_is_not_squads_json_is_refused_with_its_layout(run, inputs, capsys, tmp_path, content, message):
    (tmp_path / "bad.json").write_bytes(content)
    code, output_dir = run("refused", "--train_file", tmp_path / "bad.json", "--test_file", inputs / "test.json")
    assert code == 2 and not output_dir.exists()
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train_fiel", "x"), "did you mean '--train_file'?"),
        (("--train_file", "{none}"), "questions of the training part have no answer"),
        (("--train_file", "{train}", "--test_file", "{none}"), "questions of the test part have no answer"),
        (("--train_file", "{train}", "--max_length", "2000"), "max_length: expected 3 to 32"),
        (("--train_file", "{train}", "--doc_stride", "22"), "doc_stride: windows of 24 tokens"),
        (("--train_file", "{train}", "--doc_stride", "18"), "the question has"),
        (("--train_file", "{train}", "--doc_stride", "-1"), "doc_stride: expected 0 or more"),
        (("--train_file", "{train}", "--max_answer_length", "0"), "max_answer_length: expected 1 or more"),
        (("--train_file", "{train}", "--answer_language", "English!"), "answer_language: expected a code"),
        (("--train_file", "{train}", "--dataset_name", "x"), "train_file (a path or URL) or as dataset_name"),
        ((), "train_file (a path or URL) or as dataset_name"),
        (("--train_file", "{one}"), "all questions are on one text"),
        (("--train_file", "{folder}/missing.json"), "missing.json: there is no such file"),
    ],
)
def test_what_cannot_be_done_ends_with_2_and_leaves_nothing(run, inputs, capsys, tmp_path, flags, message):
    names = {
        "train": inputs / "train.json.gz",
        "none": write(tmp_path / "none.json", make_articles(30, seed=6, without=30)),
        "one": write(tmp_path / "one.json", make_articles(1, seed=6)),
        "folder": tmp_path,
    }
    code, output_dir = run("refused", *(flag.format(**names) for flag in flags))
    assert code == 2 and not output_dir.exists()
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_yaml_files_fit_the_recipe(recipe):
    from electra_hf.recipe import parse_arguments

    files = sorted(ROOT.glob("recipes/*/finetune_question_answering.yaml"))
    assert {file.parent.name for file in files} >= {"electra_small", "electra_base"}
    for file in files:
        _, data, _, training = parse_arguments(*recipe.ARGUMENTS, argv=["--config", str(file), "--train_file", "x"])
        assert data.max_answer_length == 30 and training.layerwise_lr_decay == 0.8

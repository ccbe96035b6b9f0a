import gzip
import json
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from electra_hf.errors import InputError
from electra_hf.tasks.classification import ClassificationArguments, load_examples
from electra_hf.tasks.classifying import encode
from electra_hf.tasks.glue import TASKS
from electra_hf.text.tokenization import train_tokenizer

OWN = {"text_columns": ["text"], "label_column": "label"}


def load(**settings):
    return load_examples(ClassificationArguments(**settings))


def refusal(**settings):
    """The message at what cannot be learned or scored."""
    with pytest.raises(InputError) as error:
        load(**settings)
    return str(error.value)


@pytest.fixture
def table(tmp_path):
    """Writes a .tsv and returns its path."""

    def write(name, *rows, header=("text", "label")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


GOOD = [("good", "yes"), ("bad", "no"), ("fine", "yes")]

# The first two lines of each official file, in its own layout: header, a training row, a test row; what they mean.
OFFICIAL = {
    "cola": ("", "gj04\t1\t\tA \"text.", "gj04\t0\t*\tText a.", (('A "text.',), "acceptable")),
    "sst2": ("sentence\tlabel", "fun . \t1", "dull \t0", (("fun . ",), "positive")),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tHe said "no .\tNo , he said .', "0\t7\t8\tA .\tB .",
        (('He said "no .', "No , he said ."), "equivalent"),
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\t2012\t1\tn\tn\tA.\tB.\t5.000", "1\tg\tf\t2012\t1\tn\tn\tC.\tD.\t3.8", (("A.", "B."), "5.000"),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t1\t2\tWho?\tWhat?\t0", "2\t3\t4\tWho?\tWho?\t1", (("Who?", "What?"), "not_duplicate"),
    ),
    "mnli": (
        "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\tg\tA.\tB.\tneutral\tneutral", "1\tg\tC.\tD.\tx\tentailment", (("A.", "B."), "neutral"),
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tQ?\tS.\tentailment", "1\tQ?\tS.\tnot_entailment",
             (("Q?", "S."), "entailment")),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tnot_entailment", "1\tA.\tB.\tentailment",
            (("A.", "B."), "not_entailment")),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", "1\tA.\tB.\t0", (("A.", "B."), "entailment")),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_the_official_files_of_a_task_are_read_by_its_name(tmp_path, task):
    header, first, second, (texts, label) = OFFICIAL[task]
    folder = tmp_path / TASKS[task].title
    if task == "sst2":
        folder = tmp_path / "SST-2"
    if task == "stsb":
        folder = tmp_path / "STS-B"
    folder.mkdir()
    content = "".join(f"{line}\n" for line in (header, first, second) if line)
    for name in ("train", *(f"dev_{test}".rstrip("_") for test in TASKS[task].tests)):
        (folder / f"{name}.tsv").write_text(content, encoding="utf-8")
    data = load(task=task, glue_dir=str(tmp_path))
    assert (data.train[0].texts, data.train[0].label) == (texts, label)
    assert len(data.train) == 2 and data.labels == list(TASKS[task].labels)
    assert list(data.tests) == list(TASKS[task].tests)
    alone = load(task=task, train_file=str(folder / "train.tsv"), test_file=str(folder / f"{name}.tsv"))
    assert [example.texts for example in alone.tests[""]] == [example.texts for example in data.train]


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.labels], ids=lambda task: task.name)
def test_the_hubs_parts_are_read_by_the_same_name_and_minus_one_is_no_label(tmp_path, task):
    columns = task.layouts[-1].texts
    features = Features(
        {column: Value("string") for column in columns} | {"label": ClassLabel(names=list(task.labels))}
    )
    splits = ["train", *(f"validation_{test}".rstrip("_") for test in task.tests), "test"]
    (tmp_path / task.name).mkdir()
    files = "".join(f"  - split: {split}\n    path: {task.name}/{split}-*\n" for split in splits)
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: {task.name}\n  data_files:\n{files}---\n")
    for split in splits:
        labels = [-1, -1, -1] if split == "test" else [0, 1, -1]
        rows = {column: ["a", "b", "c"] for column in columns} | {"label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / task.name / f"{split}-00000.parquet")
    data = load(task=task.name, dataset_name=str(tmp_path))
    assert [example.label for example in data.train] == list(task.labels[:2])
    assert [[example.label for example in test] for test in data.tests.values()] == [list(task.labels[:2])] * len(
        task.tests
    )
    message = refusal(task=task.name, dataset_name=str(tmp_path), test_split="test")
    assert "[test]" in message and "no labels" in message and "test_split validation" in message


def test_a_local_folder_is_a_dataset_with_columns_of_ones_own(tmp_path):
    for split, label in (("train", "a"), ("validation", "b")):
        rows = [f"first,second,{name}" for name in ("a", "b", label)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["one,two,kind", *rows]))
    data = load(dataset_name=str(tmp_path), text_columns=["one", "two"], label_column="kind")
    assert [len(part) for part in (data.train, data.tests[""])] == [3, 3]
    assert data.train[0].texts == ("first", "second")
    message = refusal(dataset_name=str(tmp_path), text_columns=["one"], label_column="kind", test_split="test")
    assert "no split 'test', only train, validation" in message


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl"])
def test_own_files_of_any_format_are_read(tmp_path, suffix):
    path = tmp_path / f"train{suffix}"
    rows = [{"text": f"text, {i}", "label": i % 2} for i in range(60)]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = ["text,label"] + [f'"{row["text"]}",{row["label"]}' for row in rows]
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    data = load(train_file=str(path), **OWN)
    assert data.labels == ["0", "1"]
    assert len(data.train) + len(data.tests[""]) == 60 and data.tests[""]


def test_equal_texts_never_stand_on_both_sides_of_the_split(table):
    train = table("t.tsv", *[(f"text {i % 30}", "ab"[i % 2]) for i in range(120)])
    data = load(train_file=train, test_share=0.3, **OWN)
    assert not {e.texts for e in data.train} & {e.texts for e in data.tests[""]}


@pytest.mark.parametrize(
    ("labels", "are_numbers"),
    [(["1", "2"], False), (["1.5", "2"], True), (["a", "2.0"], False), (["-1", "0.5"], True), (["1.0", "2.0"], False)],
)
def test_labels_are_numbers_if_all_are_and_one_is_not_whole(table, labels, are_numbers):
    path = table("t.tsv", *[(f"text {i}", label) for i, label in enumerate(labels)])
    assert (load(train_file=path, test_file=path, **OWN).labels == []) == are_numbers
    assert load(train_file=path, test_file=path, regression=False, **OWN).labels == sorted(labels)


def test_whole_numbers_as_labels_stand_by_size_and_minus_one_may_be_one(table):
    path = table("t.tsv", *[(f"t{i}", str(i - 1)) for i in range(12)])
    assert load(train_file=path, test_file=path, **OWN).labels == [str(i) for i in range(-1, 11)]


def test_minus_one_in_the_test_alone_is_no_label(table):
    train, test = table("a.tsv", ("a", "0"), ("b", "1")), table("b.tsv", ("c", "-1"), ("d", "1"))
    assert [example.texts for example in load(train_file=train, test_file=test, **OWN).tests[""]] == [("d",)]


def test_fewer_examples_are_the_same_ones_every_time(table):
    path = table("t.tsv", *[(f"t{i}", "ab"[i % 2]) for i in range(50)])
    first, second = (load(train_file=path, test_file=path, max_train_samples=10, **OWN) for _ in range(2))
    assert len(first.train) == 10 and len(first.tests[""]) == 50
    assert first.train == second.train


def test_broken_lines_are_left_out_of_the_one_task_whose_files_have_them(table):
    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    rows = [("1", "1", "2", "a", "b", "0"), ("2", "1"), ("3", "1", "2", "", "b", "0"), ("4", "1", "2", "c", "d", "1")]
    path = table("q.tsv", *rows, header=header)
    assert [example.texts for example in load(task="qqp", train_file=path, test_file=path).train] == [
        ("a", "b"),
        ("c", "d"),
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([*GOOD, ("new", "maybe")], "line 5: the label 'maybe' is not one of no, yes"),
        ([*GOOD, (" ", "yes")], "line 5: the column 'text' is empty"),
        ([*GOOD, ("short",)], "line 5: expected 2 columns (text, label), found 1"),
        ([*GOOD, ("a", "b", "c")], "line 5: expected 2 columns (text, label), found 3"),
        ([("a", ""), ("b", "")], "no labels"),
        ([], "has no example"),
    ],
)
def test_a_test_file_that_cannot_be_scored_is_refused(table, rows, words):
    message = refusal(train_file=table("train.tsv", *GOOD), test_file=table("test.tsv", *rows), **OWN)
    assert words in message
    assert "test.tsv" in message or not rows


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ([("a", "yes"), ("b", "yes")], {}, "line 2: every label of the training part is 'yes'"),
        ([("a", "1"), ("b", "two")], {"regression": True}, "line 3: expected a number, found 'two'"),
        ([("a", "1"), ("b", "inf")], {"regression": True}, "line 3: expected a number, found 'inf'"),
        ([("a", "2.5"), ("b", "2.5")], {}, "all 2 numbers of the training part are 2.5"),
        (GOOD, {"label_column": "stars"}, "line 2: no column 'stars'"),
        (GOOD, {"text_columns": ["text", "other"]}, "no column 'other'. Expected the columns text, other, label"),
    ],
)
def test_a_training_file_that_teaches_nothing_is_refused(table, rows, settings, words):
    path = table("train.tsv", *rows)
    message = refusal(train_file=path, test_file=path, **{**OWN, **settings})
    assert words in message and "train.tsv" in message


def test_a_pair_task_refuses_a_file_with_one_text(table):
    path = table("a.tsv", ("a", "1"), header=("sentence", "label"))
    message = refusal(task="mrpc", train_file=path)
    assert "#1 String, #2 String, Quality or sentence1, sentence2, label" in message


@pytest.mark.parametrize("value", ["[1]", "{}", '"\\ud800"'])
def test_a_cell_that_is_no_text_is_refused(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"text": {value}, "label": 1}}\n')
    assert "line 1:" in refusal(train_file=str(tmp_path / "a.jsonl"), **OWN)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": "SST-2", "train_file": "x"}, "did you mean 'sst2'?"),
        ({"task": "squad", "train_file": "x"}, "expected one of cola, sst2"),
        ({"task": "rte", "train_file": "x", "label_column": "y"}, "has its own columns"),
        ({"train_file": "x", "label_column": "y"}, "text_columns"),
        ({"train_file": "x", "text_columns": ["a", "b", "c"], "label_column": "y"}, "text_columns"),
        ({"task": "rte"}, "one of train_file"),
        ({"task": "rte", "train_file": "x", "dataset_name": "y"}, "one of train_file"),
        ({"glue_dir": "x", **OWN}, "which of its tasks"),
        ({"task": "rte", "glue_dir": "x", "test_file": "y"}, "belongs to train_file"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(InputError) as error:
        ClassificationArguments(**settings)
    assert words in str(error.value)


def test_a_dataset_that_cannot_be_loaded_is_refused_by_name(tmp_path):
    assert "dataset_name: " in refusal(dataset_name=str(tmp_path / "nothing"), **OWN)


def test_a_pair_is_one_input_with_two_types_and_its_longer_text_is_cut():
    tokenizer = train_tokenizer(["a b c d e f g h"], vocab_size=64, model_max_length=8)
    pair = SimpleNamespace(texts=("a", "b c d e f g h"))
    short = SimpleNamespace(texts=("a b", "c"))
    (cut, whole), number_cut = encode([pair, short], [0, 1], tokenizer)
    assert tokenizer.convert_ids_to_tokens(cut["input_ids"]) == "[CLS] a [SEP] b c d e [SEP]".split()
    assert cut["token_type_ids"] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert tokenizer.convert_ids_to_tokens(whole["input_ids"]) == "[CLS] a b [SEP] c [SEP]".split()
    assert number_cut == 1

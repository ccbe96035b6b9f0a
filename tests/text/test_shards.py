"""Shards say what the one-machine way says, whoever makes them and however often they are stopped."""

import gzip
import json
import random
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.files import digest_folder, read_json
from electra_hf.text.corpus import CorpusArguments, load_corpus
from electra_hf.text.packed_rows import open_packed_rows, seal
from electra_hf.text.packing import pack_dataset
from electra_hf.text.shard_job import ShardArguments, begin, plan_job
from electra_hf.text.stages import (
    BLOCK,
    STAGES,
    Job,
    dealt_sources,
    find_duplicates,
    number_texts,
    read_blocks,
    run_task,
    stages_of,
)
from electra_hf.text.tokenization import train_tokenizer

VOCABULARY = {"vocab_size": 192, "tokenizer_type": "wordpiece", "lowercase": False}
WORDS = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo Ĥoro".split()


def sentences(number, seed=0):
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) + "." for _ in range(number)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Text, JSON Lines and Parquet, one of them large, one compressed and one empty, with sentences in common."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n".join(sentences(3000)) + "\n\n \n\x00\n")
    lines = [f"{number}\t{text}" for number, text in enumerate(sentences(600, 1) + sentences(300))]
    (folder / "b-sentences.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    documents = ["\n".join(sentences(20, seed)) for seed in range(30)]
    (folder / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    (folder / "d.txt").write_text("")
    pq.write_table(pa.table({"text": documents[20:] + sentences(500, 99)}), folder / "e.parquet")
    (folder / "pos.conll").write_text("Jes O\n\n" + "\n".join(f"{word} O" for word in sentences(3)[1].split()) + "\n")
    return folder


def files(corpus):
    return [str(corpus / name) for name in ("a.txt", "b-sentences.txt.gz", "c.jsonl", "d.txt", "e.parquet")]


def arguments(corpus, **settings):
    return CorpusArguments(
        **{
            "corpus_files": files(corpus),
            "exclude_files": [str(corpus / "pos.conll")],
            "test_share": 0.1,
            "data_cache_dir": str(corpus / "cache"),
            **settings,
        }
    )


def plan(
    corpus, folder, tasks=1, max_length=16, tokenizer=None, vocabulary=VOCABULARY, near_duplicates=None, **settings
):
    shards = ShardArguments(output_dir=str(folder), tasks=tasks, near_duplicates=near_duplicates)
    return plan_job(shards, arguments(corpus, **settings), vocabulary, max_length, tokenizer)


def run_all(job, chance=None):
    """All stages in this process, the tasks of each in any order."""
    begin(job)
    for name in stages_of(job):
        tasks = list(range(STAGES[name].tasks(job)))
        if chance:
            chance.shuffle(tasks)
        for task in tasks:
            run_task(job, name, task)
    return job


def make(corpus, folder, tasks=1, **settings):
    seal(run_all(plan(corpus, folder, tasks, **settings)))
    return folder


@pytest.fixture(scope="module")
def one_machine(corpus):
    return load_corpus(arguments(corpus))


@pytest.fixture(scope="module")
def shards(corpus, tmp_path_factory):
    """A finished folder of three tasks."""
    return make(corpus, tmp_path_factory.mktemp("shards") / "shards", 3)


def texts_of(job, split):
    paths = [output / f"{split}.arrow" for output in job.outputs("texts")]
    return [text for path in paths for text in pa.ipc.open_stream(path.read_bytes()).read_all()["text"].to_pylist()]


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_the_sentences_and_the_report_are_those_of_one_machine(corpus, one_machine, tmp_path, tasks):
    splits, report = one_machine
    job = run_all(plan(corpus, tmp_path / "shards", tasks))
    for split in splits:
        texts = texts_of(job, split)
        assert Counter(texts) == Counter(splits[split]["text"]), split
        if tasks == 1:
            assert texts == splits[split]["text"][:]
    seal(job)
    merged = read_json(tmp_path / "shards" / "corpus.json")
    assert report["total"]["duplicate"] > 300 and report["total"]["excluded"] > 0
    assert {*report, "tokenizer"} == {*merged}
    for key in report:
        assert key == "fingerprint" or merged[key] == report[key], key


def test_one_task_packs_the_rows_that_one_machine_packs(corpus, one_machine, tmp_path):
    splits, _ = one_machine
    packed = open_packed_rows(make(corpus, tmp_path / "shards"))
    tokenizer = train_tokenizer(splits["train"], **VOCABULARY)
    assert packed.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    for split, rows in (("train", packed.train), ("test", packed.test)):
        expected = pack_dataset(splits[split], tokenizer, 16, tmp_path / "cache")
        assert rows.dataset["input_ids"][:] == expected.dataset["input_ids"][:]


def test_shards_are_a_function_of_inputs_settings_and_the_number_of_tasks(corpus, shards, tmp_path):
    seal(run_all(plan(corpus, tmp_path / "again", 3), random.Random(1)))
    assert digest_folder(tmp_path / "again") == digest_folder(shards)
    assert sorted(digest_folder(make(corpus, tmp_path / "two", 2))) != sorted(digest_folder(shards))


def test_a_large_file_is_dealt_out_and_a_small_one_is_not(tmp_path):
    (tmp_path / "large.txt").write_text("\n".join(sentences(60 * BLOCK)))
    (tmp_path / "small.txt").write_text("\n".join(sentences(BLOCK // 4)))
    job = plan(tmp_path, tmp_path / "out", 7, corpus_files=[str(tmp_path)], exclude_files=[])
    assert [task for task in range(7) if 1 in dealt_sources(job, task)] == [6]
    number = [len(list(read_blocks(job, task, 0, Counter()))) for task in range(7)]
    assert sum(number) == 60 and max(number) - min(number) <= 2


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.integers(1, 9))
def test_every_block_is_dealt_to_one_task(sizes, tasks):
    sources = [{"bytes": size} for size in sizes]
    job = Job("", tasks, {}, sources, [])
    for number in range(len(sizes)):
        sharing = [task for task in range(tasks) if number in dealt_sources(job, task)]
        start, end = job.edges[number : number + 2]
        assert sharing == list(range(job.task_at(start), job.task_at(end - 1) + 1))


@given(st.lists(st.dictionaries(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=5))
def test_of_equal_sentences_the_first_of_the_corpus_stays(tasks):
    # Two tasks never share a place: it is a block, and a block belongs to one task.
    hashes = [np.array(sorted(places), np.uint64) for places in tasks]
    places = [
        np.array([places[h] * len(tasks) + task for h in sorted(places)], np.uint64)
        for task, places in enumerate(tasks)
    ]
    first = {}
    for task, (some, at) in enumerate(zip(hashes, places, strict=True)):
        for value, place in zip(some.tolist(), at.tolist(), strict=True):
            first[value] = min(first.get(value, (place, task)), (place, task))
    expected = [[h for h in some.tolist() if first[h][1] != task] for task, some in enumerate(hashes)]
    assert [dropped.tolist() for dropped in find_duplicates(hashes, places)] == expected


def test_an_existing_tokenizer_is_copied(corpus, shards, tmp_path):
    folder = make(corpus, tmp_path / "shards", tokenizer=str(shards / "tokenizer"), vocabulary={}, max_length=32)
    before = (shards / "tokenizer" / "tokenizer.json").read_bytes()
    assert (folder / "tokenizer" / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b"unu\ndu\xff\n"}, "a.txt, line 2, byte 3"),
        ({"a.jsonl": b'{"text": "unu"}\n{"text": '}, "a.jsonl, line 2: not one JSON object per line"),
        ({"a.txt": b"unu\n" * 3000, "b.csv": b'text\nunu\n"du\n'}, "b.csv, line 3: not valid CSV"),
        ({"a.txt": b"\n \n"}, "the corpus is empty"),
        ({"a.txt": b"unu\n"}, "test_share: 0.1 of 1 sentences held out none"),
    ],
)
def test_broken_input_is_refused_as_on_one_machine_and_leaves_no_manifest(tmp_path, content, message):
    for name, some in content.items():
        (tmp_path / name).write_bytes(some)
    settings = {"corpus_files": [str(tmp_path / name) for name in content], "exclude_files": []}
    errors = []
    for way in (
        lambda: load_corpus(arguments(tmp_path, **settings)),
        lambda: run_all(plan(tmp_path, tmp_path / "out", 3, **settings)),
    ):
        with pytest.raises(InputError, match=message) as error:
            way()
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    with pytest.raises(InputError, match="not finished"):
        open_packed_rows(tmp_path / "out")


@pytest.mark.parametrize("is_finished", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": 2}, "tasks was 3, now 2"),
        ({"max_length": 32}, "max_length was 16, now 32"),
        ({"vocabulary": {**VOCABULARY, "lowercase": True}}, "lowercase was False, now True"),
        ({"test_share": 0.2}, "test_share was 0.1, now 0.2"),
        ({"exclude_files": []}, "exclude_files have changed"),
        ({"corpus_files": "fewer"}, "corpus_files have changed"),
    ],
)
def test_other_settings_in_a_folder_begun_are_refused(corpus, tmp_path, shards, is_finished, change, message):
    folder = shards
    if not is_finished:
        folder = tmp_path / "begun"
        begin(plan(corpus, folder, 3))
    before = digest_folder(folder)
    change = {name: files(corpus)[:2] if value == "fewer" else value for name, value in change.items()}
    with pytest.raises(InputError, match=message):
        begin(plan(corpus, folder, **{"tasks": 3, **change}))
    begin(plan(corpus, folder, 3))  # the same ones are not
    assert digest_folder(folder) == before


def test_a_corpus_that_moves_between_two_starts_is_read_at_its_new_place(corpus, shards, tmp_path):
    before, after, folder = tmp_path / "before", tmp_path / "after", tmp_path / "shards"
    shutil.copytree(corpus, before)
    tokenizer = {"vocabulary": {}, "tokenizer": str(shutil.copytree(shards / "tokenizer", before / "tokenizer"))}
    job = plan(before, folder, 3, **tokenizer)
    begin(job)
    run_task(job, "clean", 1)
    before.rename(after)
    tokenizer["tokenizer"] = str(after / "tokenizer")
    seal(run_all(plan(after, folder, 3, **tokenizer)))
    for split in ("train", "test"):
        assert digest_folder(folder / split) == digest_folder(shards / split)
    with pytest.raises(InputError, match="corpus_files have changed"):
        begin(plan(after, folder, 3, **tokenizer, corpus_files=files(after)[1:]))


def test_a_folder_with_other_files_is_refused(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something else .thesis.tex"):
        begin(plan(corpus, tmp_path))


def change_one_word(text):
    words = text.split()
    words[len(words) // 2] = "ŝanĝita"
    return " ".join(words)


@pytest.fixture(scope="module")
def near_copies(tmp_path_factory):
    """A folder of documents in three files, with changed copies in others; and the documents that should stay."""
    folder, chance = tmp_path_factory.mktemp("documents"), random.Random(5)
    vocabulary = ["".join(chance.choices("abcdefghijkl", k=6)) for _ in range(2000)]
    texts = [" ".join(chance.choices(vocabulary, k=80)) for _ in range(300)]
    early, late = (list(map(change_one_word, some)) for some in (texts[:40], texts[40:100]))
    write = {"a": early, "b": texts[:250], "c": late + texts[250:] + texts[100:130], "d": late[:20] + early[:5]}
    for name, some in write.items():
        (folder / f"{name}.txt").write_text("\n\n".join(some))
    return folder, early + texts[40:]


def plan_documents(near_copies, folder, tasks=1, **settings):
    settings = {"test_share": 0.2, "text_unit": "document", "near_duplicates": 0.5, **settings}
    return plan(near_copies[0], folder, tasks, corpus_files=[str(near_copies[0])], exclude_files=[], **settings)


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_of_near_duplicates_the_first_of_the_corpus_stays_and_the_others_are_counted(near_copies, tmp_path, tasks):
    job = run_all(plan_documents(near_copies, tmp_path / "shards", tasks), random.Random(tasks))
    kept = [text for split in ("train", "test") for text in texts_of(job, split)]
    assert Counter(kept) == Counter(near_copies[1])
    report = read_json(job.output("tokenizer") / "corpus.json")
    dropped = [(source["duplicate"], source["near_duplicate"], source["kept"]) for source in report["sources"]]
    assert dropped == [(0, 0, 40), (0, 40, 210), (30, 60, 50), (25, 0, 0)]
    assert (report["total"]["near_duplicate"], report["total"]["kept"]) == (100, 300)


def test_shards_without_near_duplicates_are_a_function_of_the_job_too(near_copies, tmp_path):
    for name, seed in (("one", 1), ("other", 2)):
        seal(run_all(plan_documents(near_copies, tmp_path / name, 3), random.Random(seed)))
    assert digest_folder(tmp_path / "one") == digest_folder(tmp_path / "other")


def test_another_similarity_in_a_folder_begun_is_refused(near_copies, tmp_path):
    begin(plan_documents(near_copies, tmp_path))
    for similarity, now in ((0.7, "now 0.7"), (None, "now not set")):
        with pytest.raises(InputError, match=f"near_duplicates was 0.5, {now}"):
            begin(plan_documents(near_copies, tmp_path, near_duplicates=similarity))


def test_near_duplicates_of_lines_and_numbers_that_are_no_similarity_are_refused(near_copies, tmp_path):
    with pytest.raises(InputError, match="near_duplicates: are looked for among documents.*text_unit: document"):
        plan_documents(near_copies, tmp_path, text_unit="line")
    for wrong in (0.0, 1.0, 70):
        with pytest.raises(InputError, match=f"near_duplicates: expected a similarity from 0.3 to 0.95, got {wrong}"):
            ShardArguments(output_dir="x", near_duplicates=wrong)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, BLOCK)), max_size=9))
def test_the_numbers_of_texts_rise_in_the_order_of_the_corpus(blocks):
    places = [np.repeat(np.uint64(source << 40 | block), size) for source, block, size in blocks]
    places = {int(some[0]): some for some in places}  # a block is one task's
    numbers = number_texts(np.concatenate([np.empty(0, np.uint64), *(places[place] for place in sorted(places))]))
    assert (numbers[1:] > numbers[:-1]).all()
    # Another task, which has one of the blocks alone, gives its texts the same numbers.
    alone = [number for place in sorted(places) for number in number_texts(places[place]).tolist()]
    assert alone == numbers.tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": 0}, "tasks: expected at least 1"),
        ({"workers": 0}, "workers: expected at least 1"),
        ({"tasks": 4, "task_offset": 4}, "not a part of the 4 tasks"),
        ({"tasks": 4, "task_offset": 2, "local_tasks": 3}, "not a part of the 4 tasks"),
    ],
)
def test_numbers_that_make_no_job_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ShardArguments(output_dir="x", **settings)


def test_a_length_that_no_row_can_have_is_refused_before_the_corpus_is_read(corpus, tmp_path):
    with pytest.raises(InputError, match="max_length: expected at least 3"):
        plan(corpus, tmp_path, max_length=2, corpus_files=["nowhere.txt"])


def test_texts_that_fill_no_row_are_told(corpus, tmp_path):
    job = run_all(plan(corpus, tmp_path / "shards", 2, max_length=4096))
    with pytest.raises(InputError, match="no task fill one row of max_length 4096 for test"):
        seal(job)


def test_a_job_stopped_while_it_is_sealed_is_sealed_by_the_next(corpus, shards, tmp_path, monkeypatch):
    job = run_all(plan(corpus, tmp_path / "shards", 3))
    monkeypatch.setattr("electra_hf.text.packed_rows.write_json", None)
    with pytest.raises(TypeError):
        seal(job)
    assert (tmp_path / "shards" / "train" / "00002.arrow").is_file()
    monkeypatch.undo()
    seal(run_all(plan(corpus, tmp_path / "shards", 3)))
    assert digest_folder(tmp_path / "shards") == digest_folder(shards)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train/00001.arrow").unlink(), "train/00001.arrow is missing"),
        (lambda folder: cut(folder / "test/00000.arrow"), "test/00000.arrow is cut or changed"),
        (lambda folder: flip(folder / "train/00002.arrow"), "train/00002.arrow is not as manifest.json says"),
        (lambda folder: flip(folder / "tokenizer/tokenizer.json"), "tokenizer/tokenizer.json is not as"),
        (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
        (lambda folder: cut(folder / "manifest.json"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json names no shards"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_name_of_the_file(shards, tmp_path, damage, message):
    shutil.copytree(shards, tmp_path / "copy")
    open_packed_rows(tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(InputError, match=message):
        open_packed_rows(tmp_path / "copy")


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        open_packed_rows(tmp_path / "nowhere")

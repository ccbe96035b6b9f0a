"""Prepared data is known by its content, whole or made anew, and only read once it is there."""

import os
import shutil
import subprocess
import sys

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text import corpus, packing, prepared
from electra_hf.text.corpus import CorpusArguments, load_corpus
from electra_hf.text.fingerprint import TextFingerprint, fingerprint_texts
from electra_hf.text.packing import pack_dataset
from electra_hf.text.tokenization import train_tokenizer

TEXT = "".join(f"Frazo numero {i} estas ĉi tie.\n" for i in range(400))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT.splitlines(), 64, "bpe")


@pytest.fixture
def start(tmp_path, tokenizer):
    """Starts as a recipe does: corpus and rows. Returns the texts, the ids, and what identifies the two."""
    (tmp_path / "text.txt").write_text(TEXT)

    def start(path="text.txt", cache="cache", **settings):
        folder = tmp_path / cache
        splits, report = load_corpus(
            CorpusArguments([str(tmp_path / path)], test_share=0.1, data_cache_dir=str(folder), **settings)
        )
        rows = {split: pack_dataset(splits[split], tokenizer, 16, folder) for split in splits}
        return (
            {split: splits[split]["text"][:] for split in splits},
            {split: rows[split].__getitems__(list(range(len(rows[split])))).tolist() for split in rows},
            [
                report["fingerprint"],
                *(part._fingerprint for part in [*splits.values(), *(r.dataset for r in rows.values())]),
            ],
        )

    return start


@pytest.fixture
def refuses_to_prepare(monkeypatch):
    """Whoever prepares a corpus or packs rows from here on breaks."""
    monkeypatch.setattr(corpus, "prepare_corpus", None)
    monkeypatch.setattr(packing, "write_rows", None)


# Identity is content


def touch(folder):
    os.utime(folder / "text.txt", (1, 1))


def copy_elsewhere(folder):
    (folder / "other").mkdir()
    shutil.copy(folder / "text.txt", folder / "other" / "renamed.txt")
    return "other/renamed.txt"


def link(folder):
    (folder / "link.txt").symlink_to(folder / "text.txt")
    return "link.txt"


def write_again(folder):
    (folder / "text.txt").unlink()
    (folder / "text.txt").write_text(TEXT)


@pytest.mark.parametrize("event", [touch, copy_elsewhere, link, write_again])
def test_a_file_that_was_touched_moved_or_fetched_again_is_the_same_corpus(start, tmp_path, request, event):
    before = start()
    request.getfixturevalue("refuses_to_prepare")
    path = event(tmp_path) or "text.txt"
    assert start(path) == before


def test_a_cleaned_cache_or_another_one_gives_the_same_corpus_and_the_same_identity(start, tmp_path):
    before = start()
    shutil.rmtree(tmp_path / "cache")
    assert start() == before and start(cache="elsewhere/deep") == before
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    assert start(cache="moved") == before


def test_other_content_of_the_same_size_and_time_is_another_corpus(start, tmp_path):
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    before = start()
    (tmp_path / "text.txt").write_text(TEXT.replace("tie", "tiu"))
    os.utime(tmp_path / "text.txt", ns=(1, 1))
    after = start()
    assert "Frazo numero 7 estas ĉi tiu." in after[0]["train"] + after[0]["test"]
    assert all(new != old for new, old in zip(after[2], before[2], strict=True))


def test_the_report_says_todays_names_of_what_was_prepared_under_others(start, tmp_path, request):
    start()
    request.getfixturevalue("refuses_to_prepare")
    (tmp_path / "text.txt").rename(tmp_path / "new.txt")
    _, report = load_corpus(
        CorpusArguments([str(tmp_path / "new.txt")], test_share=0.1, data_cache_dir=str(tmp_path / "cache"))
    )
    assert report["sources"][0]["name"] == str(tmp_path / "new.txt")


def test_the_ending_of_a_name_is_part_of_the_content_since_it_says_how_to_read(start, tmp_path):
    (tmp_path / "text.txt").write_text("text\n" + TEXT)
    (tmp_path / "text.csv").write_text("text\n" + TEXT)
    assert "text" in start()[0]["train"] + start()[0]["test"]
    splits = start("text.csv")[0]
    assert "text" not in splits["train"] + splits["test"]


def test_a_hub_dataset_is_known_by_its_texts(tmp_path, request):
    (tmp_path / "text.jsonl").write_text("".join(f'{{"text": "{line}", "n": 1}}\n' for line in TEXT.splitlines()))
    (tmp_path / "hub").mkdir()
    shutil.copy(tmp_path / "text.jsonl", tmp_path / "hub" / "data.jsonl")
    arguments = {"test_share": 0.1, "data_cache_dir": str(tmp_path / "cache")}
    _, before = load_corpus(CorpusArguments(dataset_name=str(tmp_path / "hub"), **arguments))
    shutil.move(tmp_path / "hub", tmp_path / "moved")
    (tmp_path / "moved" / "data.jsonl").write_text((tmp_path / "text.jsonl").read_text().replace('"n": 1', '"n": 2'))
    request.getfixturevalue("refuses_to_prepare")
    _, after = load_corpus(CorpusArguments(dataset_name=str(tmp_path / "moved"), **arguments))
    assert after["fingerprint"] == before["fingerprint"]


@given(st.lists(st.text(max_size=5), max_size=30), st.integers(1, 7), st.sampled_from(["string", "large_string"]))
def test_the_fingerprint_of_texts_depends_on_neither_batches_nor_types(texts, size, kind):
    whole, parts = TextFingerprint(), TextFingerprint()
    whole.update(pa.array(texts, pa.string()).cast(pa.large_binary()))
    for at in range(0, len(texts), size):
        parts.update(pa.array(texts, kind).cast(pa.large_binary())[at : at + size])
    assert whole.hexdigest() == parts.hexdigest()
    if texts:
        dataset = Dataset.from_dict({"n": list(range(len(texts))), "text": texts})
        assert fingerprint_texts(dataset, "x") == whole.hexdigest()
        assert fingerprint_texts(dataset.select(range(len(texts) - 1)), "x") != whole.hexdigest()


def test_where_a_text_ends_is_part_of_the_fingerprint():
    parts = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], ["c", "ab"]]
    assert len({fingerprint_texts(Dataset.from_dict({"text": texts}), "x") for texts in parts}) == len(parts)


# Damage


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def make_longer(path):
    path.write_bytes(path.read_bytes() + b"\n ")


def remove(path):
    path.unlink()


FILES = [
    *(("corpus", name) for name in ("train.arrow", "test.arrow", "corpus.json", "manifest.json")),
    *(("rows", name) for name in ("rows.arrow", "manifest.json")),
]


@pytest.mark.parametrize("damage", [empty, cut, flip_a_bit, make_longer, remove])
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_damage_is_told_in_one_line_and_prepared_anew(start, tmp_path, caplog, kind, name, damage):
    before = start()
    paths = sorted((tmp_path / "cache").glob(f"{kind}-*/{name}"))
    assert len(paths) == {"corpus": 1, "rows": 2}[kind]
    for path in paths:
        damage(path)
    caplog.clear()
    assert start() == before
    told = [record.getMessage() for record in caplog.records]
    if name == "manifest.json" and damage is make_longer:
        assert told == []  # white space after the JSON
    else:
        assert len(told) == len(paths) and all("is damaged" in line and name in line for line in told)
    caplog.clear()
    assert start() == before and not caplog.records


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"files": {}}', '{"files": 3}', '{"files": {"\\u0000": {}}}', "null"]
)
def test_a_foreign_manifest_is_damage(start, tmp_path, content):
    before = start()
    for path in (tmp_path / "cache").glob("*/manifest.json"):
        path.write_text(content)
    assert start() == before


def test_what_others_put_beside_the_prepared_files_is_no_damage(start, tmp_path, request):
    before = start()
    for folder in (tmp_path / "cache").iterdir():
        (folder / "cache-1234.arrow").write_text("of Dataset.map")
    request.getfixturevalue("refuses_to_prepare")
    assert start() == before


def test_an_id_beyond_the_vocabulary_never_gets_into_the_rows(start, tmp_path, tokenizer):
    backend = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())

    class Smaller:  # a tokenizer with gaps in its vocabulary: fewer entries than its largest id says
        backend_tokenizer, cls_token_id, sep_token_id = backend, 2, 3

        def __len__(self):
            return 50

    for length in (16, 17):
        with pytest.raises(InputError, match="50 entries, but gives ids up to"):
            pack_dataset(Dataset.from_dict({"text": TEXT.splitlines()}), Smaller(), length, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("rows-*/"))


# Shared, read-only, full


def listing(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")])


def test_a_finished_cache_is_only_read(start, tmp_path):
    before = start()
    files = listing(tmp_path / "cache")
    assert start() == before and listing(tmp_path / "cache") == files
    assert not list((tmp_path / "cache").glob("*.lock"))


# In processes of their own, not forked: the threads of tokenizers, Arrow and tqdm do not live on in a child.
SCRIPT = """
import os, resource, sys
from electra_hf.errors import InputError
from electra_hf.text.corpus import CorpusArguments, load_corpus
from electra_hf.text.packing import pack_dataset
from electra_hf.text.tokenization import load_tokenizer

folder, event, value = sys.argv[1:]
tokenizer = load_tokenizer(f"{folder}/tokenizer")
if event == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(value), int(value)))  # EFBIG, where a full disk gives ENOSPC
if event == "user":
    os.setuid(int(value))
    assert not os.access(f"{folder}/cache", os.W_OK)
try:
    arguments = CorpusArguments([f"{folder}/text.txt"], test_share=0.1, data_cache_dir=f"{folder}/cache")
    splits, _ = load_corpus(arguments)
    for split in splits.values():
        pack_dataset(split, tokenizer, 16, f"{folder}/cache")
except InputError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture
def another_start(tmp_path, tokenizer):
    """Starts the same in another process; returns that process."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def start(event="none", value=0):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), event, str(value)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return start


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_finished_cache_of_another_user_is_read(start, another_start, tmp_path):
    start()
    for path in [*tmp_path.rglob("*"), tmp_path, *tmp_path.parents[:2]]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    process = another_start("user", 65534)
    assert process.communicate()[0] == "" and process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 3_000, 20_000])
def test_a_full_disk_is_one_message_and_the_next_start_works(start, another_start, tmp_path, size):
    process = another_start("limit", size)
    message = process.communicate()[0]
    assert process.returncode == 2 and "File too large" in message and "data_cache_dir" in message
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]
    assert all(prepared.find_damage(tmp_path / "cache" / name) is None for name in left), left
    texts, rows, _ = start()
    assert len(texts["train"]) + len(texts["test"]) == 400 and rows["train"]


@pytest.mark.slow
def test_processes_that_start_together_prepare_the_same(start, another_start):
    processes = [another_start() for _ in range(3)]
    assert [(process.communicate()[0], process.returncode) for process in processes] == [("", 0)] * 3
    assert start()

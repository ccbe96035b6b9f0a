"""A small job of shards in a process of its own that is killed, forked from one that has imported everything."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

from train_until_killed import start_nothing

from electra_hf.text.corpus import CorpusArguments
from electra_hf.text.shard_job import ShardArguments, begin, plan_job, remove_faults, remove_leftovers
from electra_hf.text.shards import run_stages

TASKS = 3
VOCABULARY = {"vocab_size": 192, "tokenizer_type": "wordpiece", "lowercase": False}


def write_corpus(folder: Path) -> None:
    """Two files with documents in common, some in capitals, the larger one dealt out over all tasks."""
    words = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo".split()
    lines = [" ".join(words[(i * step) % len(words)] for step in range(1, 8)) + f" {i}." for i in range(2000)]
    (folder / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    others = [line.upper() for line in lines[:500:-3]] + lines[:500:-7]
    (folder / "b.txt").write_text("\n\n".join(others), encoding="utf-8")


def start(corpus: Path, folder: Path, **settings) -> Iterator[tuple[str, int, float]]:
    """What prepare_shards.py does, up to each stage that this yields; `settings` are those of `ShardArguments`."""
    shards = ShardArguments(output_dir=str(folder), tasks=TASKS, near_duplicates=0.9, **settings)
    files = [str(corpus / "a.txt"), str(corpus / "b.txt")]
    arguments = CorpusArguments(files, text_unit="document", test_share=0.1)
    job = plan_job(shards, arguments, VOCABULARY, max_length=16)
    begin(job)
    remove_faults(job.folder, shards.own_tasks)
    if shards.is_alone:
        remove_leftovers(job)
    return run_stages(job, shards)


def work(corpus: Path, folder: Path, prepare: Callable) -> None:
    """All of it, after `prepare()`."""
    prepare()
    for _ in start(corpus, folder):
        pass


def run(corpus: Path, folder: Path, prepare: Callable = start_nothing) -> int:
    """The exit code of the job, after `prepare()` in its process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=(corpus, folder, prepare))
    process.start()
    process.join()
    return process.exitcode

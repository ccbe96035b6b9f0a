"""Let several ways of training run side by side: the same text and architecture, short windows in turn."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from electra_hf.errors import InputError
from electra_hf.text.packing import PackedRows, collate_rows, pack_dataset
from electra_hf.text.tokenization import save_tokenizer
from electra_hf.training.checkpoints import sorted_checkpoints
from machine import has_fast_bfloat16, processor_name
from tables import ROWS, needs_bfloat16


def choose_rows(named: list[str] | None, peers_python: str | None) -> list[str]:
    """The rows to time, in the order of the table: the named ones, or all that can be timed here if none is named.

    Raises `InputError` for a named row that is unknown or cannot be timed here.
    """
    # A named row that cannot be timed here is an error. Without names such rows are left out.
    obstacles = {row: reason for row in ROWS if (reason := _obstacle(row, peers_python))}
    for row in named or []:
        if row not in ROWS:
            raise InputError(f"rows: expected some of {', '.join(ROWS)}, got {row}.")
        if row in obstacles:
            raise InputError(f"rows: {row} cannot be timed here, because {obstacles[row]}.")
    # One line a reason: six rows of bf16 are left out for the same one.
    for reason in dict.fromkeys(obstacles.values() if named is None else []):
        rows = [row for row in obstacles if obstacles[row] == reason]
        print(f"Left out: {', '.join(rows)}, because {reason}.", flush=True)
    return [row for row in ROWS if (row not in obstacles if named is None else row in named)]


def _obstacle(row, peers_python):
    """Why a row cannot be timed here, or None."""
    if row == "simpletransformers" and not peers_python:
        return "peers_python is missing; `make benchmark-peers` sets it"
    if needs_bfloat16(row) and not has_fast_bfloat16():
        return f"this machine ({processor_name()}) has no instructions for bf16"
    return None


def write_task(folder: Path, texts: Dataset, tokenizer, config, max_length: int, least_rows: int) -> PackedRows:
    """Write what all contenders train on: the pair's configuration, the tokenizer, the text, its rows.

    A text with fewer rows than `least_rows` is repeated: a window must not meet the end of an epoch. Returns the
    packed rows.
    """
    config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "text.txt").write_text("\n".join(texts["text"]) + "\n", encoding="utf-8")
    packed = pack_dataset(texts, tokenizer, max_length)
    ids = packed.__getitems__(range(len(packed))).numpy()
    # np.resize repeats the rows in turn until there are enough.
    rows = np.resize(ids, (max(least_rows, len(ids)), max_length))
    _save(folder / "rows", {"input_ids": rows}, max_length)

    # The same text as padded rows of one sentence each, which is what stock recipes train on.
    sentences = tokenizer(
        list(islice(cycle(texts["text"]), max(least_rows, len(texts)))),
        truncation=True,
        padding="max_length",
        max_length=max_length,
        return_token_type_ids=False,
    )
    _save(folder / "sentences", dict(sentences), max_length)
    return packed


def _save(folder, columns, length):
    # Of a fixed length, as `PackedRows` needs it.
    features = Features({name: List(Value("int32"), length=length) for name in columns})
    Dataset.from_dict(columns, features=features).save_to_disk(folder)


class Contender:
    """A process that trains on command; see `contenders.py`."""

    def __init__(self, name: str, folder: Path, batch_size: int, python=sys.executable):
        self.name = name
        self.log = folder / f"{name}.log"
        here = Path(__file__).parent
        # No network: nothing of the Hub and of trackers may take part in a step.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")]),
            # A cache of its own: otherwise the first start would be timed with the code of an earlier benchmark.
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled",
        }
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [str(python), str(here / "contenders.py"), name, str(folder), str(batch_size)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        # Its first answer comes after its first step: what is compiled is compiled by then.
        self._read()
        self.seconds_to_first_step = time.perf_counter() - start

    def run(self, command: int | str) -> dict:
        """Run so many steps, or one with a save: `seconds`, `work` (tokens, operations), `stall`, `memory` (bytes)."""
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise InputError(
                f"{self.name} ended with exit code {self.process.wait()}; its last words are in {self.log}"
            )
        return json.loads(line)

    def close(self):
        self.process.stdin.close()  # it reads an empty line, and ends
        self.process.wait()


def start(names: list[str], folder: Path, batch_size: int, peers_python: str | None) -> dict[str, Contender]:
    """The contenders by name, started one after the other up to their first steps."""
    contenders = {}
    # One after the other: two that compile at the same time would both look slow.
    for name in names:
        python = peers_python if name == "simpletransformers" else sys.executable
        contenders[name] = Contender(name, folder, batch_size, python)
        print(f"{name}: first step after {contenders[name].seconds_to_first_step:.0f} s", flush=True)
    return contenders


def race(contenders: Collection[Contender], windows: int, steps: int, warmup_steps: int = 2) -> dict[str, list[dict]]:
    """The answers of every contender to `windows` windows of `steps` steps, in turn, after a warm-up.

    A step before each window is not timed: the first one after another process has been at work is slower.
    """
    for contender in contenders:
        contender.run(warmup_steps)
    answers = {contender.name: [] for contender in contenders}
    for _ in range(windows):
        for contender in contenders:
            contender.run(1)
            answers[contender.name].append(contender.run(steps))
    return answers


def summarise(contender: Contender, answers: list[dict]) -> dict:
    """Median, lowest and highest work per second of a contender's windows, and what else was seen of it."""
    speeds = sorted(answer["work"] / answer["seconds"] for answer in answers)
    return {
        "per_second": statistics.median(speeds),
        "lowest": speeds[0],
        "highest": speeds[-1],
        "per_cpu_second": statistics.median(answer["work"] / answer["cpu_seconds"] for answer in answers),
        "memory": answers[-1]["memory"],  # a peak, so the last one is the highest
        "seconds_to_first_step": contender.seconds_to_first_step,
    }


def measure_restart(name: str, folder: Path, batch_size: int) -> float:
    """Seconds from the start of a process to its first step, compiled code being found in the cache."""
    contender = Contender(name, folder, batch_size)
    contender.close()
    return contender.seconds_to_first_step


def measure_stall(contender: Contender, folder: Path, times: int = 5) -> tuple[float, float]:
    """Seconds that training stands still for a checkpoint, and that a bare write of as many bytes takes: the medians.

    The writes take turns with the saves, on the disk of `folder`, where the contender saves.
    """
    stalls, writes = [], []
    for _ in range(times):
        # In turn: a shared disk is slow for minutes at a time, and then for both.
        stalls.append(contender.run("save")["stall"])
        contender.run(2)
        [*_, checkpoint] = sorted_checkpoints(folder / f"run-{contender.process.pid}")
        writes.append(_write(folder / "bare_write", sum(file.stat().st_size for file in checkpoint.iterdir())))
        contender.run(2)
    return statistics.median(stalls), statistics.median(writes)


def _write(file, size):
    # Unbuffered and in large pieces: the time is that of the system's writes, and not of Python.
    chunk = bytes(2**24)
    start = time.perf_counter()
    with open(file, "wb", buffering=0) as output:
        for _ in range(size // len(chunk)):
            output.write(chunk)
        output.write(chunk[: size % len(chunk)])
    seconds = time.perf_counter() - start
    file.unlink()
    return seconds


def measure_feed(rows: PackedRows, batch_size: int, seconds: float = 2.0) -> float:
    """Tokens per second that one process feeds: shuffled rows from the memory map to tensors."""
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        # Shuffled, since rows in a row would lie in one page of memory and look faster than training has it.
        for batch in DataLoader(rows, batch_size, shuffle=True, drop_last=True, collate_fn=collate_rows):
            tokens += batch["input_ids"].numel()
    return tokens / (time.perf_counter() - start)

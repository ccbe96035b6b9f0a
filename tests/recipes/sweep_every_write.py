"""Every operation of a run that changes the disk: killed there, or refused for want of space, and started again.

python tests/recipes/sweep_every_write.py [--seed 0 --sample 12]

Each run is forked from a process that has imported everything already, and whose calls to libc are watched
(intercept_writes.c). A run started again has to end as the one that nothing has disturbed.
"""

import argparse
import ctypes
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

from electra_hf.files import digest

RECIPES = Path(__file__).parents[2] / "recipes"
SOURCE = Path(__file__).with_name("intercept_writes.c")
MODES = {"record": 0, "kill": 1, "fail": 2}
NETWORK = '{"num_hidden_layers": 1, "hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2}'
FLAGS = {
    "pretrain": {
        "corpus_files": "corpus.txt",
        "data_cache_dir": "cache",
        "output_dir": "run",
        "test_share": 0.2,
        "vocab_size": 128,
        "max_length": 16,
        "discriminator": NETWORK,
        "generator": NETWORK,
        "max_steps": 6,
        "warmup_steps": 1,
        "save_steps": 2,
        "save_total_limit": 1,
        "logging_steps": 2,
        "per_device_train_batch_size": 8,
    },
    "finetune_token_classification": {
        "model_name_or_path": "discriminator",
        "train_file": "train.txt",
        "test_file": "test.txt",
        "output_dir": "run",
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "seeds": "1 2",
    },
}
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
    **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": os.pathsep.join([str(RECIPES.parent), str(RECIPES)]),
}

# What two equal runs differ in: when they ran and how fast.
TIMES = re.compile("runtime|per_second")  # keys of JSON files
TIMES_IN_CARDS = re.compile(r"^\| (time|tokens per second) \|.*\n", re.MULTILINE)
FILES_WITH_TIMES = ("curves.png", "totals_*.safetensors", "manifest.json")  # the last has the sizes of all others


@dataclass(frozen=True)
class Operation:
    """A call that changes the disk, such as `rename run/metrics.json`, and at which time it is made (from 1)."""

    call: str
    occurrence: int

    def __str__(self):
        return f"{self.call} ({self.occurrence})"


class Forks:
    """A process that has imported everything, and starts runs of recipes as its forks, one at a time."""

    def __init__(self, **environment: str):
        self._place = tempfile.TemporaryDirectory()
        library = Path(self._place.name) / "intercept_writes.so"
        command = [compiler(), "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | ENVIRONMENT | {"LD_PRELOAD": str(library)} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._place.cleanup()

    def run(self, recipe: str, folder: Path, mode: str = "record", at: Operation | None = None) -> tuple[int, str]:
        """Run a recipe in `folder`; returns its exit code (negative: the signal that killed it) and what it printed.

        Its calls that change files below the folder are listed in FOLDER.journal.
        """
        case = {"recipe": recipe, "folder": str(folder), "mode": MODES[mode]}
        case |= {"call": at.call if at else "", "occurrence": at.occurrence if at else 0}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, Path(f"{folder}.output").read_text(errors="replace")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def why_not() -> str | None:
    """Why no sweep can run on this machine, or None."""
    if sys.platform != "linux":
        return "calls to libc are watched by LD_PRELOAD, on Linux alone"
    return None if compiler() else "there is no C compiler"


def serve() -> None:
    """Fork a run for each line of standard input; its exit code is the line that answers."""
    recipes = {name: importlib.import_module(name) for name in FLAGS}
    importlib.import_module("transformers.models.electra.modeling_electra")
    with tempfile.TemporaryDirectory() as place:  # fills the caches of fonts
        recipes["pretrain"].draw_curves(
            [{"step": 1, "rtd_auc": 0.5, "discriminator_loss": 0.7}], f"{place}/curves.png"
        )
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all that it has from here
    for line in sys.stdin:
        case = json.loads(line)
        child = os.fork()
        if child == 0:
            become_run(recipes[case["recipe"]], case)
            return  # and end as any Python does
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become_run(recipe, case: dict) -> None:
    """Run the recipe in this process, from the folder of the case, watched."""
    folder = case["folder"]
    os.chdir(folder)
    output = os.open(f"{folder}.output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    journal = os.open(f"{folder}.journal", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    flags = FLAGS[case["recipe"]] | {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    sys.argv = [f"{case['recipe']}.py"]
    for name, value in flags.items():
        sys.argv += [f"--{name}", *([value] if name in ("discriminator", "generator") else str(value).split())]
    watch = ctypes.CDLL(None).watch
    watch(folder.encode(), case["mode"], case["call"].encode(), case["occurrence"], journal)
    recipe.run_recipe(recipe.main, *recipe.ARGUMENTS)


def write_inputs(recipe: str, folder: Path, discriminator: Path | None = None) -> None:
    """What the recipe reads; the tagger also needs a `discriminator`."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    words = "la knabo vidas belan hundon kaj ĉevalon sur ŝia ĝardeno antaŭ ĵaŭdo".split()
    if recipe == "pretrain":
        lines = [" ".join(chance.choices(words, k=8)) + "." for _ in range(200)]
        (folder / "corpus.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    tags = {word: chance.choice("NVDA") for word in words}
    for name, number in (("train.txt", 24), ("test.txt", 6)):
        sentences = [chance.choices(words, k=5) for _ in range(number)]
        text = "\n\n".join("\n".join(f"{word} {tags[word]}" for word in sentence) for sentence in sentences)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    shutil.copytree(discriminator, folder / "discriminator")


def read_journal(folder: Path) -> list[Operation]:
    """Every operation of the last run in `folder`; of writes to one file in a row the first and the last."""
    seen, operations = Counter(), []
    for call, repeated in groupby(Path(f"{folder}.journal").read_text().splitlines()):
        times = list(range(seen[call] + 1, seen[call] + 1 + len(list(repeated))))
        seen[call] = times[-1]
        times = sorted({times[0], times[-1]}) if call.startswith("write ") else times
        operations += [Operation(call, number) for number in times]
    return operations


def results(folder: Path) -> dict[str, object]:
    """What a run has left below `folder`: every file with its content but for times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): without_times(path) for path in files}


def without_times(path: Path) -> object:
    """The content of a file, without what differs between two equal runs; None where that is all of it."""
    if any(path.match(name) for name in FILES_WITH_TIMES):
        return None
    if path.suffix == ".json":
        return drop_times(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "README.md":
        return TIMES_IN_CARDS.sub("", path.read_text(encoding="utf-8"))
    return digest(path)


def drop_times(content: object) -> object:
    """JSON without the keys that hold times, at any depth."""
    if isinstance(content, dict):
        return {key: drop_times(value) for key, value in content.items() if not TIMES.search(key)}
    return [drop_times(part) for part in content] if isinstance(content, list) else content


def difference(found: dict[str, object], expected: dict[str, object]) -> str | None:
    """What a run left otherwise than the undisturbed one, or None.

    What it set aside of the run before may stay, and the empty lock of a killed process: the system has released it.
    """
    found = {name: content for name, content in found.items() if ".aside" not in name and not name.endswith(".lock")}
    missing = sorted(expected.keys() - found.keys())
    more = sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if found[name] != expected[name])
    parts = {"missing": missing, "left behind": more, "other content": other}
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names) or None


@dataclass(frozen=True)
class Undisturbed:
    """A recipe whose run nothing has disturbed."""

    recipe: str
    inputs: Path
    operations: list[Operation]
    results: dict[str, object]


def disturb(forks: Forks, undisturbed: Undisturbed, mode: str, at: Operation, place: Path) -> str | None:
    """Disturb a run there, start it again, and return what is wrong then, or None."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(undisturbed.inputs, place)
    code, output = forks.run(undisturbed.recipe, place, mode, at)
    if mode == "kill" and code != -signal.SIGKILL:
        return f"was not killed: this time there was no such call (exit code {code})"
    if mode == "fail" and (wrong := wrong_end(code, output, place, undisturbed.results)):
        return wrong
    code, output = forks.run(undisturbed.recipe, place)
    if code != 0:
        return f"started again it ended with exit code {code}: {output[-1500:]}"
    return difference(results(place), undisturbed.results)


def wrong_end(code: int, output: str, place: Path, expected: dict[str, object]) -> str | None:
    """A run that was refused a write says so once and ends with code 2, or goes on to the end without harm."""
    if code == 0:
        # What could not be deleted may be left to the next run.
        left = {name: content for name, content in results(place).items() if name in expected}
        wrong = difference(left, expected)
        return f"passed over the refusal: {wrong}" if wrong else None
    if code != 2 or len(re.findall("^error: ", output, re.MULTILINE)) != 1 or "Traceback" in output:
        return f"refused, it ended with exit code {code}: {output[-1500:]}"
    return None


def prepare(forks: Forks, place: Path) -> dict[str, Undisturbed]:
    """Run each recipe undisturbed, in folders below `place`."""
    prepared, discriminator = {}, None
    for recipe in FLAGS:
        inputs, whole = place / f"{recipe}-inputs", place / f"{recipe}-whole"
        write_inputs(recipe, inputs, discriminator)
        shutil.copytree(inputs, whole)
        code, output = forks.run(recipe, whole)
        assert code == 0, output
        prepared[recipe] = Undisturbed(recipe, inputs, read_journal(whole), results(whole))
        discriminator = whole / "run" / "discriminator"
    return prepared


def sweep(seed: int, sample: int | None = None) -> list[str]:
    """Disturb the recipes at every operation, or at a `sample` of them per recipe; returns the violations."""
    violations, counts = [], Counter()
    with tempfile.TemporaryDirectory() as place, Forks() as forks:
        for recipe, undisturbed in prepare(forks, Path(place)).items():
            operations = undisturbed.operations
            chosen = operations if sample is None else random.Random(seed).sample(operations, sample)
            print(f"{recipe}: {len(operations)} operations, {len(chosen)} of them disturbed", flush=True)
            for mode, at in product(("fail", "kill"), chosen):
                counts[f"{recipe}, {mode}"] += 1
                if counts.total() % 50 == 0:  # a sign of life: all of them take half an hour
                    print(dict(counts), flush=True)
                if wrong := disturb(forks, undisturbed, mode, at, Path(place) / "disturbed"):
                    violations.append(f"{recipe}, {mode} at {at}: {wrong}")
                    print(violations[-1], flush=True)
    print(f"{dict(counts)}: {len(violations)} violations")
    return violations


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--sample", type=int, help="so many operations of each recipe (default: all)")
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif reason := why_not():
        sys.exit(f"error: {reason}.")
    else:
        sys.exit(bool(sweep(arguments.seed, arguments.sample)))

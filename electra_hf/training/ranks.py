"""The processes of a run, on one machine or on several: they start from the same, and what stops one stops all.

Their messages go over the CPU, in a group of their own: none waits for a GPU or holds up the gradients.
"""

import json
import secrets
import socket
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed
from transformers import TrainingArguments

from electra_hf.errors import AgreedError
from electra_hf.recipe import explain, recipe_settings
from electra_hf.training.identity import flatten

Result = TypeVar("Result")

# Where a machine keeps its files. What is in them is compared once it has been read.
_OF_ONE_MACHINE = (
    *("output_dir data_cache_dir logging_dir run_name corpus_files exclude_files resume_from_checkpoint").split(),
    *("tokenizer_name_or_path discriminator_name_or_path generator_name_or_path packed_rows local_rank").split(),
)
_PATIENCE = timedelta(days=7)  # the first process may prepare a large corpus while the others wait
# The CPU group of the default one. PyTorch holds both: one that outlived their end would break the end of the process.
_groups = weakref.WeakKeyDictionary()


def several_processes() -> bool:
    """Whether this run has more processes than one."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def cpu_group() -> distributed.ProcessGroup:
    """The group of all processes on the CPU. All of them have to ask for it the first time at the same moment."""
    default = distributed.group.WORLD
    if default not in _groups:
        _groups[default] = weakref.ref(distributed.new_group(backend="gloo", timeout=_PATIENCE))
    return _groups[default]()


def gather(value) -> list:
    """The `value` of every process, in the order of their ranks: the same list on all of them.

    A value is what JSON can say: numbers, texts, lists, dictionaries, None.
    """
    if not several_processes():
        return [value]
    # As bytes of JSON: PyTorch's own way to gather objects would run code that another machine sends.
    text = torch.frombuffer(bytearray(json.dumps(value, default=str).encode()), dtype=torch.uint8)
    # `all_gather` wants tensors of one length: sizes go first, and texts are padded to the longest.
    sizes = torch.zeros(distributed.get_world_size(), dtype=torch.int64)
    sizes[distributed.get_rank()] = len(text)
    distributed.all_reduce(sizes, group=cpu_group())
    texts = [torch.empty(int(sizes.max()), dtype=torch.uint8) for _ in sizes]
    padded = torch.nn.functional.pad(text, (0, int(sizes.max()) - len(text)))
    distributed.all_gather(texts, padded, group=cpu_group())
    return [json.loads(bytes(one[:size].tolist())) for one, size in zip(texts, sizes.tolist(), strict=True)]


def common_settings(*groups) -> dict:
    """What all processes must have been told alike: each setting of the dataclasses in `groups`, and the libraries."""
    settings = {name: value for name, value in recipe_settings(*groups).items() if name not in _OF_ONE_MACHINE}
    return settings | {f"version of {name}": version(name) for name in ("electra_hf", "torch", "transformers")}


def check_agreement(describe: Callable[[], dict]) -> None:
    """Refuse a run whose processes differ in what `describe()` says: plain values by name, or dicts of them in turn.

    A run of one process is not checked. Raises `AgreedError`, the same on every process, that names each difference
    with two processes that differ.
    """
    if not several_processes():
        return
    # Every process gets all facts and comes to the same result; the group needs no second message.
    of_all = gather({"host": socket.gethostname(), "facts": flatten(describe())})
    differences = []
    for name in dict.fromkeys(name for one in of_all for name in one["facts"]):
        values = [one["facts"].get(name, "not there") for one in of_all]
        for rank, value in enumerate(values):
            if value != values[0]:
                places = [f"{values[r]!r} on process {r} ({of_all[r]['host']})" for r in (0, rank)]
                # One pair per fact: with hundreds of processes a list of all would hide what differs.
                differences.append(f"{name}: {', '.join(places)}")
                break
    if differences:
        raise AgreedError(
            f"The processes of this run differ: {'; '.join(differences)}. Start the same command with the same "
            "version and the same files on every machine."
        )


def in_turns(function: Callable[[], Result]) -> Result:
    """`function()` on the first process of all, then on the first one of each machine, then on all the others.

    What the first one prepares, the others find, or make for themselves where their machine does not see its disk.
    What is wrong for one process ends all: raises `AgreedError` on every one of them.
    """
    state = PartialState()
    # Machines with a shared disk find what the first process has made; the others make it once each.
    my_turn = 0 if state.is_main_process else 1 if state.is_local_main_process else 2
    result = None
    # Processes that wait still take part in every turn, so that an error of one reaches all of them.
    for turn in range(3) if several_processes() else [0]:
        result = together(function if turn == my_turn else lambda before=result: before)
    return result


def together(function: Callable[[], Result]) -> Result:
    """`function()` on every process at once; raises `AgreedError` on all of them where it is wrong for one."""
    if not several_processes():
        return function()
    result = defect = message = None
    try:
        result = function()
    except Exception as error:
        defect = error
        message = explain(error) or f"It failed: {error!r}"
    # Everybody comes here, also after an error: a process that left would keep the others waiting.
    messages = gather(message)
    if defect is not None and not explain(defect):
        raise defect  # of ours, and deserves its traceback
    for rank, message in enumerate(messages):
        if message is not None:
            raise AgreedError(message if rank == 0 else f"On process {rank}: {message}") from defect
    return result


def share_output_dir(args: TrainingArguments) -> None:
    """Settle which processes write what a run keeps: from now on `args.should_save` says it.

    One process of all does where all machines see the same `output_dir`. Where each machine has one of its own, one
    process of each does: a checkpoint must lie where its processes can read it again. Machines make the folder.
    Raises `AgreedError` where some machines share it and others do not: two would write over each other.
    """
    seen, number = _marks_seen(Path(args.output_dir))
    # Each sees its own mark alone (a disk for each machine), or all of them (one disk for all).
    if set(seen) not in ({1}, {number}):
        raise AgreedError(
            f"output_dir: some machines of this run share {args.output_dir}, others do not. Give a folder that all of "
            "them share, or one that each of them has for itself."
        )
    if number > 1 and set(seen) == {number} and args.save_on_each_node:
        raise AgreedError("save_on_each_node: all machines of this run see the same output_dir. Leave it out.")
    args.save_on_each_node |= number not in seen


def _marks_seen(folder):
    """How many of the marks that one process of each machine leaves in the folder each process sees; their number."""
    # A random name: marks of a killed run, or of another one in the same folder, do not count.
    own = f".machine-{secrets.token_hex(8)}" if PartialState().is_local_main_process else None
    marks = [mark for mark in gather(own) if mark]
    # One machine: nothing is written, and no folder is made for the question.
    if len(marks) == 1:
        return [1], 1

    def leave_mark():
        if own:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / own).touch()

    try:
        together(leave_mark)
        # By its name each: the listing of a network disk may be that of a moment ago.
        return gather(sum((folder / mark).exists() for mark in marks)), len(marks)
    finally:
        if own:
            with suppress(OSError):
                (folder / own).unlink()

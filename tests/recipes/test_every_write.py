"""Killed at any write, or refused it: a run started again ends as the one that nothing has disturbed.

A sample; `python tests/recipes/sweep_every_write.py` takes every operation.
"""

import random

import pytest
from sweep_every_write import Forks, difference, disturb, prepare, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
SAMPLE = [("pretrain", number) for number in range(9)] + [("finetune_token_classification", n) for n in range(3)]


@pytest.fixture(scope="module")
def forks():
    with Forks() as process:
        yield process


@pytest.fixture(scope="module")
def undisturbed(forks, tmp_path_factory):
    """The undisturbed run of each recipe, by its name."""
    return prepare(forks, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("mode", ["kill", "fail"])
@pytest.mark.parametrize(("recipe", "number"), SAMPLE)
def test_a_run_disturbed_at_a_write_ends_as_the_undisturbed_one(forks, undisturbed, tmp_path, recipe, number, mode):
    at = random.Random(f"{mode} {number}").choice(undisturbed[recipe].operations)
    assert disturb(forks, undisturbed[recipe], mode, at, tmp_path / "disturbed") is None, at


def test_every_file_that_a_run_leaves_was_seen_when_it_was_made(undisturbed):
    for run in undisturbed.values():
        seen = {at.call.partition(" ")[2] for at in run.operations if at.call.startswith(("open", "rename"))}
        given = {path.relative_to(run.inputs).as_posix() for path in run.inputs.rglob("*")}
        # safetensors renames past libc; its temporary file is seen.
        unseen = {name for name in run.results.keys() - seen - given if not name.endswith(".safetensors")}
        # Prepared data are written to a folder beside their place, which is renamed.
        assert {name for name in unseen if not seen & {name.rpartition("/")[0]}} == set()
        assert any(name.endswith("/.tmp") for name in seen)


def test_the_same_command_in_two_empty_folders_leaves_equal_files_but_for_times(undisturbed, tmp_path):
    # Every number of a run and every byte of its tokenizer, with another order of sets and more threads for Rust.
    with Forks(PYTHONHASHSEED="1", RAYON_NUM_THREADS="4", TOKENIZERS_PARALLELISM="true") as others:
        for recipe, other in prepare(others, tmp_path).items():
            assert difference(other.results, undisturbed[recipe].results) is None

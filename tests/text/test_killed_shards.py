"""A job that is killed, wherever it is, and started again makes the shards of the one never killed, byte for byte."""

import random
import signal
import time
from functools import partial
from multiprocessing.util import Finalize

import pytest

pytest.importorskip("datatrove", reason="needs the extra electra-hf[shards]")

from make_shards import TASKS, run, write_corpus
from train_until_killed import kill_after, kill_at

from electra_hf.files import digest_folder

RENAMES = 6 * TASKS + 3  # a folder for each task of six stages, the job, the clusters and the tokenizer
KILLS = [
    *(("electra_hf.files.os.rename", call) for call in range(1, RENAMES + 1)),
    *(("electra_hf.text.stages.write_rows", call) for call in range(1, 2 * TASKS + 1)),
    *(("electra_hf.text.packed_rows.flush", call) for call in (1, 2)),
    *(("electra_hf.text.packed_rows.write_json", call) for call in (1, 2)),
    ("electra_hf.text.packed_rows.shutil.copytree", 1),
    *(("electra_hf.text.stages.write_json", call) for call in (1, 2)),  # the job, and the counts of its first task
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The corpus, the content of the folder of a job that nothing has killed, and the CPU seconds that it took."""
    folder = tmp_path_factory.mktemp("never_killed")
    write_corpus(folder)
    assert run(folder, folder / "shards", partial(write_cpu_seconds, folder / "seconds")) == 0
    return folder, digest_folder(folder / "shards"), float((folder / "seconds").read_text())


def write_cpu_seconds(path):
    """At the end of this process."""
    began = time.process_time()
    Finalize(None, lambda: path.write_text(str(time.process_time() - began)), exitpriority=1)


def finish(corpus, folder, expected):
    assert run(corpus, folder) == 0
    assert digest_folder(folder) == expected


@pytest.mark.slow
@pytest.mark.sweep(4)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("function", "call"), KILLS)
def test_a_job_killed_at_a_step_of_a_task_ends_as_the_one_never_killed(whole, tmp_path, function, call, after):
    corpus, expected, _ = whole
    folder = tmp_path / "shards"
    assert run(corpus, folder, partial(kill_at, function, call, after)) == -signal.SIGKILL
    finish(corpus, folder, expected)


@pytest.mark.slow
@pytest.mark.sweep(2)
@pytest.mark.parametrize("seed", range(30))
def test_a_job_killed_at_random_moments_ends_as_the_one_never_killed(whole, tmp_path, seed):
    corpus, expected, cpu_seconds = whole
    folder, chance = tmp_path / "shards", random.Random(seed)
    # The first kill comes before the end, wherever in the stages that is; the second may come too late.
    moments = [chance.uniform(0.01, latest * cpu_seconds) for latest in (0.8, 1.0)]
    codes = [run(corpus, folder, partial(kill_after, moment)) for moment in moments]
    assert codes[0] == -signal.SIGPROF and codes[1] in (0, -signal.SIGPROF)
    finish(corpus, folder, expected)

"""The stages of preparing shards as datatrove runs them: on this machine, on Slurm, on Ray or as Hugging Face Jobs.

In comes a job (`shard_job`); out goes a folder of packed rows (`packed_rows`). Whether a task is done says its folder
(`stages`), not the empty marker that datatrove leaves.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path

import loguru
from datasets.utils import disable_progress_bars
from datatrove.executor import LocalPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from electra_hf.errors import InputError
from electra_hf.text.packed_rows import is_sealed, seal
from electra_hf.text.shard_job import ShardArguments
from electra_hf.text.stages import STAGES, WORK, Job, run_task

SEAL = "seal"
LOOK_AGAIN = 2  # seconds, for what other machines make


class RunTask(PipelineStep):
    """One stage of a job as a step of datatrove: a task of it is one call."""

    type = "electra_hf"

    def __init__(self, folder: str, stage: str):
        self.name = stage
        super().__init__()
        self.folder, self.stage = folder, stage

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Run task `rank`; nothing is passed on but what lies in the folder. Raises `InputError`."""
        if self.stage == SEAL:
            if not is_sealed(self.folder):
                seal(Job.load(self.folder))
        else:
            run_task(self.folder, self.stage, rank)


class ThisMachine(LocalPipelineExecutor):
    """datatrove's executor for one machine, with processes that it watches.

    Its pool of workers waits for ever for one that the system has killed (it is short of memory), lets the others
    work on after an error, and leaves them behind when it is killed itself.
    """

    def run(self) -> None:
        """Run the tasks that are not done, each in a process of its own. Raises what one of them raises."""
        loguru.logger.disable("datatrove")
        if self.workers == 1:
            for task in self.ranks:
                self._run_for_rank(task)
        else:
            run_in_processes(self._run_for_rank, self.ranks, self.workers)


def run_in_processes(run: Callable[[int], object], tasks: list[int], workers: int) -> None:
    """Call `run(task)` for each task in a new process, `workers` at a time, and stop all at the first that fails.

    Raises what that one raised, or `InputError` where the system has ended it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])  # imported once, not by every process
    waiting, running = list(reversed(tasks)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(run, task, sender), daemon=True)
                process.start()
                sender.close()
                running[process.sentinel] = task, process, receiver
            for sentinel in wait(list(running)):
                _check_end(*running.pop(sentinel))
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.join()


def _work(run, task, sender):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loguru.logger.disable("datatrove")  # what went wrong is told once, by the process that asked
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # of tokenizers: the other cores have tasks of their own
    disable_progress_bars()
    try:
        run(task)
    except Exception as error:
        sender.send(error)


def _end_with_parent():
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _check_end(task, process, receiver):
    process.join()
    if receiver.poll():
        try:
            raise receiver.recv()
        except EOFError:
            pass
    if process.exitcode:
        raise InputError(
            f"task {task} was ended by the system (exit code {process.exitcode}), which may be short of memory. Start "
            "the same command again with fewer workers: it goes on with what is missing."
        )


def run_here(job: Job, shards: ShardArguments) -> Iterator[tuple[str, int, float]]:
    """Run what is missing of the stages on this machine; for tasks of other machines it waits.

    Yields the name of each stage, how many tasks were run, and the seconds that they took. Raises `InputError`.
    """
    for name, stage in STAGES.items():
        own = range(1) if stage.is_single and 0 in shards.own_tasks else shards.own_tasks
        tasks = [] if is_sealed(job.folder) else [task for task in stage.missing(job) if task in own]
        if tasks:
            began = time.perf_counter()
            _executor(job, name, tasks, min(shards.workers, len(tasks))).run()
            yield name, len(tasks), time.perf_counter() - began
        while not is_sealed(job.folder) and stage.missing(job):
            time.sleep(LOOK_AGAIN)
    if 0 in shards.own_tasks:
        RunTask(job.folder, SEAL).run()


def _executor(job, stage, tasks, workers) -> PipelineExecutor:
    executor = ThisMachine(
        [RunTask(job.folder, stage)],
        tasks=STAGES[stage].tasks(job),
        workers=workers,
        logging_dir=str(Path(job.folder) / WORK / "logs" / stage),
        skip_completed=False,
    )
    executor.ranks = tasks
    return executor

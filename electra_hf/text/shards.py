"""The stages of preparing shards as datatrove runs them: on this machine, on Slurm or on Ray.

A job (`shard_job`) comes in, and a folder of packed rows (`packed_rows`) comes out. A task is done when the folder
that it writes (`stages`) is there. The empty marker files that datatrove leaves are not looked at.
"""

import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from subprocess import CalledProcessError

import loguru
from datasets.utils import disable_progress_bars
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from electra_hf.errors import InputError, disk_fault
from electra_hf.text.packed_rows import is_sealed, seal
from electra_hf.text.shard_job import ShardArguments, read_faults, write_fault
from electra_hf.text.stages import STAGES, WORK, Job, run_task, stages_of

SEAL = "seal"
LOOK_AGAIN = 2  # seconds between two looks at what other machines have finished
PATIENCE = 60  # seconds that the fault of another machine may lie there: it takes so long to be started again


class TaskFailed(Exception):
    """A defect of ours in a task: the message names the task, and the error, which may be of any class."""


def as_told(error: Exception, task: str) -> Exception:
    """The error as another process can be told it: some classes cannot be pickled. `task` is the name of the task."""
    if isinstance(error, (InputError, TaskFailed)):
        return error
    if fault := disk_fault(error):
        return InputError(f"{task}: {fault}. Make room or allow writing there, and start the same command again.")
    return TaskFailed(f"{task} has failed: {type(error).__name__}: {error}")


class RunTask(PipelineStep):
    """One stage of a job as a step of datatrove: a task of it is one call."""

    type = "electra_hf"

    def __init__(self, job: Job, stage: str):
        self.name = stage  # before super().__init__(), which names the statistics of the step after it
        super().__init__()
        # The job of this start, and not the one that was begun in the folder: its inputs may have moved since.
        self.job, self.stage = job, stage

    def run(self, data=None, rank: int = 0, world_size: int = 1) -> None:
        """Run task `rank`. Tasks hand each other nothing but files in the folder.

        Raises `InputError` or `TaskFailed`, and leaves the message in the folder, where another machine can read it.
        """
        try:
            if self.stage != SEAL:
                run_task(self.job, self.stage, rank)
            elif not is_sealed(self.job.folder):
                seal(self.job)
        except Exception as error:
            told = as_told(error, f"task {rank} of the stage {self.stage}")
            # The process that asked may be on another machine: Ray gives it no exception of a task.
            write_fault(self.job.folder, self.stage, rank, str(told))
            if told is error:
                raise
            raise told from error


class FolderDecides:
    """A task is done when what it writes is there. datatrove's own markers are empty files and say less."""

    def is_rank_completed(self, rank: int) -> bool:
        """Whether a task is done."""
        step = self.pipeline[0]
        # Sealing removes the folders of the tasks, so a sealed folder has to be asked for by itself.
        return is_sealed(step.job.folder) or step.job.output(step.stage, rank).is_dir()

    @property
    def own_tasks(self) -> range:
        """The tasks that this start has to run, done or not."""
        return range(self.world_size)

    def get_incomplete_ranks(
        self, ranks: Iterable[int] | None = None, skip_completed: bool | None = None
    ) -> list[int]:
        """The tasks that are not done, of `ranks` or of all."""
        # `skip_completed` changes nothing: a folder that is there is never made again.
        ranks = range(self.world_size) if ranks is None else ranks
        return [rank for rank in ranks if not self.is_rank_completed(rank)]


class ThisMachine(FolderDecides, LocalPipelineExecutor):
    """datatrove's executor for one machine, with processes that it watches.

    datatrove's own pool waits for ever for a worker that the system has killed (because memory is short), lets the
    other workers go on after an error, and leaves them running when it is killed itself.
    """

    @property
    def own_tasks(self) -> range:
        """The tasks of this machine, done or not."""
        return range(self.local_rank_offset, self.local_rank_offset + self.local_tasks)

    def run(self) -> None:
        """Run the tasks that are not done, each in a process of its own. Raises `InputError` or `TaskFailed`."""
        loguru.logger.disable("datatrove")  # it logs a traceback for an error that the recipe prints as one line
        tasks = self.get_incomplete_ranks(self.own_tasks)
        try:
            if min(self.workers, len(tasks)) > 1:
                run_in_processes(self._run_for_rank, tasks, self.workers)
            else:
                # One at a time needs no new process: here everything is imported already.
                for task in tasks:
                    self._run_for_rank(task)
        except Exception as error:
            # A task that the system has ended could not leave its message for the other machines. Not in the place of
            # the first task's own message, which may be another one.
            step = self.pipeline[0]
            write_fault(step.job.folder, f"{step.stage}-ended", tasks[0], str(error))
            raise


class Slurm(FolderDecides, SlurmPipelineExecutor):
    """datatrove's executor for Slurm: one array job for each stage, which waits for the stage before."""

    def launch_merge_stats(self) -> None:
        """Nothing: corpus.json is the report, and this would be one more job for each stage."""

    def script(self) -> str:
        """What `run` gives to sbatch. Nothing is written: the logs and the pickle that it names are not there yet."""
        # `get_sbatch_args` makes the folder of the logs: it gets a scratch folder, whose name is replaced at the end.
        with tempfile.TemporaryDirectory() as scratch:
            logs, self.slurm_logs_folder = self.slurm_logs_folder, scratch
            arguments = self.get_sbatch_args(len(self.get_incomplete_ranks()))
            self.slurm_logs_folder = logs
        # The command as datatrove's `launch_job` builds it: that method would submit the job.
        pickle = self.logging_dir.resolve_paths("executor.pik")
        text = self.get_launch_file_contents(arguments, f"srun -l -n 1 launch_pickled_pipeline {pickle}")
        return text.replace(scratch, str(logs))


class Ray(FolderDecides, RayPipelineExecutor):
    """datatrove's executor for Ray. It does not raise what a task raises: `run_stages` looks for the message."""


def run_in_processes(run: Callable[[int], object], tasks: list[int], workers: int) -> None:
    """Call `run(task)` for each task in a new process, `workers` at a time, and stop all at the first that fails.

    Raises its `InputError`, `TaskFailed` where it raised anything else, or `InputError` where the system has ended it.
    """
    # Not "fork": it copies locks that threads of tokenizers or pyarrow may hold at that moment.
    context = multiprocessing.get_context("forkserver")
    # Each process would import our modules anew. The fork server imports them once, and its children share them.
    context.set_forkserver_preload([name for name in sys.modules if name.startswith("electra_hf")])
    # Reversed, since `pop` takes from the end. `running` is kept by sentinel, which is what `wait` gives back.
    waiting, running = list(reversed(tasks)), {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(run, task, sender), daemon=True)
                process.start()
                sender.close()  # the process has its own copy
                running[process.sentinel] = task, process, receiver
            for sentinel in wait(list(running)):
                _check_end(*running.pop(sentinel))
    finally:
        # Processes are left here only after a failure or a signal.
        for _, process, _ in running.values():
            process.kill()
            process.join()


def _work(run, task, sender):
    threading.Thread(target=_end_with_parent, daemon=True).start()
    loguru.logger.disable("datatrove")  # an error is printed once, by the process that started this one
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # of tokenizers: the other cores have tasks of their own
    disable_progress_bars()
    try:
        run(task)
    except Exception as error:
        told = as_told(error, f"task {task}")
        if isinstance(told, TaskFailed):
            traceback.print_exc()  # what the parent raises has the message alone
        sender.send(told)


def _end_with_parent():
    # The sentinel is ready when the parent has ended, also by SIGKILL, which leaves daemon processes running.
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)  # sys.exit would end this thread alone


def _check_end(task, process, receiver):
    process.join()
    if receiver.poll():
        try:
            raise receiver.recv()
        except EOFError:  # it sent no error; its exit code says whether it was killed
            pass
    if process.exitcode:
        raise InputError(
            f"task {task} was ended by the system (exit code {process.exitcode}), which may be short of memory. Start "
            "the same command again with fewer workers: it goes on with what is missing."
        )


def run_stages(job: Job, shards: ShardArguments) -> Iterator[tuple[str, int, float]]:
    """Run what is missing of the stages, here or on Ray; for tasks of other machines it waits.

    Yields the name of each stage, how many tasks were run, and the seconds that they took. Raises `InputError`.
    """
    for stage in () if is_sealed(job.folder) else stages_of(job):
        executor, began = make_executor(job, stage, shards), time.perf_counter()
        if missing := len(executor.get_incomplete_ranks(executor.own_tasks)):
            executor.run()
            if shards.executor == "ray" and executor.get_incomplete_ranks():
                log = f"A task of the stage {stage} has failed. Its log is in {executor.logging_dir.path}."
                raise InputError(read_faults(job.folder) or log)
            yield stage, missing, time.perf_counter() - began
        # A stage reads what all tasks of the stage before have written, also those of other machines.
        _wait_for_others(job, executor.get_incomplete_ranks)
    # One machine seals, the one that has the first task; the others wait for it.
    if 0 in shards.own_tasks:
        RunTask(job, SEAL).run()
    _wait_for_others(job, lambda: not is_sealed(job.folder))


def _wait_for_others(job, is_missing):
    began = time.monotonic()
    while is_missing():
        fault = read_faults(job.folder)
        # A machine that is started again removes its own faults: then it is at work, as one without a fault is.
        if not fault:
            began = time.monotonic()
        elif time.monotonic() - began > PATIENCE:
            raise InputError(f"Another machine has stopped. Start both again when this is mended: {fault}")
        time.sleep(LOOK_AGAIN)


def submit(job: Job, shards: ShardArguments) -> None:
    """Give all stages that are not done to Slurm. The last job seals the folder; nobody has to wait for it here."""
    executor = None
    for stage in (*stages_of(job), SEAL):
        executor = make_executor(job, stage, shards, depends=executor)
    # The last one is enough: datatrove first submits the job that it depends on.
    try:
        executor.run()
    except (OSError, CalledProcessError) as error:
        raise InputError(
            f"executor: sbatch did not take the job ({error}). Run this on a login node of Slurm."
        ) from None


def scripts(job: Job, shards: ShardArguments) -> Iterator[str]:
    """The scripts that `submit` gives to sbatch, each of them when the one before has ended well."""
    for stage in (*stages_of(job), SEAL):
        yield make_executor(job, stage, shards).script()


def make_executor(
    job: Job, stage: str, shards: ShardArguments, depends: PipelineExecutor | None = None
) -> PipelineExecutor:
    """The executor that was asked for, with the tasks of one stage."""
    is_single = stage == SEAL or STAGES[stage].is_single
    common = {
        "pipeline": [RunTask(job, stage)],
        "tasks": 1 if is_single else job.tasks,
        "workers": shards.workers,
        "logging_dir": str(Path(job.folder) / WORK / "logs" / stage),
        "depends": depends,
    }
    if shards.executor == "slurm":
        return Slurm(
            **common,
            time=shards.slurm_time,
            partition=shards.slurm_partition,
            mem_per_cpu_gb=shards.memory_gb,
            env_command=shards.environment,
            qos=None,  # datatrove's default, "normal", is a name that a cluster need not have
            job_name=f"shards_{stage}",
        )
    if shards.executor == "ray":
        return Ray(**common, mem_per_cpu_gb=shards.memory_gb)
    # The only task of a single stage belongs to the machine that has the first task.
    own = range(int(0 in shards.own_tasks)) if is_single else shards.own_tasks
    return ThisMachine(**common, local_rank_offset=own.start, local_tasks=len(own))

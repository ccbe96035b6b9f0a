"""Time and memory of each stage of prepare_shards.py: seconds, CPU seconds and memory of a task, with 1 to N workers.

python recipes/benchmark/time_shards.py --corpus_files … --output_dir FOLDER --tasks 8 --workers 2 [--vocab_size …]
"""

import json
import resource
import shutil
import time
from functools import partial
from pathlib import Path

from electra_hf.recipe import run_recipe
from electra_hf.text.corpus import CorpusArguments
from electra_hf.text.shard_job import ShardArguments, begin, plan_job
from electra_hf.text.shards import run_in_processes
from electra_hf.text.stages import STAGES, run_task, stages_of
from electra_hf.training.arguments import TokenizerArguments


def main(shards, corpus, tokens):
    job = plan_job(shards, corpus, tokens.training_settings(), tokens.max_length)
    begin(job)
    measures = Path(job.folder) / "measures"
    measures.mkdir()
    for name in stages_of(job):
        stage = STAGES[name]
        tasks = list(range(stage.tasks(job)))
        # A stage is made anew for each number of workers: a folder that is there would not be made again.
        for workers in range(1, 2 if stage.is_single else shards.workers + 1):
            shutil.rmtree(job.output(name).parent, ignore_errors=True)
            began = time.perf_counter()
            # A process for each task also with one worker, so that the memory is that of a task.
            run_in_processes(partial(measure, job, name), tasks, workers)
            seconds = time.perf_counter() - began
            # The tasks run in processes of their own, which leave their numbers in files.
            tasks_measured = [json.loads(path.read_text()) for path in measures.glob(f"{name}-*")]
            cpu = sum(task["cpu_seconds"] for task in tasks_measured)
            memory = max(task["megabytes"] for task in tasks_measured)
            before = max(task["megabytes_before"] for task in tasks_measured)
            print(
                f"{name}: {workers} workers: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.0f} MB a task at most, "
                f"{before:.0f} of them before it began",
                flush=True,
            )


def measure(job, stage, task):
    # The highest memory of a process only rises: what its imports took is noted before the task begins.
    before = resource.getrusage(resource.RUSAGE_SELF)
    run_task(job, stage, task)
    after = resource.getrusage(resource.RUSAGE_SELF)
    measured = {
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "megabytes": after.ru_maxrss / 1024,  # Linux counts in kilobytes
        "megabytes_before": before.ru_maxrss / 1024,
    }
    Path(job.folder, "measures", f"{stage}-{task}").write_text(json.dumps(measured))


if __name__ == "__main__":
    run_recipe(main, ShardArguments, CorpusArguments, TokenizerArguments)

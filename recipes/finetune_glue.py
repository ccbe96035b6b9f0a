"""Fine-tune on every task of GLUE, over several seeds, into one table; started again, it goes on where it stopped.

accelerate launch recipes/finetune_glue.py --config recipes/electra_small/finetune_glue.yaml --glue_dir GLUE
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from electra_hf.errors import InputError
from electra_hf.files import digest, read_json, replaced_files, write_json, write_text
from electra_hf.recipe import run_recipe, save_recipe
from electra_hf.tasks.classification import ClassificationArguments, load_examples
from electra_hf.tasks.classifying import (
    ClassifierTrainingArguments,
    describe_data,
    make_inputs,
    score_tests,
    train_classifier,
)
from electra_hf.tasks.finetuning import EncoderArguments, check_folders
from electra_hf.tasks.glue import HUB_DATASET, TASKS, find_glue_files, format_glue, summarise_glue
from electra_hf.text.names import refuse_blank_settings
from electra_hf.text.tokenization import save_tokenizer

# Settings that change nothing of a score, or stand elsewhere among what identifies a result.
NO_MATTER = ("logging_", "report_to", "run_name", "disable_tqdm", "dataloader_", "save_", "push_", "hub_", "eval_")
NO_MATTER += ("output_dir", "seed", "project", "trackio_", "overwrite_", "local_rank", "ddp_", "num_train_epochs")


@dataclass
class GlueArguments:
    """Which tasks, and where their files lie."""

    glue_dir: str | None = field(
        default=None, metadata={"help": "The folder with CoLA, SST-2 and so on (default: the dataset on the Hub)."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": f"Instead of glue_dir (default: {HUB_DATASET})."})
    tasks: list[str] = field(default_factory=lambda: list(TASKS), metadata={"help": "Which ones (default: all nine)."})
    start_from_mnli: bool = field(
        default=False, metadata={"help": "RTE, MRPC and STS-B start from the MNLI model of the first seed."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Longest input in tokens (default: the model's)."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on so many examples of a task, the same for every seed."}
    )

    def __post_init__(self) -> None:
        refuse_blank_settings(self)
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks:
            raise InputError(f"tasks: expected some of {', '.join(TASKS)}, got {', '.join(unknown) or 'none'}.")
        if self.glue_dir and self.dataset_name:
            raise InputError("Give glue_dir or dataset_name, not both.")
        if self.start_from_mnli and "mnli" not in self.tasks:
            raise InputError("start_from_mnli needs mnli among the tasks.")
        if not self.glue_dir and not self.dataset_name:
            self.dataset_name = HUB_DATASET


ARGUMENTS = (EncoderArguments, GlueArguments, ClassifierTrainingArguments)


def main(encoder_args, glue_args, training_args):
    if training_args.push_to_hub:
        raise InputError(
            "push_to_hub: this recipe fills a table. Push one model with recipes/push.py --folder OUTPUT/TASK."
        )
    check_folders(encoder_args, training_args.output_dir)
    output_dir = Path(training_args.output_dir)
    # Before hours are spent: which tasks can be run at all.
    tasks, absent = find_tasks(glue_args)
    training_args.tell_device()
    results = {}
    for task in tasks:
        # Small and related tasks: the paper starts them from the MNLI model (section 3.1).
        starts_from_mnli = glue_args.start_from_mnli and task.starts_from_mnli
        start = (
            replace(encoder_args, model_name_or_path=str(output_dir / "mnli")) if starts_from_mnli else encoder_args
        )
        results[task.name] = run_task(task, start, glue_args, training_args)
        if training_args.should_save:
            save_recipe(output_dir / "recipe.yaml", encoder_args, glue_args, training_args)
            # After every task: whoever looks in meanwhile sees what is done.
            write_json(output_dir / "metrics.json", summarise_glue(results))
            write_text(output_dir / "glue.md", format_glue(results, absent, title_of(encoder_args)))
    if training_args.should_save:
        print((output_dir / "glue.md").read_text(encoding="utf-8"))


def title_of(encoder_args):
    name = encoder_args.model_name_or_path
    return f"{name}, untrained" if encoder_args.from_scratch else name


def find_tasks(glue_args):
    """The tasks that can be run, MNLI first if others start from it, and why the others cannot.

    Raises `InputError` if none can.
    """
    tasks = [TASKS[name] for name in TASKS if name in glue_args.tasks]
    absent = {name: "not asked for" for name in TASKS if name not in glue_args.tasks}
    if glue_args.glue_dir:
        # What is not there is left out and named; the average over eight is then not given.
        lacking = [task.name for task in tasks if not find_glue_files(glue_args.glue_dir, task)]
        absent |= dict.fromkeys(lacking, f"no such files in {glue_args.glue_dir}")
        tasks = [task for task in tasks if task.name not in lacking]
    if not tasks:
        raise InputError(
            f"glue_dir: {glue_args.glue_dir} holds the files of no task. Expected folders such as CoLA or SST-2, with "
            "train.tsv and dev.tsv in each."
        )
    if glue_args.start_from_mnli and "mnli" in absent:
        raise InputError(f"start_from_mnli: {glue_args.glue_dir} lacks the files of MNLI.")
    # Python's sort keeps the order of the others.
    return sorted(tasks, key=lambda task: not (glue_args.start_from_mnli and task.name == "mnli")), absent


def run_task(task, encoder_args, glue_args, training_args):
    """The scores by seed, those on disk where they belong to these settings."""
    folder = Path(training_args.output_dir) / task.name
    arguments = ClassificationArguments(
        task=task.name,
        glue_dir=glue_args.glue_dir,
        dataset_name=glue_args.dataset_name,
        max_length=glue_args.max_length,
        max_train_samples=glue_args.max_train_samples,
    )
    epochs = training_args.num_train_epochs or task.epochs  # the paper: 10 for RTE and STS-B, else 3
    training_args = replace(training_args, output_dir=str(folder), num_train_epochs=epochs)
    with training_args.main_process_first(desc=f"reading {task.title}"):
        data = load_examples(arguments)
    inputs = make_inputs(encoder_args, data, arguments.max_length)
    # Inputs, not files: the same texts in another folder are the same result.
    identity = describe_result(encoder_args, training_args, inputs)
    results = {}
    for seed in training_args.seeds:
        file = folder / f"result-{seed}.json"
        scores = read_result(file, identity)
        if scores is None:
            trainer = train_classifier(seed, encoder_args, training_args, data, inputs)
            scores = score_tests(trainer, data, inputs)[0] | describe_data(data, inputs)
            if training_args.should_save:
                # One model a task is enough to push or to start from; which seed is decided before any score is known.
                if seed == training_args.seeds[0]:
                    with replaced_files(folder) as unfinished:
                        trainer.model.save_pretrained(unfinished)
                        save_tokenizer(inputs.tokenizer, unfinished)
                write_json(file, {"scores": scores, "settings": identity})
        results[seed] = scores
    return results


def describe_result(encoder_args, training_args, inputs):
    """What a result on disk has to have in common with a run to be used instead of it: encoder, inputs, settings."""
    settings = json.loads(training_args.to_json_string())
    settings = {name: value for name, value in settings.items() if not name.startswith(NO_MATTER)}
    start = Path(encoder_args.model_name_or_path)
    # An encoder trained further under the same name must not get the scores of the old one.
    files = [start / "config.json", *sorted(start.glob("*.safetensors"))] if start.is_dir() else []
    rows = xxhash.xxh3_128_hexdigest(json.dumps([inputs.train, list(inputs.tests.values())]).encode())
    return {
        "encoder": {file.name: digest(file) for file in files} or encoder_args.model_name_or_path,
        "from_scratch": encoder_args.from_scratch,
        "inputs": rows,
        "epochs": training_args.num_train_epochs,
        "world_size": training_args.world_size,
        "settings": settings,
    }


def read_result(file, identity):
    """The scores in the file, or None where there is none, it is damaged, or it belongs to other settings."""
    if not file.exists():
        return None
    try:
        result = read_json(file)
    except InputError:  # a result can be made again
        return None
    # Through JSON, which makes lists of tuples and strings of numbers as keys.
    return result.get("scores") if result.get("settings") == json.loads(json.dumps(identity)) else None


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)

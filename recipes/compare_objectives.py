"""The paper's ablation on your own text: pretrain with each objective and each sharing, fine-tune, compare.

accelerate launch recipes/compare_objectives.py --config recipes/esperanto_tiny/compare.yaml [--any_key value]
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Literal

import export
import finetune_token_classification as finetune
import pretrain
import torch

from electra_hf import ElectraTrainer
from electra_hf.errors import InputError
from electra_hf.files import write_json
from electra_hf.model.building import build_pair
from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.flops import flops_per_token
from electra_hf.model.objectives import OBJECTIVES
from electra_hf.model.sharing import EMBEDDING_SHARINGS
from electra_hf.publish.figures import draw_comparison
from electra_hf.recipe import as_dict, fill_arguments, run_recipe
from electra_hf.settings import read_settings as read_yaml
from electra_hf.text.tokenization import load_tokenizer

REFERENCE = ("electra", "shared")  # what every other variant is compared with
UNTRAINED = "untrained"  # folder of the fine-tuning that starts from random weights
SCORE = "eval_accuracy"


@dataclass
class CompareArguments:
    """What to compare, and with which runs."""

    pretrain_config: str | None = field(
        default=None, metadata={"help": "The recipe file that every pretraining run starts from."}
    )
    finetune_config: str | None = field(
        default=None, metadata={"help": "The recipe file that every fine-tuning run starts from."}
    )
    output_dir: str = field(
        default="outputs/compare", metadata={"help": "One folder per run, and comparison.md, .json and .png."}
    )
    objectives: list[str] = field(
        default_factory=lambda: list(OBJECTIVES), metadata={"help": "Each with shared embeddings (default: all five)."}
    )
    embedding_sharings: list[str] = field(
        default_factory=lambda: ["none", "gradient_disentangled"],
        metadata={"help": "Each with the objective electra, beside shared."},
    )
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Of pretraining and fine-tuning."})
    budget: Literal["steps", "flops"] = field(
        default="steps", metadata={"help": "What every run gets as much of as electra: steps or operations."}
    )
    points: int = field(default=4, metadata={"help": "Checkpoints of each run, evenly spaced, that are fine-tuned."})
    pretrain: dict | str | None = field(default=None, metadata={"help": "Settings that win over pretrain_config."})
    finetune: dict | str | None = field(default=None, metadata={"help": "Settings that win over finetune_config."})

    def __post_init__(self):
        self.pretrain = read_settings("pretrain_config", self.pretrain_config) | as_dict("pretrain", self.pretrain)
        self.finetune = read_settings("finetune_config", self.finetune_config) | as_dict("finetune", self.finetune)
        for key, choices in (("objectives", OBJECTIVES), ("embedding_sharings", EMBEDDING_SHARINGS)):
            for value in getattr(self, key):
                if value not in choices:
                    raise InputError(f"{key}: expected some of {', '.join(choices)}, got {value!r}.")
        # The checkpoints that are fine-tuned are evenly spaced, and the last one is the end of the run.
        max_steps = self.pretrain.get("max_steps")
        if not max_steps or max_steps % self.points:
            raise InputError(f"pretrain: expected max_steps, a multiple of points ({self.points}), got {max_steps}.")


ARGUMENTS = (CompareArguments,)


def main(args):
    check_same_comparison(args)

    # Variants: electra with shared embeddings, then each other objective, then each other sharing
    variants = [REFERENCE]
    variants += [(objective, "shared") for objective in args.objectives if objective != "electra"]
    variants += [("electra", sharing) for sharing in args.embedding_sharings if sharing != "shared"]

    # Runs, a seed at a time, so that there is an early table; what is finished is not run again
    for number, seed in enumerate(args.seeds, start=1):
        for variant in variants:
            settings = pretraining_settings(args, variant, seed)
            pretrain_once(settings)
            for step in steps_to_finetune(settings):
                finetune_once(args, folder_of(args, variant, seed), seed, step)
        finetune_once(args, folder_of(args, REFERENCE, seed), seed, args.pretrain["max_steps"], from_scratch=True)

        # Report: mean and spread over the seeds so far, and what they cost
        seeds = args.seeds[:number]
        results = [collect(args, variant, seeds) for variant in variants]
        for result, speed in zip(results, measure_speed(args, variants), strict=True):
            result["tokens_per_second"] = speed
        report(args, results, seeds)


def steps_to_finetune(settings):
    """Its checkpoints, without those of a first stage in which the discriminator did not learn."""
    steps = range(settings["save_steps"], settings["max_steps"] + 1, settings["save_steps"])
    return [step for step in steps if step > settings.get("generator_only_steps", 0)]


def check_same_comparison(args):
    """What the runs have in common must not change while a comparison is stopped."""
    output_dir, settings = Path(args.output_dir), {}
    # Seeds and variants are not among them: more of these add runs, and those that are finished stay valid.
    for name in ("budget", "points", "pretrain", "finetune"):
        settings[name] = getattr(args, name)
    file = output_dir / "settings.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else settings
    for name in settings:
        if before[name] != settings[name]:
            raise InputError(
                f"{output_dir} holds a comparison with other settings: {name} was {before[name]}, now "
                f"{settings[name]}. Restore them to go on with its runs, or choose another output_dir."
            )
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def read_settings(key, path):
    if path is None or not Path(path).is_file():
        raise InputError(f"{key}: expected a recipe file such as recipes/esperanto_tiny/pretrain.yaml, got {path}.")
    return {setting.name: setting.value for setting in read_yaml(path)}


def folder_of(args, variant, seed):
    return Path(args.output_dir) / "_".join(variant) / f"seed_{seed}"


def shared_tokenizer(args):
    """The first run makes it, and all others use it: the same rows."""
    return folder_of(args, REFERENCE, args.seeds[0]) / "pretrain" / "tokenizer"


def pretraining_settings(args, variant, seed):
    """Everything that `pretrain.py` is to run with."""
    folder = folder_of(args, variant, seed) / "pretrain"
    settings = args.pretrain | {"objective": variant[0], "embedding_sharing": variant[1], "seed": seed}
    # As many checkpoints are kept as are fine-tuned, so that none is removed before.
    settings |= {"output_dir": str(folder), "eval_strategy": "no", "save_total_limit": args.points}
    if (variant, seed) != (REFERENCE, args.seeds[0]):
        settings = {"tokenizer_name_or_path": str(shared_tokenizer(args))} | settings  # unless the user names one
    # Without a generator there is no stage in which it learns alone.
    if not OBJECTIVES[variant[0]].has_generator:
        settings["generator_only_steps"] = 0
    if args.budget == "flops" and variant != REFERENCE:
        ratio = count_flops(args, pretraining_settings(args, REFERENCE, seed)) / count_flops(args, settings)
        # To a multiple of `points`, so that the checkpoints stay evenly spaced.
        settings["max_steps"] = args.points * round(settings["max_steps"] * ratio / args.points)
        settings["generator_only_steps"] = round(settings.get("generator_only_steps", 0) * ratio)
    return settings | {"save_steps": settings["max_steps"] // args.points}


def count_flops(args, settings, steps=None):
    """Operations of a run, or of its first steps, divided by the tokens of a step."""
    _, tokenizer_args, model_args, *_ = parse(pretrain.ARGUMENTS, settings)
    networks = {"generator": model_args.generator, "discriminator": model_args.discriminator}
    config = ElectraPretrainingConfig.from_size(
        model_args.model_size, len(load_tokenizer(shared_tokenizer(args))), **networks, **model_args.pair_settings()
    )
    # In a first stage only the generator computes, which costs less.
    steps = settings["max_steps"] if steps is None else steps
    alone = min(steps, settings.get("generator_only_steps", 0))
    length = tokenizer_args.max_length
    return alone * flops_per_token(config, length, generator_only=True) + (steps - alone) * flops_per_token(
        config, length
    )


def parse(argument_classes, settings):
    return fill_arguments(argument_classes, settings)


def pretrain_once(settings):
    # Written after the last checkpoint: a run that has it is finished, any other one goes on from its checkpoints.
    if not (Path(settings["output_dir"]) / "metrics.json").is_file():
        pretrain.main(*parse(pretrain.ARGUMENTS, settings))


def finetune_once(args, folder, seed, step, from_scratch=False):
    """Fine-tune the discriminator of one checkpoint of the run in `folder`, or its untrained twin."""
    name = UNTRAINED if from_scratch else f"finetune_{step}"
    if (folder / name / "metrics.json").is_file():
        return
    checkpoint = folder / "pretrain" / f"checkpoint-{step}"
    arguments = {"checkpoint": str(checkpoint), "output_dir": str(folder / f"export_{step}")}
    export.main(*parse(export.ARGUMENTS, arguments))
    settings = args.finetune | {
        "model_name_or_path": str(folder / f"export_{step}" / "discriminator"),
        "output_dir": str(folder / name),
        "seeds": [seed],  # that of the pretraining, so that the spread over seeds is that of the whole way
        "from_scratch": from_scratch,
    }
    finetune.main(*parse(finetune.ARGUMENTS, settings))


def collect(args, variant, seeds):
    """Scores by number of operations, and what a token costs."""
    runs = [folder_of(args, variant, seed) for seed in seeds]
    metrics = [read_json(run / "pretrain" / "metrics.json") for run in runs]
    settings = pretraining_settings(args, variant, seeds[0])
    step_tokens = metrics[0]["train_tokens"] / settings["max_steps"]
    # At 0 steps all variants share one point, the untrained network of the reference.
    points = [{"steps": 0, "flops": 0.0, SCORE: scores(args, REFERENCE, seeds, UNTRAINED)}]
    for step in steps_to_finetune(settings):
        flops = step_tokens * count_flops(args, settings, step)
        points.append({"steps": step, "flops": flops, SCORE: scores(args, variant, seeds, f"finetune_{step}")})
    return {
        "objective": variant[0],
        "embedding_sharing": variant[1],
        "tokens": metrics[0]["train_tokens"],
        "flops_per_token": points[-1]["flops"] / metrics[0]["train_tokens"],
        "points": points,
    }


def measure_speed(args, variants, windows=5, steps=4):
    """Tokens per second of a forward and backward pass with both networks, the variants in turn in one process."""
    trainers, seconds = {}, {variant: [] for variant in variants}
    for variant in variants:
        # Without a first stage, whose steps would leave the discriminator out.
        settings = pretraining_settings(args, variant, args.seeds[0]) | {"generator_only_steps": 0}
        _, tokenizer_args, model_args, _, training_args = parse(pretrain.ARGUMENTS, settings)
        model = build_pair(model_args, load_tokenizer(shared_tokenizer(args)), tokenizer_args.max_length)
        # Random tokens, from behind the special ones: any tokens cost the same.
        rows = torch.randint(5, 64, (training_args.train_batch_size, tokenizer_args.max_length))
        trainers[variant] = ElectraTrainer(model, training_args), {"input_ids": rows.to(training_args.device)}
    # In turn, so that other work on the machine slows all of them alike.
    for window in range(windows + 1):
        for variant, (trainer, batch) in trainers.items():
            start = time.perf_counter()
            for _ in range(steps):
                with trainer.compute_loss_context_manager():  # in the precision of the recipe
                    loss = trainer.compute_loss(trainer.model, batch)
                loss.backward()
                trainer.model.zero_grad()
            loss.item()  # waits for the device
            if window:  # the first one warms up
                seconds[variant].append(time.perf_counter() - start)
    return [steps * batch["input_ids"].numel() / median(seconds[variant]) for variant, (_, batch) in trainers.items()]


def scores(args, variant, seeds, name):
    return [read_json(folder_of(args, variant, seed) / name / "metrics.json")[SCORE] for seed in seeds]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def report(args, results, seeds):
    """Write comparison.json, .md and .png, and print the table."""
    output_dir = Path(args.output_dir)
    write_json(output_dir / "comparison.json", {"seeds": seeds, "results": results})
    table = format_table(args.budget, seeds, results)
    (output_dir / "comparison.md").write_text(table, encoding="utf-8")
    draw_comparison(results, SCORE, output_dir / "comparison.png")
    print(table)


def format_table(budget, seeds, results):
    """A row per variant; it is `apart` from electra where every seed of one is above every seed of the other."""
    equal = {"steps": "steps", "flops": "floating-point operations"}[budget]
    intro = (
        f"Every run took as many {equal} as electra, on the same rows. Accuracy on the test set: mean ± standard "
        f"deviation over {len(seeds)} seeds of pretraining and fine-tuning. *Apart*: every seed of the one is above "
        "every seed of the other. Operations of a token: counted, and averaged over the run. Tokens per second: of a "
        "forward and backward pass with both networks, all rows of the table in turn in one process."
    )
    # The first result is the reference. Its first point is the untrained network, and its last one the end of the run.
    untrained, reference = (results[0]["points"][number][SCORE] for number in (0, -1))
    lines = [
        intro,
        "",
        "| objective | embeddings | million tokens | MFLOP a token | tokens/s | accuracy | against electra | apart |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        final = result["points"][-1][SCORE]
        difference = f"{mean(final) - mean(reference):+.4f}" if result is not results[0] else ""
        # With one seed this says nothing, and the column stays empty.
        apart = "yes" if min(final) > max(reference) or max(final) < min(reference) else "no"
        lines.append(
            f"| {result['objective']} | {result['embedding_sharing']} | {result['tokens'] / 1e6:.1f} "
            f"| {result['flops_per_token'] / 1e6:.2f} | {result['tokens_per_second']:,.0f} | {with_spread(final)} "
            f"| {difference} | {apart if difference and len(seeds) > 1 else ''} |"
        )
    lines.append(f"| untrained | | 0 | | | {with_spread(untrained)} | {mean(untrained) - mean(reference):+.4f} | |")
    return "\n".join(lines) + "\n"


def with_spread(values):
    return f"{mean(values):.4f} ± {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)

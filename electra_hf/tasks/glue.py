"""The nine tasks of GLUE: their columns, labels and scores, where their files lie, and the table of results."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from electra_hf.errors import InputError
from electra_hf.text.names import inner_name, inner_suffix
from electra_hf.text.tables import TABLE_SUFFIXES

HUB_DATASET = "nyu-mll/glue"
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Layout:
    """Which columns hold the texts and the label."""

    texts: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE. `labels` stand in the Hub's order; none of them means numbers."""

    name: str
    title: str
    labels: tuple[str, ...]
    layouts: tuple[Layout, ...]  # of the official files, then of the Hub
    score: str = "accuracy"  # the one that the paper reports and averages
    epochs: float = 3.0  # the paper's (table 7)
    columns_without_header: tuple[str, ...] = ()
    has_broken_lines: bool = False  # the official file itself
    tests: tuple[str, ...] = ("",)  # of the part to test on; "mismatched" means validation_mismatched, dev_mismatched
    starts_from_mnli: bool = False  # in the paper, where it is asked for

    def label_of(self, text: str) -> str | None:
        """The label that a file writes as a word or a number; None where it says that there is none."""
        # "-" is what MNLI's files write where the annotators did not agree.
        if text in ("-1", "-1.0", "-"):
            return None
        # Files write words or numbers, the Hub numbers alone; both mean the same label.
        if text.isdecimal() and int(text) < len(self.labels):
            return self.labels[int(text)]
        return text


_PAIR = ("sentence1", "sentence2")
# Two layouts where the official file and the Hub name their columns differently; the first that fits is taken.
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "cola", "CoLA", ("unacceptable", "acceptable"), (Layout(("sentence",), "label"),),
            score="matthews_correlation", columns_without_header=("source", "label", "mark", "sentence"),
        ),
        GlueTask("sst2", "SST", ("negative", "positive"), (Layout(("sentence",), "label"),)),
        GlueTask(
            "mrpc", "MRPC", ("not_equivalent", "equivalent"),
            (Layout(("#1 String", "#2 String"), "Quality"), Layout(_PAIR, "label")), starts_from_mnli=True,
        ),
        GlueTask(
            "stsb", "STS", (), (Layout(_PAIR, "score"), Layout(_PAIR, "label")),
            score="spearman", epochs=10.0, starts_from_mnli=True,
        ),
        GlueTask(
            "qqp", "QQP", ("not_duplicate", "duplicate"),
            (Layout(("question1", "question2"), "is_duplicate"), Layout(("question1", "question2"), "label")),
            has_broken_lines=True,
        ),
        GlueTask(
            "mnli", "MNLI", ("entailment", "neutral", "contradiction"),
            (Layout(_PAIR, "gold_label"), Layout(("premise", "hypothesis"), "label")),
            tests=("matched", "mismatched"),
        ),
        GlueTask("qnli", "QNLI", ENTAILMENT, (Layout(("question", "sentence"), "label"),)),
        GlueTask("rte", "RTE", ENTAILMENT, (Layout(_PAIR, "label"),), epochs=10.0, starts_from_mnli=True),
        GlueTask("wnli", "WNLI", ("not_entailment", "entailment"), (Layout(_PAIR, "label"),)),
    )
}  # fmt: skip
WITHOUT_WNLI = tuple(name for name in TASKS if name != "wnli")  # the eight that the paper averages


def find_glue_files(glue_dir: str | Path, task: GlueTask) -> dict[str, Path]:
    """The files of a task below `glue_dir`: "train", and one per name in `task.tests`. Empty where one is missing.

    The folder is called as in the official download (`SST-2`) or as the task (`sst2`), the files `train.tsv` and
    `dev.tsv` (`dev_matched.tsv`), or as the Hub calls its parts (`validation.jsonl`). Raises `InputError` if there is
    no glue_dir.
    """
    if not Path(glue_dir).is_dir():
        raise InputError(f"glue_dir: there is no folder {glue_dir}. Give the one that holds CoLA, SST-2 and so on.")
    files = {
        _plain_stem(file.name): file
        for folder in sorted(Path(glue_dir).iterdir())
        # Letters and digits alone: SST-2, sst2 and SST_2 are one task.
        if folder.is_dir() and "".join(filter(str.isalnum, folder.name.lower())) == task.name
        for file in sorted(folder.iterdir())
        if inner_suffix(file.name) in TABLE_SUFFIXES
    }
    wanted = {"train": ["train"]} | {
        part: [f"{stem}_{part}".rstrip("_") for stem in ("dev", "validation")] for part in task.tests
    }
    found = {part: files[stem] for part, stems in wanted.items() for stem in stems if stem in files}
    # All or none: a task without its test must not look like one that was scored.
    return found if found.keys() == wanted.keys() else {}


def _plain_stem(name):
    return Path(inner_name(name)).stem


def summarise_glue(results: dict[str, dict[int, dict[str, float]]]) -> dict[str, float]:
    """One flat dictionary of the results so far, by task, seed and score; every task has the same seeds.

    Each task gives mean and sample standard deviation of its scores over the seeds. `glue_average` is over the eight
    tasks without WNLI, each with the score that the paper reports, in percent, and `glue_average_with_wnli` over all
    nine. Both stand there only if every task of theirs does; `glue_average_of_finished` is of what there is.
    """
    summary = {}
    for name, runs in results.items():
        for key in next(iter(runs.values())):
            values = [scores[key] for scores in runs.values()]
            summary[f"{name}_{key}_mean"] = mean(values)
            if len(values) > 1:
                summary[f"{name}_{key}_sd"] = stdev(values)
    finished = tuple(name for name in WITHOUT_WNLI if name in results)
    # An average of fewer tasks has a name of its own, so that nobody compares it with the paper's.
    averages = {"glue_average_of_finished": finished}
    if finished == WITHOUT_WNLI:
        averages["glue_average"] = WITHOUT_WNLI
        if "wnli" in results:
            averages["glue_average_with_wnli"] = tuple(TASKS)
    for key, names in averages.items():
        summary |= _average(key, [results[name] for name in names], names)
    return summary


def _average(key, runs_of_tasks, names):
    seeds = runs_of_tasks[0] if runs_of_tasks else []
    values = [
        # First over the tasks of one seed, then over the seeds: the spread is that of the average, as papers give it.
        100 * mean(runs[seed][f"eval_{TASKS[name].score}"] for name, runs in zip(names, runs_of_tasks, strict=True))
        for seed in seeds
    ]
    return ({f"{key}_mean": mean(values)} if values else {}) | (
        {f"{key}_sd": stdev(values)} if len(values) > 1 else {}
    )


def format_glue(results: dict[str, dict[int, dict[str, float]]], absent: dict[str, str], title: str) -> str:
    """The table of results in Markdown, in the paper's order, in percent; `absent` says why a task is missing."""
    summary = summarise_glue(results)
    cells = {name: _cell(summary, f"{name}_eval_{task.score}", 100) for name, task in TASKS.items()}
    baselines = {
        name: _cell(summary, f"{name}_baseline_majority_{task.score}", 100) if task.labels else ""
        for name, task in TASKS.items()
    }
    done = [TASKS[name].title for name in WITHOUT_WNLI if name in results]
    lines = [
        f"| | {' | '.join(task.title for task in TASKS.values())} | average without WNLI | with WNLI |",
        f"|---|{'---|' * (len(TASKS) + 2)}",
        f"| {title} | {' | '.join(cells.values())} | {_cell(summary, 'glue_average')} | "
        f"{_cell(summary, 'glue_average_with_wnli')} |",
        f"| majority | {' | '.join(baselines.values())} | | |",
        "",
        "CoLA: Matthews correlation. STS: Spearman correlation. The others: accuracy (MNLI: the matched part). All × "
        "100, mean ± standard deviation over the seeds.",
    ]
    if len(done) < len(WITHOUT_WNLI) and done:
        lines += [
            "",
            f"Average of the {len(done)} finished ({', '.join(done)}): {_cell(summary, 'glue_average_of_finished')}. "
            "It does not compare with an average over eight tasks.",
        ]
    lines += [f"\nNot run: {TASKS[name].title} ({reason})." for name, reason in absent.items()]
    return "\n".join(lines) + "\n"


def _cell(summary, key, factor=1):
    if f"{key}_mean" not in summary:
        return ""
    spread = f" ± {factor * summary[f'{key}_sd']:.1f}" if f"{key}_sd" in summary else ""
    return f"{factor * summary[f'{key}_mean']:.1f}{spread}"

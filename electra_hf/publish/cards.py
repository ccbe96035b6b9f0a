"""Model cards: templates, filled with what a run left on disk. What a run did not record reads "not recorded"."""

import math
import re
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import jinja2
from huggingface_hub import DatasetCardData, EvalResult, ModelCardData
from safetensors import safe_open

from electra_hf.addresses import public_text
from electra_hf.errors import InputError
from electra_hf.files import read_json, write_text
from electra_hf.publish.hardware import describe_hardware
from electra_hf.settings import chosen_part, read_settings

TEMPLATES = jinja2.PackageLoader("electra_hf.publish")  # its folder templates/, also inside a wheel
NO_NAME = "USER/MODEL"  # stands in a card until the model is pushed somewhere
MARKER = "<!-- electra_hf wrote this card for {}. Delete this line and the card is yours: it is never overwritten. -->"
# Where a card names its own repository: the marker, the title, the Hub's table of results, and the lines of code.
PLACES_OF_NAME = (
    MARKER.format("{name}"),
    "\n# {last}\n",
    "\nmodel-index:\n- name: {last}\n",
    '("{name}")',
    'model="{name}"',
    "--packed_rows {name}\n",
)
SPLITS = ("train", "test")  # of packed rows
RUN_FILES = ("metrics.json", "corpus.json", "recipe.yaml", "curves.png", "confusion.png", "scatter.png")
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "electra-hf")
# transformers has no pipeline for ElectraForPreTraining.
PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
}
# Tasks that the Hub sorts models by beside these; transformers 5 has no pipeline for question answering any more.
TASKS = PIPELINES | {"ForQuestionAnswering": "question-answering"}
# Metrics that the Hub's result tables know, by our key: its type there and a name to print.
RESULTS = {
    "eval_rtd_auc": ("roc_auc", "AUC of replaced-token detection"),
    "eval_rtd_accuracy": ("accuracy", "Accuracy of replaced-token detection"),
    "eval_token_accuracy": ("accuracy", "Accuracy of token prediction"),
    "eval_accuracy": ("accuracy", "Accuracy"),
    "eval_exact_match": ("exact_match", "Exact match, per cent"),
    "eval_macro_f1": ("f1", "Macro-F1"),
    "eval_f1": ("f1", "F1"),
    "eval_matthews_correlation": ("matthews_correlation", "Matthews correlation"),
    "eval_pearson": ("pearsonr", "Pearson correlation"),
    "eval_spearman": ("spearmanr", "Spearman correlation"),
}


@dataclass
class CardArguments:
    """What only the user knows of a model."""

    language: list[str] = field(
        default_factory=list, metadata={"help": "Codes of the languages of the text, such as eo. For the model card."}
    )
    license: str | None = field(
        default=None, metadata={"help": "The model's licence as the Hub spells it, such as apache-2.0. For the card."}
    )
    corpus_license: str | None = field(
        default=None, metadata={"help": "In words: whose the text is and under which licences. For the card."}
    )

    def __post_init__(self):
        for code in self.language:
            # The Hub refuses a card with another code, and it would do so after the training.
            if not re.fullmatch("[a-z]{2,3}(-[A-Za-z]+)*", code):
                raise InputError(f"language: expected codes such as eo or eu, got {code!r}.")
        if self.license and not re.fullmatch("[a-z0-9.-]+", self.license):
            raise InputError(f"license: expected the Hub's name for it, such as apache-2.0, got {self.license!r}.")


class _Missing(jinja2.ChainableUndefined):
    """Prints as words, so that a template needs no condition for each number."""

    def __str__(self):
        return "not recorded"


def fill_discriminator_card(
    output_dir: str | Path, repo_id: str | None = None, generator_repo_id: str | None = None, **values
) -> Path:
    """Write the card of `output_dir/discriminator` after pretraining. Returns its path, as `write_card` does."""
    folder = _gather_run_files(Path(output_dir), "discriminator")
    # With an objective that predicts tokens the folder holds a masked language model.
    template = "encoder" if describe_model(folder)["pipeline"] == "fill-mask" else "discriminator"
    return write_card(folder, template, repo_id, partner=generator_repo_id, **values)


def fill_generator_card(
    output_dir: str | Path, repo_id: str | None = None, discriminator_repo_id: str | None = None, **values
) -> Path:
    """Write the card of `output_dir/generator` after pretraining."""
    folder = _gather_run_files(Path(output_dir), "generator")
    return write_card(folder, "generator", repo_id, partner=discriminator_repo_id, **values)


def fill_tagger_card(output_dir: str | Path, repo_id: str | None = None, **values) -> Path:
    """Write the card of a tagger; its table of tags comes from `predictions.tsv`."""
    predictions = Path(output_dir) / "predictions.tsv"
    tags = score_each_tag(predictions) if predictions.exists() else None
    return write_card(output_dir, "tagger", repo_id, tags=tags, **values)


def fill_finetuned_card(output_dir: str | Path, repo_id: str | None = None, **values) -> Path:
    """Write the card of any other fine-tuned model."""
    return write_card(output_dir, "finetuned", repo_id, **values)


def _gather_run_files(output_dir, name):
    # The repository of one of the two networks has to hold the picture and the numbers that its card shows.
    for file in RUN_FILES:
        if (output_dir / file).exists():
            shutil.copy(output_dir / file, output_dir / name / file)
        else:  # of an earlier run
            (output_dir / name / file).unlink(missing_ok=True)
    return output_dir / name


def fill_rows_card(folder: str | Path, repo_id: str | None = None, **values) -> Path:
    """Write the card of a folder of packed rows, a dataset. A README.md that we did not write is kept."""
    folder = Path(folder)
    path = folder / "README.md"
    if path.exists() and not is_generated_card(path):
        return path
    name = repo_id or NO_NAME
    metadata = DatasetCardData(
        language=values.get("language") or None,
        license=values.get("license"),
        tags=["electra", "packed-rows"],
        # Without it the Hub would take the reports for data.
        configs=[{"config_name": "default", "data_files": [{"split": s, "path": f"{s}/*.arrow"} for s in SPLITS]}],
    )
    values |= {"name": name, "marker": MARKER.format(name), "metadata": metadata.to_yaml()}
    values |= {"manifest": read_json(folder / "manifest.json"), "corpus": read_json(folder / "corpus.json")}
    write_text(path, _render("rows", values))
    return path


def write_card(folder: str | Path, template: str, repo_id: str | None = None, **values) -> Path:
    """Fill `templates/{template}.md` into `folder/README.md`, and return its path.

    The values for the template come from the run's files in the folder (metrics.json, corpus.json, recipe.yaml,
    config.json); keyword arguments add to them or win over them. A README.md that we did not write is kept. Raises
    `InputError` where one of the files is damaged.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if path.exists() and not is_generated_card(path):
        return path
    name = repo_id or NO_NAME
    versions = {package: version(package) for package in PACKAGES}
    # In this order: what the caller gives wins over what the folder says.
    values = {"name": name, "hardware": describe_hardware(), "versions": versions, **describe_model(folder), **values}
    values["marker"] = MARKER.format(name)
    values["metadata"] = _metadata(template, values).to_yaml()
    write_text(path, _render(template, values))
    return path


def _render(template, values):
    environment = jinja2.Environment(loader=TEMPLATES, undefined=_Missing, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, count=_count, hours=_hours)
    return environment.get_template(f"{template}.md").render(values)


def is_generated_card(path: str | Path) -> bool:
    """Whether the card is ours to overwrite."""
    return Path(path).exists() and _name_in_card(Path(path)) is not None


def address_card(folder: str | Path, repo_id: str) -> None:
    """Write the repository's name into a generated card, so that its example loads what a reader sees."""
    path = Path(folder) / "README.md"
    old = _name_in_card(path) if path.exists() else None
    if old and old != repo_id:
        text = path.read_text(encoding="utf-8")
        for place in PLACES_OF_NAME:
            # Only whole places: another name may begin with this one, as me/eo-pos begins with me/eo.
            before, after = (place.format(name=name, last=name.split("/")[-1]) for name in (old, repo_id))
            text = text.replace(before, after)
        write_text(path, text)


def published_name(folder: str | Path) -> str | None:
    """The repository that a folder was pushed to, by our card in it; None where it was never pushed."""
    card = Path(folder) / "README.md"
    name = _name_in_card(card) if card.exists() else None
    return name if name != NO_NAME else None


def _name_in_card(path):
    match = re.search(re.escape(MARKER).replace(r"\{\}", r"(\S+/\S+)"), path.read_text(encoding="utf-8"))
    return match[1] if match else None


def describe_model(folder: str | Path) -> dict:
    """What a model folder says about its model: the run's files and sizes.

    Raises `InputError` where a file is damaged.
    """
    # Keys are only there where a file is: the templates tell "not recorded" from a value by that.
    folder, values = Path(folder), {}
    for name in ("metrics", "corpus", "config"):
        if (folder / f"{name}.json").exists():
            values[name] = read_json(folder / f"{name}.json")
    if (folder / "recipe.yaml").exists():
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        values["recipe_text"] = public_text(chosen_part(text))
        values["recipe"] = {setting.name: setting.value for setting in read_settings(folder / "recipe.yaml")}
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        values["parameters"] = sum(_count_parameters(path) for path in weights)
    values["pictures"] = [name for name in ("curves.png", "confusion.png", "scatter.png") if (folder / name).exists()]
    values["pipeline"] = _by_architecture(PIPELINES, values.get("config", {}))
    values["task"] = _by_architecture(TASKS, values.get("config", {}))
    values["base_model"] = _base_model(values.get("recipe", {}))
    return values


def _count_parameters(path):
    with safe_open(path, "np") as file:
        # From the header alone: to read the weights would take seconds and their size in memory.
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def _by_architecture(names, config):
    for architecture in config.get("architectures") or []:
        # By the ending, because the beginning is the family (Electra, Bert ...), and any encoder may be fine-tuned.
        for suffix, name in names.items():
            if architecture.endswith(suffix):
                return name
    return None


def _base_model(recipe):
    """The Hub name of the model that training started from; None for random weights or a folder never pushed."""
    start = recipe.get("model_name_or_path") or recipe.get("discriminator_name_or_path")
    if recipe.get("from_scratch"):
        return None
    # A folder of this machine means nothing on the Hub; its repository there does, if it was pushed.
    # What cannot be a name on the Hub is a folder, too, though it has moved since: its path is nobody's business.
    is_local = start and (Path(start).is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", start))
    return published_name(start) if is_local else start


def _metadata(template, values):
    recipe, metrics = values.get("recipe", {}), values.get("metrics", {})
    results = [
        _result(values, metric_type, label, metrics[key])
        for key, (metric_type, label) in RESULTS.items()
        if isinstance(metrics.get(key), (int, float))
    ]
    dataset_name = recipe.get("dataset_name")
    return ModelCardData(
        language=recipe.get("language") or None,
        license=recipe.get("license"),
        library_name="transformers",
        tags=["electra", "replaced-token-detection"] if template == "discriminator" else ["electra"],
        datasets=[dataset_name] if dataset_name else None,
        pipeline_tag=values["task"],
        base_model=values["base_model"],
        model_name=values["name"].split("/")[-1],
        eval_results=results or None,
    )


def _result(values, metric_type, label, value):
    recipe = values.get("recipe", {})
    data = recipe.get("dataset_name") or recipe.get("test_file")
    held_out = Path(str(data)).name if data else "held-out share of the corpus"
    return EvalResult(
        task_type=values["task"] or "other",
        task_name=None if values["task"] else "replaced-token detection",
        dataset_type=recipe.get("dataset_name") or "private",
        dataset_name=held_out,
        metric_type=metric_type,
        metric_name=label,
        metric_value=round(value, 4),
    )


def score_each_tag(predictions: str | Path) -> list[tuple[str, float, float, float, int]]:
    """Rows (tag, precision, recall, F1, words) from a predictions.tsv (word, gold, predicted), rarest tag last."""
    # Imported here, since only a tagger's card needs scikit-learn.
    from sklearn.metrics import precision_recall_fscore_support

    rows = [line.split("\t") for line in Path(predictions).read_text(encoding="utf-8").split("\n") if line]
    # A file may begin with a header, which is no word of the test.
    pairs = [(row[1], row[2]) for row in rows if row != ["word", "gold", "predicted"]]
    gold, predicted = zip(*pairs, strict=True)
    labels = sorted(set(gold) | set(predicted))
    scores = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    return sorted(zip(labels, *(column.tolist() for column in scores), strict=True), key=lambda row: (-row[4], row[0]))


def _number(value, digits=3):
    return str(value) if isinstance(value, (str, _Missing)) else f"{value:.{digits}f}"


def _count(value):
    if isinstance(value, (str, _Missing)):
        return str(value)
    # Above that it is a count of operations, of which nobody reads all digits.
    return f"{value:,.0f}" if value < 1e13 else f"{value:.2e}"


def _hours(seconds):
    return str(seconds) if isinstance(seconds, _Missing) else f"{seconds / 3600:.2f} hours"

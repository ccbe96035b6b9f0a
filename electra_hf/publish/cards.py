"""Model cards: templates, filled with what a run left on disk. What the run did not record says "not recorded"."""

import json
import math
import re
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData
from safetensors import safe_open

from electra_hf.errors import InputError
from electra_hf.files import write_text
from electra_hf.publish.hardware import describe_hardware

TEMPLATES = jinja2.PackageLoader("electra_hf.publish")  # its folder templates/, also inside a wheel
NO_NAME = "USER/MODEL"  # stands in a card until the model is pushed somewhere
MARKER = "<!-- electra_hf wrote this card for {}. Delete this line and the card is yours: it is never overwritten. -->"
RUN_FILES = ("metrics.json", "corpus.json", "recipe.yaml", "curves.png", "confusion.png", "scatter.png")
PACKAGES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "electra-hf")
# transformers 5 has no pipeline for question answering any more, and none ever for ElectraForPreTraining.
PIPELINES = {
    "ForMaskedLM": "fill-mask",
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
}
# Metrics that the Hub's result tables know, by our key: its type there and a name to print.
RESULTS = {
    "eval_rtd_auc": ("roc_auc", "AUC of replaced-token detection"),
    "eval_rtd_accuracy": ("accuracy", "Accuracy of replaced-token detection"),
    "eval_token_accuracy": ("accuracy", "Accuracy of token prediction"),
    "eval_accuracy": ("accuracy", "Accuracy"),
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
            if not re.fullmatch("[a-z]{2,3}(-[A-Za-z]+)*", code):
                raise InputError(f"language: expected codes such as eo or eu, got {code!r}.")
        if self.license and not re.fullmatch("[a-z0-9.-]+", self.license):
            raise InputError(f"license: expected the Hub's name for it, such as apache-2.0, got {self.license!r}.")


class _Missing(jinja2.ChainableUndefined):
    """Prints as words, so that a template needs no condition for each number."""

    def __str__(self):
        return "not recorded"


def fill_discriminator_card(output_dir, repo_id=None, generator_repo_id=None, **facts):
    """Write the card of `output_dir/discriminator` after pretraining. Returns its path, as `write_card` does."""
    folder = _gather_run_files(Path(output_dir), "discriminator")
    # With an objective that predicts tokens the folder holds a masked language model.
    template = "encoder" if read_facts(folder)["pipeline"] == "fill-mask" else "discriminator"
    return write_card(folder, template, repo_id, partner=generator_repo_id, **facts)


def fill_generator_card(output_dir, repo_id=None, discriminator_repo_id=None, **facts):
    """Write the card of `output_dir/generator` after pretraining."""
    folder = _gather_run_files(Path(output_dir), "generator")
    return write_card(folder, "generator", repo_id, partner=discriminator_repo_id, **facts)


def fill_tagger_card(output_dir, repo_id=None, **facts):
    """Write the card of a tagger; its table of tags comes from `predictions.tsv`."""
    predictions = Path(output_dir) / "predictions.tsv"
    tags = score_each_tag(predictions) if predictions.exists() else None
    return write_card(output_dir, "tagger", repo_id, tags=tags, **facts)


def fill_finetuned_card(output_dir, repo_id=None, **facts):
    """Write the card of any other fine-tuned model."""
    return write_card(output_dir, "finetuned", repo_id, **facts)


def _gather_run_files(output_dir, name):
    # The repository of one of the two networks has to hold the picture and the numbers that its card shows.
    for file in RUN_FILES:
        if (output_dir / file).exists():
            shutil.copy(output_dir / file, output_dir / name / file)
    return output_dir / name


def write_card(folder, template, repo_id=None, **facts):
    """Fill `templates/{template}.md` into `folder/README.md`.

    Facts are read from the run's files in the folder (metrics.json, corpus.json, recipe.yaml, config.json); keyword
    arguments add to them or win over them. A README.md that we did not write is kept. Returns the card's path.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if path.exists() and not is_generated_card(path):
        return path
    name = repo_id or NO_NAME
    facts = {"name": name, "hardware": describe_hardware(), **read_facts(folder), **facts}
    facts["marker"] = MARKER.format(name)
    facts["metadata"] = _metadata(template, facts).to_yaml()
    environment = jinja2.Environment(loader=TEMPLATES, undefined=_Missing, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, count=_count, hours=_hours)
    write_text(path, environment.get_template(f"{template}.md").render(facts))
    return path


def is_generated_card(path):
    """Whether the card is ours to overwrite."""
    return Path(path).exists() and _name_in_card(Path(path)) is not None


def address_card(folder: str | Path, repo_id: str) -> None:
    """Write the repository's name into a generated card, so that its example loads what a reader sees.

    Longer names that begin or end like it, such as the base model's, stay as they are.
    """
    path = Path(folder) / "README.md"
    old = _name_in_card(path) if path.exists() else None
    if old and old != repo_id:
        own_name = rf"(?<![\w./-]){re.escape(old)}(?![\w/-]|\.\w)"
        write_text(path, re.sub(own_name, lambda _: repo_id, path.read_text(encoding="utf-8")))


def _name_in_card(path):
    match = re.search(re.escape(MARKER).replace(r"\{\}", r"(\S+/\S+)"), path.read_text(encoding="utf-8"))
    return match[1] if match else None


def read_facts(folder):
    """What a model folder says about its model: the run's files, sizes, and the versions installed here."""
    folder, facts = Path(folder), {}
    for name in ("metrics", "corpus", "config"):
        if (folder / f"{name}.json").exists():
            facts[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    if (folder / "recipe.yaml").exists():
        facts["recipe_text"] = (folder / "recipe.yaml").read_text(encoding="utf-8").strip()
        facts["recipe"] = yaml.safe_load(facts["recipe_text"])
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        facts["parameters"] = sum(_count_parameters(path) for path in weights)
    facts["pictures"] = [name for name in ("curves.png", "confusion.png", "scatter.png") if (folder / name).exists()]
    facts["pipeline"] = _pipeline(facts.get("config", {}))
    facts["base_model"] = _base_model(facts.get("recipe", {}))
    facts["versions"] = {name: version(name) for name in PACKAGES}
    return facts


def _count_parameters(path):
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def _pipeline(config):
    for architecture in config.get("architectures") or []:
        for suffix, pipeline in PIPELINES.items():
            if architecture.endswith(suffix):
                return pipeline
    return None


def _base_model(recipe):
    """The Hub name of the model that training started from; None for random weights or a folder never pushed."""
    start = recipe.get("model_name_or_path") or recipe.get("discriminator_name_or_path")
    if recipe.get("from_scratch"):
        return None
    if start and Path(start).is_dir():
        card = Path(start) / "README.md"
        start = _name_in_card(card) if card.exists() else None
    return start if start != NO_NAME else None


def _metadata(template, facts):
    recipe, metrics = facts.get("recipe", {}), facts.get("metrics", {})
    results = [
        _result(facts, metric_type, label, metrics[key])
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
        pipeline_tag=facts["pipeline"],
        base_model=facts["base_model"],
        model_name=facts["name"].split("/")[-1],
        eval_results=results or None,
    )


def _result(facts, metric_type, label, value):
    recipe = facts.get("recipe", {})
    data = recipe.get("dataset_name") or recipe.get("test_file") or recipe.get("task")
    held_out = Path(str(data)).name if data else "held-out share of the corpus"
    return EvalResult(
        task_type=facts["pipeline"] or "other",
        task_name=None if facts["pipeline"] else "replaced-token detection",
        dataset_type=recipe.get("dataset_name") or "private",
        dataset_name=held_out,
        metric_type=metric_type,
        metric_name=label,
        metric_value=round(value, 4),
    )


def score_each_tag(predictions):
    """Rows (tag, precision, recall, F1, words) from a predictions.tsv (word, gold, predicted), rarest tag last."""
    from sklearn.metrics import precision_recall_fscore_support

    rows = [line.split("\t") for line in Path(predictions).read_text(encoding="utf-8").split("\n") if line]
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
    return f"{value:,.0f}" if value < 1e13 else f"{value:.2e}"


def _hours(seconds):
    return str(seconds) if isinstance(seconds, _Missing) else f"{seconds / 3600:.2f} hours"

"""What a model folder says of its model, in lines for a reader. What a run did not record is left out."""

import base64
from itertools import islice
from pathlib import Path

from electra_hf.addresses import public_text
from electra_hf.publish.cards import RESULTS, describe_model

# A score alone says little: most tokens are original, so always answering “original” looks good. By key
# of the score: what the baseline is called, and its value or the key of that in metrics.json.
BASELINES = {
    "eval_rtd_auc": ("by chance", 0.5),
    "eval_rtd_accuracy": ("always “original”", "eval_rtd_majority_baseline"),
    "eval_accuracy": ("most frequent tag of each word", "baseline_most_frequent_tag_accuracy"),
    "eval_macro_f1": ("most frequent tag of each word", "baseline_most_frequent_tag_macro_f1"),
}
# Which of them a folder has depends on the recipe that filled it.
PICTURES = {
    "curves.png": "Curves of the training",
    "confusion.png": "What is taken for what, on the test",
    "scatter.png": "Predicted numbers beside the gold ones, on the test",
}


def collect_facts(folder: str | Path) -> list[tuple[str, str]]:
    """(name, value) of what a reader wants to know: sizes, scores beside their baselines, text, training.

    Raises `InputError` where a file of the folder is damaged.
    """
    values = describe_model(folder)
    metrics, recipe = values.get("metrics", {}), values.get("recipe", {})
    facts = [("Size", _size(values)), *_scores(metrics)]
    facts += [("Text it learned from", _corpus(values.get("corpus"))), ("Tagged text", _examples(recipe, metrics))]
    facts += [("Training", _training(metrics)), ("Language", ", ".join(_listed(recipe.get("language"))))]
    facts += [("Licences of the text", recipe.get("corpus_license")), ("Started from", _start(values))]
    # Any of these may be unknown: an older run, or a model from elsewhere, recorded less.
    return [(name, str(value)) for name, value in facts if value]


def summarise(folder: str | Path) -> str:
    """The two facts that matter most, in a line: how large, and how good."""
    values = describe_model(folder)
    # `RESULTS` has the most telling scores first, so the first that the model has is the one to show.
    scores = (f"{name} {value}" for name, value in _scores(values.get("metrics", {})))
    return "; ".join([(_size(values) or "").partition(":")[0], *islice(scores, 1)])


def embed_pictures(folder: str | Path) -> list[tuple[str, str]]:
    """(title, data address) of the pictures in the folder: they are shown without another request."""
    found = [(title, Path(folder) / name) for name, title in PICTURES.items() if (Path(folder) / name).is_file()]
    return [(title, "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()) for title, path in found]


def _size(values):
    config, parameters = values.get("config", {}), values.get("parameters")
    return (
        f"{parameters:,} parameters: {config.get('num_hidden_layers')} layers of width {config.get('hidden_size')}, "
        f"{config.get('num_attention_heads')} heads, a vocabulary of {config.get('vocab_size')}, at most "
        f"{config.get('max_position_embeddings')} tokens at a time"
        if parameters
        else None
    )


def _scores(metrics):
    for key, (_, label) in RESULTS.items():
        # On bare tags it repeats the accuracy.
        if isinstance(metrics.get(key), (int, float)) and not (key == "eval_f1" and "eval_macro_f1" in metrics):
            yield label, _score(metrics, key)
    if isinstance(metrics.get("eval_generator_accuracy"), (int, float)):
        yield "Accuracy of the generator's guesses", f"{metrics['eval_generator_accuracy']:.3f}"


def _score(metrics, key):
    # Taggers and classifiers both write `eval_accuracy`, but their baselines differ: this is set right below.
    name, baseline = BASELINES.get(key, (None, None))
    baseline = metrics.get(baseline, baseline)
    if key == "eval_accuracy" and "baseline_majority_accuracy" in metrics:
        name, baseline = "most frequent label", metrics["baseline_majority_accuracy"]
    beside = f" ({name}: {baseline:.3f})" if isinstance(baseline, (int, float)) else ""
    # Only runs over several seeds have a mean and a standard deviation (`summarise_runs`).
    spread = (
        f", {metrics[f'{key}_mean']:.3f} ± {metrics[f'{key}_sd']:.3f} over the seeds" if f"{key}_sd" in metrics else ""
    )
    return f"{metrics[key]:.3f}{spread}{beside}"


def _corpus(corpus):
    if not corpus:
        return None
    train = corpus.get("splits", {}).get("train", {})
    # The last part alone: the rest may name folders of a private machine, or hold a password.
    names = [Path(public_text(str(source.get("name", "")))).name for source in corpus.get("sources", [])]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{train.get('sentences', 0):,} sentences, {train.get('characters', 0):,} characters ({shown})"


def _examples(recipe, metrics):
    # Recipes name their examples in one of three ways, and count sentences or examples.
    name = recipe.get("dataset_name") or recipe.get("train_file") or recipe.get("task")
    number = metrics.get("train_sentences") or metrics.get("train_examples")
    if not name:
        return None
    return Path(public_text(str(name))).name + (f", {number:,} sentences or examples" if number else "")


def _training(metrics):
    tokens, seconds = metrics.get("train_tokens"), metrics.get("train_runtime")
    return f"{tokens:,} tokens in {seconds / 60:.1f} minutes" if tokens and seconds else None


def _listed(value):
    # A recipe may give one language as a plain text, or a list of them.
    return value if isinstance(value, list) else [value] if value else []


def _start(values):
    recipe = values.get("recipe", {})
    return "random weights, without pretraining" if recipe.get("from_scratch") else values.get("base_model")

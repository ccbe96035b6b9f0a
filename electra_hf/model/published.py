"""Networks that somebody has published: which of them can be continued, and their weights."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import ElectraConfig, PretrainedConfig, PreTrainedModel

from electra_hf.errors import InputError

DISCRIMINATOR, GENERATOR = "discriminator_name_or_path", "generator_name_or_path"  # the settings that name them


def published_config(setting: str, name: str | Path, model_class: type[PreTrainedModel]) -> ElectraConfig:
    """The configuration of the network `name`, which the setting `setting` gives, without its weights.

    `model_class` is the ELECTRA class that it has to be. Raises `InputError` where it says to be something else.
    """
    try:
        fields, _ = PretrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:  # the library's message names the folder or the Hub's answer
        raise InputError(f"{setting}: {error}") from None
    kind = fields.get("model_type")
    if kind == "electra-pretraining":
        raise InputError(
            f"{setting}: {name} is a pair of generator and discriminator. Give one of the two folders that "
            "recipes/export.py makes of it."
        )
    if kind != "electra":
        raise InputError(
            f"{setting}: {name} is no ELECTRA, its config.json says model_type: {kind}. Another architecture cannot "
            "be continued here."
        )
    # Old configurations name no class; `load_published` then tells by the missing weights.
    architectures = fields.get("architectures") or [model_class.__name__]
    if model_class.__name__ not in architectures:
        raise _another_network(setting, name, model_class, f"its config.json says architectures: {architectures[0]}")
    return ElectraConfig.from_dict(fields)


def load_published(setting: str, name: str | Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The published network `name` with its weights, in fp32. Raises `InputError` where some of them are missing."""
    # First, since the library would load any folder and only warn about weights that do not fit.
    published_config(setting, name, model_class)
    try:
        model, loading = model_class.from_pretrained(name, dtype="float32", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{setting}: {error}") from None
    # The library would fill what is missing with random numbers, and only warn.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise _another_network(setting, name, model_class, f"it lacks {len(missing)} weights, {missing[0]} first")
    return model


def _another_network(setting, name, model_class, evidence):
    other = GENERATOR if setting == DISCRIMINATOR else DISCRIMINATOR
    expected = {"ElectraForPreTraining": "a discriminator", "ElectraForMaskedLM": "an ELECTRA that predicts tokens"}
    return InputError(
        f"{setting}: {name} is not {expected[model_class.__name__]} ({model_class.__name__}): {evidence}. "
        f"Give the right network here; what this one is may belong to {other}."
    )

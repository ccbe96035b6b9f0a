"""The folder of a Hugging Face Space that shows pushed models on the page of recipes/demo.py."""

import re
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path

import jinja2

import electra_hf
from electra_hf.errors import InputError
from electra_hf.files import new_folder, write_text
from electra_hf.publish.cards import MARKER, TEMPLATES, describe_model, is_generated_card, published_name
from electra_hf.publish.hub import check_repo_id

# The models are fetched when the Space starts: a push of theirs shows there after a restart.
APP = '''"""Fetches the models from the Hub and shows the page."""

import os

import demo
from huggingface_hub import snapshot_download

MODELS = {models}

for folder, name in MODELS.items():
    snapshot_download(name, local_dir=folder)
demo.show({folders}, "0.0.0.0", int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
'''


def write_space(folder: str | Path, repo_id: str, models: Sequence[Path], page: str | Path) -> Path:
    """Write the Space's folder: README.md, app.py, requirements.txt, and the code it runs: `page` and this package.

    `models` are folders of pushed models; of a discriminator, the generator beside it comes along. Raises `InputError`
    for a model that was never pushed, and for a folder there that somebody else wrote. Returns the folder.
    """
    # All checks come before the first file, and `new_folder` gives the folder its name when it is complete.
    check_repo_id(repo_id, "space")
    folder = Path(folder)
    if folder.exists() and not is_generated_card(folder / "README.md"):
        raise InputError(f"{folder} exists, and its README.md is not ours to overwrite. Move it away.")
    places, shown = _place_models(models)
    with new_folder(folder) as unfinished:
        write_text(unfinished / "app.py", APP.format(models=_as_code(places), folders=shown))
        write_text(unfinished / "requirements.txt", "".join(f"{line}\n" for line in list_requirements()))
        write_text(unfinished / "README.md", _fill_card(repo_id, list(places.values()), models))
        shutil.copy(page, unfinished / "demo.py")
        # The code itself: the Space then shows what was seen here, whichever version is published.
        leave_out = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(Path(electra_hf.__file__).parent, unfinished / "electra_hf", ignore=leave_out)
    return folder


def _place_models(models):
    """{folder in the Space: repository} for every model and generator, and the folders that the page shows."""
    # Two results: a run is one entry of the page, but two repositories to fetch.
    places, shown = {}, []
    for model in models:
        name = _require_name(model)
        place = f"models/{name}"
        shown.append(place)
        partner = model.parent / "generator"
        # The page looks for a generator beside the folder `discriminator`, as a run lays the two out.
        if model.name == "discriminator" and partner.is_dir():
            places |= {f"{place}/discriminator": name, f"{place}/generator": _require_name(partner)}
        else:
            places[place] = name
    return places, shown


def _require_name(model):
    name = published_name(model)
    if name is None:
        raise InputError(
            f"{model} was never pushed, and a Space shows what is on the Hub. Push it first: "
            f"python recipes/push.py --folder {model} --repo_id me/NAME"
        )
    return name


def _as_code(places):
    # A line for each model, so that the owner of the Space can edit app.py by hand.
    return "{\n" + "".join(f"    {place!r}: {name!r},\n" for place, name in places.items()) + "}"


def list_requirements() -> list[str]:
    """The lines of requirements.txt: what the package needs, each in the version that is installed here.

    Gradio is not among them: the Space's card names its version.
    """
    names = [re.match(r"[\w.-]+", line)[0] for line in requires("electra-hf") if "extra ==" not in line]
    # A build for this machine (2.13.0+cpu) is not what others find.
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _fill_card(repo_id, names, models):
    values = {
        "title": repo_id.partition("/")[2],
        "gradio": version("gradio"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "license": describe_model(models[0]).get("recipe", {}).get("license"),
        "models": names,
        "marker": MARKER.format(repo_id),
    }
    # The card begins with YAML: lines that only hold a condition must not leave blank lines in it.
    environment = jinja2.Environment(loader=TEMPLATES, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("space.md").render(values) + "\n"

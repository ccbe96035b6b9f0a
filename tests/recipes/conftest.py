"""What the tests of recipes share: a recipe as a module."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def recipe(request):
    """The recipe that a module of tests is about, imported: `test_NAME.py` is about `recipes/NAME.py`."""
    name = Path(request.module.__file__).stem.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield module
    for number, handler in handlers.items():  # a recipe sets its own
        signal.signal(number, handler)
    del sys.modules[name]

"""The house: imports point down, and nothing in it belongs to one machine."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "electra_hf"

# Which rooms a room may import from. The order is the order of the data's way, so no arrow points up.
ROOMS = {
    "errors": set(),
    "addresses": set(),
    "files": {"errors"},
    "settings": {"addresses", "errors", "files"},
    "recipe": {"addresses", "errors", "files", "settings"},
    "text": {"errors", "files"},
    "model": {"errors", "files", "text"},
    "training": {"errors", "files", "recipe", "text", "model"},
    "tasks": {"errors", "files", "text", "model", "training"},
    "publish": {"addresses", "errors", "files", "settings"},
}
FILES = sorted(path for path in PACKAGE.glob("**/*.py"))


def name_of(path):
    """electra_hf/text/corpus.py -> text.corpus"""
    return path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")


def imports_of(path):
    """The files of the package that a file imports, such as text.corpus."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "electra_hf":
            yield node.module.partition(".")[2] or "__init__"


def test_the_rooms_are_the_folders():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | files == set(ROOMS)
    assert files == {"addresses", "errors", "files", "recipe", "settings"}


def test_a_room_imports_only_from_rooms_above_it():
    arrows = {
        (room, imported.partition(".")[0])
        for path in FILES
        if (room := name_of(path).partition(".")[0]) != "__init__"
        for imported in imports_of(path)
    }
    assert {f"{room} imports {imported}" for room, imported in arrows if imported not in ROOMS[room] | {room}} == set()
    assert len(arrows) > 10


def test_no_files_of_a_room_import_each_other_in_a_circle():
    waiting = {name_of(path): set(imports_of(path)) for path in FILES}
    waiting = {name.removesuffix(".__init__"): imported for name, imported in waiting.items()}
    done = set()
    while free := {name for name, imported in waiting.items() if imported <= done}:
        done |= free
        waiting = {name: imported for name, imported in waiting.items() if name not in free}
    assert waiting == {}


def test_the_init_of_a_room_says_what_comes_in_and_what_goes_out_and_nothing_else():
    for path in PACKAGE.glob("*/__init__.py"):
        (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
        assert "in" in docstring.value.value and "out" in docstring.value.value, path


def test_the_tests_lie_in_folders_like_the_package_s():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {name for name in ROOMS if (PACKAGE / name).is_dir()} | {"recipes"}


def test_only_the_pair_imports_the_discriminators_near_namesake():
    # `ElectraForPreTraining` (theirs) and `ElectraForPretraining` (ours) differ by one capital.
    users = {name_of(path) for path in FILES if "ElectraForPreTraining," in path.read_text()}
    assert users == {"model.modeling"}


# What runs code that came as data, or writes where an archive says.
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "extract", "extractall", "unpack_archive", "system"}


def dangers_in(source):
    """What a file does that could run foreign code, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if FORBIDDEN_MODULES & {module.partition(".")[0] for module in modules}:
                yield f"{node.lineno}: import {' '.join(modules)}"
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle", "shell"):
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield f"{node.value.lineno}: {node.arg}"
        if isinstance(node, ast.Call):
            target = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            # `model.eval()` trains nothing and runs nothing: the builtin has an argument.
            if target.rpartition(".")[2] in FORBIDDEN_CALLS and not (target.endswith(".eval") and not node.args):
                yield f"{node.lineno}: {target}"
            if target == "torch.load" and keywords.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            if target in ("yaml.load", "yaml.compose") and "Safe" not in keywords.get("Loader", ""):
                yield f"{node.lineno}: {target} without a safe loader"


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import marshal as m", "from joblib import load"),
        *("eval('1')", "exec(text)", "builtins.eval(text)", "torch.load(file)", "torch.load(f, weights_only=False)"),
        *("tarfile.open(f).extractall(folder)", "archive.extract(member)", "shutil.unpack_archive(f)"),
        *("load(x, trust_remote_code=True)", "load(x, trust_remote_code=setting)", "np.load(f, allow_pickle=True)"),
        *("run(text, shell=True)", "os.system(text)", "yaml.load(text, Loader=yaml.Loader)", "yaml.load(text)"),
    ],
)
def test_the_look_for_dangers_finds(source):
    assert list(dangers_in(source))


def test_nothing_runs_code_that_came_as_data():
    files = [*FILES, *(ROOT / "recipes").glob("**/*.py")]
    assert len(files) > 20
    assert {str(file): found for file in files if (found := list(dangers_in(file.read_text(encoding="utf-8"))))} == {}
    harmless = (
        "model.eval(); archive.extractfile(member); torch.load(f, weights_only=True); f(trust_remote_code=False)"
    )
    assert list(dangers_in(harmless)) == []


STARTS = r"subprocess|os\.(exec|spawn|popen|posix_spawn|fork)"


def test_no_process_gets_a_secret_as_an_argument():
    # What starts no process gives it no argument; the cards ask nvidia-smi for the power of the GPU.
    files = [*FILES, *(ROOT / "recipes").glob("**/*.py")]
    calls = {file.name: re.findall(r"(?:subprocess|os)\.(?:\w+)\(.*", file.read_text()) for file in files}
    starting = {name: [call for call in found if re.search(STARTS, call)] for name, found in calls.items()}
    assert {name: found for name, found in starting.items() if found} == {
        "racing.py": ["subprocess.Popen("],  # of contenders: a name, a folder and a number
        "machine.py": ["subprocess.run(query, capture_output=True, text=True).stdout.strip()"],
        "hardware.py": ["subprocess.run(query, capture_output=True, text=True, check=True).stdout)"],
    }
    assert 'query = ["nvidia-smi", ' in (PACKAGE / "publish/hardware.py").read_text()
    assert 'query = ["sysctl", ' in (ROOT / "recipes/benchmark/machine.py").read_text()

"""The house: imports point down, and nothing in it belongs to one machine."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "electra_hf"

# A file imports only from lines above its own.
FLOORS = [
    ["errors"],
    ["sources", "corruption", "objectives", "sharing", "tokenization", "packing", "metrics", "optimization"],
    ["readers", "checkpoints", "stopping", "trackers", "figures", "tagging_metrics", "cards", "configuration", "flops"],
    ["corpus", "arguments", "modeling", "tagging", "hub"],
    ["alignment", "trainer"],
    ["__init__"],
]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "electra_hf":
                yield "__init__"
            elif node.module.startswith("electra_hf."):
                yield node.module.split(".")[1]


def test_every_file_of_the_package_has_a_floor():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {name for floor in FLOORS for name in floor}


def test_imports_point_down():
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    upward = [
        f"{path.stem} imports {imported}"
        for path in PACKAGE.glob("*.py")
        for imported in imports_of(path)
        if floor_of[imported] >= floor_of[path.stem]
    ]
    assert upward == []


def test_only_the_pair_imports_the_discriminators_near_namesake():
    # `ElectraForPreTraining` (theirs) and `ElectraForPretraining` (ours) differ by one capital.
    users = {path.stem for path in PACKAGE.glob("*.py") if "ElectraForPreTraining," in path.read_text()}
    assert users == {"modeling"}


def test_the_package_has_no_sub_packages():
    assert [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"] == []

"""What the READMEs say can be done."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md"]


def blocks(page, language=""):
    """The code blocks of a page in one language; commands stand in blocks without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [code for name, code in found if name == language]


def test_every_recipe_and_recipe_file_in_a_command_is_there():
    named = {
        word
        for page in PAGES
        for word in re.findall(r"recipes/[a-z_/]+\.(?:py|yaml)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 3
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_make_target_in_the_readme_is_in_the_makefile():
    targets = re.findall(r"\bmake ([a-z-]+)", "".join(blocks(PAGES[0])))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_every_folder_of_the_package_is_in_the_readme():
    text = PAGES[0].read_text(encoding="utf-8")
    names = [path.parent.name for path in (ROOT / "electra_hf").glob("*/__init__.py")]
    assert len(names) >= 5
    assert [name for name in names if f"`electra_hf/{name}/`" not in text] == []


def test_every_command_can_be_split_by_a_shell():
    for page in PAGES:
        for block in blocks(page):
            assert shlex.split(block.replace("\\\n", " "), comments=True)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = blocks(PAGES[0], "python")
    for written, run in (
        ("max_steps=10_000", "max_steps=2, per_device_train_batch_size=2, use_cpu=True, save_strategy='no'"),
        ("max_length=128", "max_length=16"),
    ):
        assert written in code
        code = code.replace(written, run)
    monkeypatch.chdir(tmp_path)
    Path("my_text.txt").write_text("la knabo vidas la hundon\nla hundo vidas la knabon\n" * 50)
    exec(code, {})
    assert Path("output/discriminator/model.safetensors").is_file()


def test_the_readme_is_short_enough_to_be_read():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150

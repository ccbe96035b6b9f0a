"""The documentation of packages becomes plain sentences, without running a line of them."""

import pytest

MODULE = '''"""Tools for sets of numbers. They are small and do one thing each."""

raise RuntimeError("nobody may import this")


def largest(values, default=None, **options):
    """
    Return the largest of the `values` in a :class:`~numbers.Set` of them.

    Parameters
    ----------
    values : array_like
        The numbers to look at, in any order and of
        any length.

    Args:
        default (`int`, *optional*): What is returned for no number at all.
        options:
            Passed on to the reader. Ignored
            - Items of a list are sentences of their own.

    >>> largest([1, 2])  # Code is no sentence of any kind.
    2

    ```python
    Neither is this one in a fence of its own.
    ```
    Too short.

    lower case begins no sentence here either.
    Names_like_this and x[0] and y(1) and a=b are not English words.
    """

    def inner():
        "This one stands inside of another function."


class Box:
    r"""A box holds \\d numbers and knows all of them."""

    async def wait(self):
        """Wait until all of the numbers have come."""
'''
SENTENCES = [
    "They are small and do one thing each.",
    "Return the largest of the values in a numbers.Set of them.",
    "The numbers to look at, in any order and of any length.",
    "What is returned for no number at all.",
    "Passed on to the reader.",
    "Items of a list are sentences of their own.",
    "This one stands inside of another function.",
    "A box holds \\d numbers and knows all of them.",
    "Wait until all of the numbers have come.",
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that breaks when it is imported."""
    folder = tmp_path / "site" / "box_of_sets"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(MODULE, encoding="utf-8")
    (folder / "tests" / "__init__.py").write_text('"""Nobody wants to read about the tests here."""\n')
    (folder / "broken.py").write_text('"""This file is written for another Python than ours."""\nprint "no"\n')
    (folder / "latin.py").write_bytes('"""Ceci n\'est pas du texte, mais \xe9crit ailleurs."""\n'.encode("latin-1"))
    (folder / "again.py").write_text('"""They are small and do one thing each. The last file is read first."""\n')
    monkeypatch.syspath_prepend(folder.parent)
    return folder.name


def test_the_sentences_of_a_package_come_in_the_order_of_its_files_each_once(package, run_recipe, tmp_path):
    written = tmp_path / "new" / "text.txt"
    done = run_recipe("collect_documentation.py", "--output_file", written, "--packages", package)
    assert done.returncode == 0, done.stderr
    lines = written.read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted(
        [*SENTENCES[1:], SENTENCES[0], "Tools for sets of numbers.", "The last file is read first."]
    )
    assert lines.index("The last file is read first.") > lines.index(SENTENCES[1])
    assert f"{len(lines)} sentences" in done.stdout


def test_a_package_that_is_not_installed_is_named_and_nothing_is_written(run_recipe, tmp_path):
    for name in ("nunpy", "torch.nn", "../numpy", ""):
        done = run_recipe("collect_documentation.py", "--output_file", tmp_path / "text.txt", "--packages", name)
        assert done.returncode == 2 and "packages" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "text.txt").exists()


def test_the_help_texts_of_python_are_read_without_importing_them(run_recipe, tmp_path):
    done = run_recipe("collect_documentation.py", "--output_file", tmp_path / "text.txt", "--packages", "pydoc_data")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "text.txt").read_text(encoding="utf-8").splitlines()) > 500

"""Write the sentences that document the installed Python packages to a text file, one a line: real English, offline.

python recipes/collect_documentation.py --output_file my_documentation.txt [--packages numpy scipy]
"""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from electra_hf.errors import InputError
from electra_hf.files import write_text
from electra_hf.recipe import run_recipe

# What `make install` brings, and what documents itself at length.
PACKAGES = [
    *("accelerate", "datasets", "huggingface_hub", "matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn"),
    *("torch", "transformers"),
]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

# What is no sentence: code in fences and at prompts, directives, tables, lines under a heading, `x : type` alone.
NO_TEXT = re.compile(
    r"```.*?(?:```|\Z)|^[ ]*(?:(?:>>>|\.\.\.|\.\. |[$|+=~]|---)[^\n]*|[\w*, ]+ : [^\n]*)$", re.DOTALL | re.MULTILINE
)
# A paragraph ends at an empty line, and before a line that names a parameter or begins an item of a list.
PARAGRAPH = re.compile(r"\n\s*\n|\n(?=[ ]*(?:[-*•] |\d+[.)] |\*{0,2}\w+\*{0,2}[ ]?(?:\(.*\))?[ ]?:))")
BEFORE_TEXT = re.compile(r"^\s*(?:[-*•] |\d+[.)] )?(?:[\w*., ]+(?:\(.*?\))?[ ]?:(?=\s))?\s*")
MARKUP = re.compile(r":[a-z:]+:(?=`)|[`*]|~(?=\w)|(?<=\w)_\b|\[(?=`)|(?<=`)\]")
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SENTENCE = re.compile(r"[A-Z].*[a-z)][.!?]")
WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*[,;:.!?]?")


@dataclass
class DocumentationArguments:
    """Which documentation, and where it goes."""

    output_file: str = field(metadata={"help": "The text file to write."})
    packages: list[str] = field(
        default_factory=lambda: list(PACKAGES), metadata={"help": "Installed packages, by the name that one imports."}
    )


def main(arguments):
    sentences = collect_documentation(arguments.packages)
    path = Path(arguments.output_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{sentence}\n" for sentence in sentences))
    print(f"{path}: {len(sentences):,} sentences of {', '.join(arguments.packages)}")


def collect_documentation(packages: list[str]) -> list[str]:
    """The sentences of the packages' documentation in the order of their files, each once. Nothing is imported.

    Packages that are not installed are left out. Raises `InputError` where none is, or none has documentation.
    """
    site, standard = (Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib"))
    files = [path for name in sorted(packages) for path in source_files(site / name)]
    files.append(standard / "pydoc_data/topics.py")  # the help texts of Python itself
    sentences = {}
    for path in files:
        for text in read_documentation(path):
            sentences |= dict.fromkeys(split_sentences(text))
    if not sentences:
        raise InputError(f"packages: none of {', '.join(packages)} has documentation in {site}.")
    return list(sentences)


def source_files(package: Path) -> list[Path]:
    """The Python files of a package in the order of their names, without tests."""
    files = sorted(package.rglob("*.py"))
    return [path for path in files if not any("test" in part for part in path.relative_to(package).parts)]


def read_documentation(path: Path) -> Iterator[str]:
    """The documentation strings of a Python file, and the long strings of a table of them such as `topics`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the file's own escapes
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # a file of another version, or a part of Python that is not installed
        return
    if path.name == "topics.py":
        tables = (node.value for node in tree.body if isinstance(node, ast.Assign))
        yield from (value.value for table in tables for value in table.values)
    for node in documented_nodes(tree):
        yield ast.get_docstring(node) or ""


def documented_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A module with its functions, its classes and their methods. (`ast.walk` would visit every name: five times slower.)"""
    yield node
    for child in node.body:
        if isinstance(child, DOCUMENTED):
            yield from documented_nodes(child)


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a documentation string, without its markup, parameter names, code and tables."""
    for paragraph in PARAGRAPH.split(NO_TEXT.sub("", text)):
        plain = MARKUP.sub("", BEFORE_TEXT.sub("", paragraph))
        for sentence in END_OF_SENTENCE.split(" ".join(plain.split())):
            if is_sentence(sentence):
                yield sentence


def is_sentence(text: str) -> bool:
    """Begins with a capital letter, ends with a mark, has 5 to 60 words, and nine in ten of them are plain words."""
    words = text.split()
    return (
        5 <= len(words) <= 60
        and SENTENCE.fullmatch(text) is not None
        and sum(WORD.fullmatch(word) is not None for word in words) >= 0.85 * len(words)
    )


if __name__ == "__main__":
    run_recipe(main, DocumentationArguments)

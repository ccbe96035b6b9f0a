"""Write the sentences that document the installed Python packages to a text file, one a line: real English, offline.

python recipes/collect_documentation.py --output_file my_documentation.txt [--packages numpy scipy]
"""

import ast
import gc
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from electra_hf.errors import InputError
from electra_hf.files import write_text
from electra_hf.recipe import run_recipe

# What `make install` brings and what documents itself at length, and the help texts of Python itself.
PACKAGES = [
    *("accelerate", "datasets", "huggingface_hub", "matplotlib", "networkx", "numpy", "pandas", "pydoc_data", "scipy"),
    *("sklearn", "torch", "transformers"),
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
    print(f"{path}: {len(sentences):,} sentences, {sum(map(len, sentences)):,} characters")


def collect_documentation(packages: list[str]) -> list[str]:
    """The sentences of the packages' documentation in the order of their files, each once. Nothing is imported.

    Of the usual packages, `PACKAGES`, those that are not installed are left out. Raises `InputError` where another one
    is not installed, or where nothing is documented.
    """
    sentences = {}  # a dictionary and no set: it keeps the order, and so every run has the same text
    files = [path for name in sorted(packages) for path in source_files(name)]
    gc.disable()  # it would look at every node of every tree again and again, and take three times as long
    try:
        for path in files:
            for text in read_documentation(path):
                sentences |= dict.fromkeys(split_sentences(text))
    finally:
        gc.enable()
    if not sentences:
        raise InputError(f"packages: no documentation was found in {', '.join(packages) or 'no package'}.")
    return list(sentences)


def source_files(package: str) -> list[Path]:
    """The Python files of an installed package in the order of their names, without its tests."""
    spec = find_spec(package) if package.isidentifier() else None  # with a dot it would import what is before it
    if spec is None and package not in PACKAGES:
        raise InputError(f"packages: {package} is no package that is installed here. Give names that can be imported.")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for folder, path in files if not any("test" in part for part in path.relative_to(folder).parts)]


def read_documentation(path: Path) -> Iterator[str]:
    """The documentation strings of a Python file, and the texts of Python's own table of help, `topics`."""
    try:
        with warnings.catch_warnings():  # of the file's own escapes
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # written for another Python, or no text
        return
    if path.parts[-2:] == ("pydoc_data", "topics.py"):
        tables = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        yield from (text.value for table in tables for text in table.values)
    for node in documented_nodes(tree):
        yield ast.get_docstring(node) or ""


def documented_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A module, its functions, its classes and their methods. (`ast.walk` would visit every name in them, too.)"""
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
    """Whether it begins with a capital, ends with a mark, and is 5 to 60 words, nearly all of them plain ones."""
    words = text.split()
    # Nearly all words, and not all: names, numbers and code words are part of such sentences.
    return (
        5 <= len(words) <= 60
        and SENTENCE.fullmatch(text) is not None
        and sum(WORD.fullmatch(word) is not None for word in words) >= 0.85 * len(words)
    )


if __name__ == "__main__":
    run_recipe(main, DocumentationArguments)

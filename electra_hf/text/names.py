"""Names that users give: how they are shown, what their endings say, and which are no names at all."""

from dataclasses import fields
from pathlib import PurePosixPath

from electra_hf.errors import InputError

# What is taken from a folder; a file that is named by itself may end in anything.
TEXT_SUFFIXES = {".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".tar", ".tgz", ".tbz2", ".txz"}
TAGGED_SUFFIXES = {".txt", ".conll", ".conllu", ".tsv"}
COMPRESSION_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
LONGEST_SHOWN = 300  # characters


def printable(name: str) -> str:
    """The name as it can be printed and saved: unprintable characters are escaped, and a long name is cut inside."""
    if len(name) > LONGEST_SHOWN:
        name = f"{name[: LONGEST_SHOWN // 2]}…{name[-LONGEST_SHOWN // 2 :]}"
    # Python has characters of its own for the bytes of a file name that is not UTF-8. No output can encode those.
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in name
    )


def refuse_blank_settings(settings: object) -> None:
    """Refuse a dataclass with a text setting, or an item of a list of them, that is empty. Raises `InputError`.

    An empty path would mean the working folder, and an unset shell variable gives one.
    """
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        # None means that nothing was chosen, which is fine.
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and not item.strip():
                raise InputError(
                    f"{setting.name}: is empty. Give a value (was a shell variable not set?), or leave it out."
                )


def inner_name(name: str) -> str:
    """The name of a file without its compression: corpus.txt for corpus.txt.gz, in lower case."""
    path = PurePosixPath(name.lower())
    return str(path.with_suffix("")) if path.suffix in COMPRESSION_SUFFIXES and path.stem != path.suffix else str(path)


def inner_suffix(name: str) -> str:
    """The ending of a file's name without its compression: .txt for corpus.txt.gz."""
    return PurePosixPath(inner_name(name)).suffix


def is_sentences(name: str) -> bool:
    """Whether this is the file of sentences in the layout of the Leipzig corpora."""
    return inner_name(name).endswith("-sentences.txt")


def is_text(name: str) -> bool:
    """Whether this is plain text, compressed or not."""
    return inner_suffix(name) == ".txt"

"""The tokenizer of a run: made once, kept with the checkpoints, and never replaced under them.

A checkpoint without the tokenizer that its rows were made with is worthless. So a tokenizer is no cache: while there
is a checkpoint to go on from, it is loaded and never written, and a command that asks for another one is refused.
"""

import hashlib
import logging
from pathlib import Path

from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from electra_hf.errors import InputError
from electra_hf.files import new_folder, set_aside
from electra_hf.text.tokenization import load_tokenizer, save_tokenizer, train_tokenizer

logger = logging.getLogger(__name__)

# The key of tokenizer_config.json that says what a tokenizer was made from. It stands inside of the tokenizer, so that
# the two can never be from different runs.
MADE_FROM = "electra_hf_made_from"


def prepare_tokenizer(
    folder: str | Path,
    texts: Dataset,
    settings: dict,
    max_length: int,
    existing: str | None = None,
    checkpoint: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a run, which lies in `folder`.

    It is trained on the column "text" of `texts` with `settings` (those of `train_tokenizer`), or is a copy of the
    `existing` one, a folder or a name on the Hub. Texts are cut to `max_length` tokens by whoever asks for truncation.
    With a `checkpoint` to go on from, its tokenizer is taken. Raises `InputError` where the command asks for another
    one than that; then nothing has been written.
    """
    source = load_tokenizer(existing) if existing else None
    wanted = {"max_length": max_length}
    wanted |= (
        {"tokenizer_name_or_path": digest_tokenizer(source)} if source else {"text": texts._fingerprint, **settings}
    )
    if checkpoint:
        # Whatever lies in `folder`: the weights of the checkpoint fit its own tokenizer alone.
        return _load_of_checkpoint(Path(checkpoint), Path(folder), wanted)
    found = _load_or_none(folder)
    # One that was made from the same text with the same settings is used again.
    if found is None or made_from(found) != wanted:
        tokenizer = source or train_tokenizer(texts, **settings)
        if found is not None:  # of a run before this one: whoever has its checkpoints may still want it
            set_aside(folder)
        _write(tokenizer, folder, wanted)
    return load_tokenizer(folder)


def load_with_checkpoint(checkpoint: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: in it, or beside it where the checkpoint is one of the first version.

    Raises `InputError` where there is none.
    """
    checkpoint = Path(checkpoint)
    inside = (checkpoint / "tokenizer.json").is_file()
    return load_tokenizer(checkpoint if inside else checkpoint.parent / "tokenizer")


def made_from(tokenizer: PreTrainedTokenizerBase) -> dict | None:
    """What the tokenizer of a run was made from: text and settings; None where it is not recorded."""
    return tokenizer.init_kwargs.get(MADE_FROM)


def digest_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of all that decides which ids a text gets: equal tokenizers have equal ones."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # what a call before may have left behind
    backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def _load_of_checkpoint(checkpoint, folder, wanted):
    tokenizer = load_with_checkpoint(checkpoint)
    recorded = made_from(tokenizer)
    # A tokenizer of the first version says nothing; the rows that it makes are compared before the first step.
    for name in sorted({*(recorded or {}), *wanted}) if recorded else ():
        if recorded.get(name) != wanted.get(name):
            raise InputError(_difference(checkpoint, name, recorded.get(name), wanted.get(name)))
    found = _load_or_none(folder)
    if found is None or digest_tokenizer(found) != digest_tokenizer(tokenizer):
        _write(tokenizer, folder, recorded)  # the checkpoint's is the run's
    return tokenizer


def _difference(checkpoint, name, before, now):
    way_out = "Restore it to go on; or choose another output_dir, or resume_from_checkpoint: never, to start afresh."
    if name == "text":
        return f"{checkpoint} belongs to a run with other text: corpus_files or its settings have changed. {way_out}"
    before, now = ("not set" if value is None else value for value in (before, now))
    return f"{checkpoint} belongs to a run with another tokenizer: {name} was {before}, now {now}. {way_out}"


def _load_or_none(folder):
    """The tokenizer in the folder, or None where none can be loaded; a warning says so if the folder is there."""
    try:
        return load_tokenizer(folder)
    except InputError as error:
        if Path(folder).exists():
            logger.warning("%s It is made anew.", error)
        return None


def _write(tokenizer, folder, recorded):
    if recorded is not None:
        tokenizer.init_kwargs[MADE_FROM] = recorded
        tokenizer.model_max_length = recorded["max_length"]
    with new_folder(folder) as unfinished:
        save_tokenizer(tokenizer, unfinished)

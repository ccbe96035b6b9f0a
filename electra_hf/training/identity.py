"""What makes two starts the same run: a checkpoint says which run it belongs to, and no other goes on from it."""

import hashlib
import json
import logging
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer

from electra_hf.errors import InputError
from electra_hf.files import digest, read_json, write_json
from electra_hf.text.packing import PackedRows
from electra_hf.text.run_tokenizer import digest_tokenizer

logger = logging.getLogger(__name__)

RUN = "run.json"
# A run that differs in one of these does not go on where its checkpoint stopped.
_SETTINGS = (
    *("seed data_seed world_size generator_only_steps discriminator_warmup_steps").split(),
    *("learning_rate warmup_steps lr_scheduler_type optim").split(),
    *("weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm").split(),
)
# These may change; the run goes on with the new ones, and says so.
_MAY_CHANGE = ("bf16", "fp16", "tf32", "torch_compile", "logging_steps", "save_steps", "eval_steps")
_CHANGED = "changed"
_NO_SETTINGS = ("transformers_version", "dtype", "architectures", "_name_or_path")  # what a config notes besides


def describe_run(trainer: Trainer, max_steps: int) -> dict:
    """What a run of `max_steps` has in common with its checkpoints, and what may change on the way."""
    settings = {name: getattr(trainer.args, name) for name in _SETTINGS}
    rows = trainer.train_dataset
    sample = hashlib.sha256()
    for index in range(0, len(rows), max(1, len(rows) // 256)):  # all would take minutes on a large corpus
        sample.update(rows[index]["input_ids"].numpy().tobytes())
    identity = {
        "rows (corpus_files, tokenizer, max_length)": {"number": len(rows), "sha256": sample.hexdigest()},
        # The product counts, not its parts: twice as many micro-batches of half the size are the same step.
        "rows of a step": trainer._tokens_per_step() // rows[0]["input_ids"].shape[0],
        "settings": settings,
        "model": trainer.model.config.to_dict(),
        # Under a key of its own: a difference in here is told, one anywhere else is refused.
        _CHANGED: {
            **{name: getattr(trainer.args, name) for name in _MAY_CHANGE},
            "device": trainer.args.device.type,
            "steps in all, and with them the learning rate of each": max_steps,
        },
    }
    if trainer.processing_class is not None:
        identity["tokenizer"] = digest_tokenizer(trainer.processing_class)
    return identity


def describe_data(
    report: dict,
    tokenizer: PreTrainedTokenizerBase,
    train_rows: PackedRows,
    test_rows: PackedRows,
    checkpoint: str | None,
) -> dict:
    """What every process of a run must have before it: the text, the vocabulary, all rows, and where to go on from.

    `report` is that of `load_corpus`, `checkpoint` None at a new beginning.
    """
    rows = {"train": train_rows, "test": test_rows}
    return {
        "text (corpus_files)": report["fingerprint"],
        "vocabulary": {"entries": len(tokenizer), "sha256": digest_tokenizer(tokenizer)},
        "rows": {name: {"number": len(part), "sha256": part.digest()} for name, part in rows.items()},
        "checkpoint": checkpoint
        and {"name": Path(checkpoint).name, "weights": digest(Path(checkpoint) / "model.safetensors")},
    }


def save_identity(checkpoint: str | Path, identity: dict) -> None:
    """Write what has to be the same in a run that goes on from this checkpoint, before its manifest is written."""
    write_json(Path(checkpoint) / RUN, identity)


def check_same_run(checkpoint: str | Path, identity: dict) -> None:
    """Refuse to go on from the checkpoint of another run. Raises `InputError` that names every difference."""
    file = Path(checkpoint) / RUN
    saved = flatten(read_json(file)) if file.is_file() else {}
    # Through JSON once, as what was saved: a tuple is then a list on both sides.
    now = flatten(json.loads(json.dumps(identity)))
    # A field that only one of them has belongs to another version of a library.
    changed = [key for key in saved if saved[key] != now.get(key, saved[key])]
    told = [key for key in changed if key.startswith(f"{_CHANGED}.")]
    if told:
        logger.warning(
            "The run goes on from %s with other settings than before: %s.",
            *(checkpoint, "; ".join(f"{key.partition('.')[2]}: {saved[key]!r}, now {now[key]!r}" for key in told)),
        )
    differences = [f"{key} was {saved[key]!r}, now {now[key]!r}" for key in changed if key not in told]
    if differences:
        raise InputError(
            f"{checkpoint} belongs to a run with other settings: {'; '.join(differences)}. Restore them to go on "
            "from it; or choose another output_dir, or `resume_from_checkpoint: never`, to start afresh."
        )


def check_tokenizer_belongs(checkpoint: str | Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that the rows of a checkpoint were not made with. Raises `InputError`."""
    file = Path(checkpoint) / RUN
    recorded = read_json(file).get("tokenizer") if file.is_file() else None
    # Checkpoints of the first version say nothing; a tokenizer of another size is surely not theirs.
    fits = recorded == digest_tokenizer(tokenizer) if recorded else len(tokenizer) == vocab_size
    if not fits:
        raise InputError(
            f"checkpoint: the tokenizer of {checkpoint} is not the one that it was trained with. Put the right one "
            "there, from the run's folder tokenizer/ or from another checkpoint of the same run."
        )


def flatten(facts: dict, prefix: str = "") -> dict:
    """Facts by the dotted name of each, without what a config notes besides."""
    flat = {}
    for key, value in facts.items():
        if key not in _NO_SETTINGS:
            flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

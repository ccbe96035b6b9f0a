"""Train a tokenizer whose accents survive, save it so that every reader of it agrees, and measure it."""

import json
import logging
import math
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from electra_hf.errors import InputError

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
TOKENIZER_TYPES = ("wordpiece", "bpe")

# A character rarer than 0.01 / vocab_size (an average token: 0.25 / vocab_size) gets no token, and WordPiece reads its
# word as [UNK]. On four Esperanto corpora 285 of 4,096 tokens are single characters with it, 969 without.
MIN_CHARACTER_SHARE = 0.01
# The trainer's memory grows with the distinct words, so a larger corpus is sampled at even steps.
MAX_TRAINING_CHARACTERS = 100_000_000
MAX_MEASURED_CHARACTERS = 10_000_000
MAX_WORD_CHARACTERS = 100  # BERT's limit: WordPiece reads a longer word as [UNK]
# The trainer needs minutes for one "word" of a million characters (base64, a broken file), so it sees them in pieces.
LONG_WORD = re.compile(rf"(\S{{{MAX_WORD_CHARACTERS}}})(?=\S)")


def round_up_vocab_size(vocab_size: int) -> int:
    """The next multiple of 64: matrix products over the vocabulary are fastest there."""
    return math.ceil(vocab_size / 64) * 64


def train_tokenizer(
    texts: Iterable[str] | Dataset,
    vocab_size: int = 52_000,
    tokenizer_type: str = "wordpiece",
    lowercase: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Train a WordPiece or byte-level BPE tokenizer on texts, or on the "text" column of a dataset.

    `vocab_size` is rounded up to a multiple of 64. A small corpus gives fewer tokens; the vocabulary is then filled
    with [unused0], [unused1], … to the next multiple of 64, so that `len(tokenizer)` is one in every case and each id
    that a generator can sample has a token. A warning tells it. Of more than 100 million characters
    an even sample is read. The WordPiece trainer is not deterministic: train once, let every process load the files.
    Raises `InputError` for an unknown type, a size below 1, or no text.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise InputError(f"tokenizer_type: expected one of {', '.join(TOKENIZER_TYPES)}, got '{tokenizer_type}'.")
    if vocab_size < 1:
        raise InputError(f"vocab_size: expected a positive number of tokens, got {vocab_size}.")
    texts = _as_sequence(texts)
    vocab_size = round_up_vocab_size(vocab_size)
    alphabet_size = _alphabet_size(texts, vocab_size, lowercase)
    if tokenizer_type == "wordpiece":
        backend, trainer = _wordpiece(vocab_size, alphabet_size, lowercase)
    else:
        backend, trainer = _byte_level_bpe(vocab_size, lowercase)
    batches = _batches(texts, MAX_TRAINING_CHARACTERS)
    backend.train_from_iterator(([LONG_WORD.sub(r"\1 ", text) for text in batch] for batch in batches), trainer)
    tokens = backend.get_vocab_size()
    if tokens < vocab_size - 64:
        logger.warning("vocab_size: the corpus gives %s tokens, not the %s that were asked for.", tokens, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=_fill_vocabulary(backend),
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        # ElectraTokenizer builds its own normalizer from these two; its defaults would turn ŝ into s.
        do_lower_case=lowercase,
        strip_accents=False,
        add_prefix_space=tokenizer_type == "bpe",  # transformers 4.57 would switch it off
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS},
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | Path):
    """Save it so that transformers 4.57 and 5, `AutoTokenizer` and an explicit `ElectraTokenizer` read the same.

    Whatever saves a tokenizer later (`Trainer` does, into its checkpoints) writes the library's own class name again:
    folders for users are saved here.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config["tokenizer_class"] == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that 4.57 knows too
        # No code comes with a tokenizer and none is run. In 5.23 this key alone makes an explicit ElectraTokenizer
        # take tokenizer.json as it is; without it NFC is lost, and byte-level BPE is read as WordPiece, all [UNK].
        config["trust_remote_code"] = True
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub and check that an ELECTRA can be trained with it.

    Raises `InputError` where there is none, or where it lacks a token that the rows or the generator need.
    """
    hint = "Give a folder or a Hub name with a BERT-like tokenizer, or let the recipe train one."
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except Exception as error:  # the library lets a broken file raise whatever it leads to, KeyError and TypeError too
        reason = textwrap.shorten(str(error), 200)
        raise InputError(f"{name_or_path} holds no tokenizer that can be loaded ({reason}). {hint}") from None
    # From a folder with a model and no tokenizer, transformers 5 makes one that knows its special tokens alone.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"{name_or_path} holds no tokenizer files. {hint}")
    missing = [name for name in ("pad", "cls", "sep", "mask") if getattr(tokenizer, f"{name}_token") is None]
    if missing:
        raise InputError(f"The tokenizer of {name_or_path} has no {' and no '.join(missing)} token. {hint}")
    if not tokenizer.is_fast:
        raise InputError(f"The tokenizer of {name_or_path} has no fast version (tokenizer.json). {hint}")
    return tokenizer


def find_continuations(tokenizer) -> torch.Tensor:
    """Which vocabulary entries go on with a word that another one began: (len(tokenizer),) bool.

    WordPiece marks those (`##ing`); byte-level BPE and SentencePiece mark the others, those that begin one (`Ġthe`,
    `▁the`). Raises `InputError` where nothing is marked.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    if any(token.startswith("##") for token in tokens):
        return torch.tensor([token.startswith("##") for token in tokens])
    for mark in ("Ġ", "▁"):
        if any(token.startswith(mark) for token in tokens):
            return torch.tensor([not token.startswith(mark) and i not in special for i, token in enumerate(tokens)])
    raise InputError(
        "whole_word_selection: this tokenizer does not mark where a word begins or goes on (##, Ġ or ▁). "
        "Leave it out, or train a tokenizer here."
    )


def measure_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] | Dataset) -> dict:
    """How well a vocabulary fits the texts, without special tokens, on at most ten million characters of them.

    - `vocab_size`: ids, special and unused ones included
    - `fertility`: tokens per word, a word being what stands between white space (1 is best)
    - `unknown_share`: share of the tokens that are [UNK]
    """
    num_words = num_tokens = num_unknown = 0
    for batch in _batches(_as_sequence(texts), MAX_MEASURED_CHARACTERS):
        num_words += sum(len(text.split()) for text in batch)
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            num_tokens += len(encoding.ids)
            num_unknown += encoding.ids.count(tokenizer.unk_token_id)
    return {
        "vocab_size": len(tokenizer),
        "fertility": num_tokens / max(num_words, 1),
        "unknown_share": num_unknown / max(num_tokens, 1),
    }


def _wordpiece(vocab_size, alphabet_size, lowercase):
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS))
    # BertNormalizer alone neither composes c + ^ to ĉ nor, with lowercase and its default, keeps the accent.
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=lowercase, strip_accents=False)]
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = _template()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, limit_alphabet=alphabet_size, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return backend, trainer


def _byte_level_bpe(vocab_size, lowercase):
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC()] + [normalizers.Lowercase()] * lowercase)
    # With a space before the first word, a word has the same tokens at the start of a sentence and inside it.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _template()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # 256 bytes: any text can be written
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    return backend, trainer


def _template():
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )


def _fill_vocabulary(backend):
    """Add [unusedN] up to a multiple of 64, as plain vocabulary: no text is ever split into them."""
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    size = len(vocabulary)
    for number in range(round_up_vocab_size(size) - size):
        vocabulary[f"[unused{number}]"] = size + number
    return Tokenizer.from_str(json.dumps(state))


def _alphabet_size(texts, vocab_size, lowercase):
    """How many characters are frequent enough for a token of their own. Raises `InputError` where there is none."""
    counts = Counter()
    for batch in _batches(texts, MAX_TRAINING_CHARACTERS):
        text = unicodedata.normalize("NFC", "".join(batch))
        counts.update(text.lower() if lowercase else text)
    for space in filter(str.isspace, list(counts)):
        del counts[space]
    if not counts:
        raise InputError("There is no text to train a tokenizer on: every text is empty or white space.")
    threshold = counts.total() * MIN_CHARACTER_SHARE / vocab_size
    return sum(count >= threshold for count in counts.values())


def _as_sequence(texts):
    # A generator can be read once only, and the texts are read twice.
    if isinstance(texts, Dataset):
        return texts["text"]
    return texts if isinstance(texts, list) else list(texts)


def _batches(texts, max_characters, batch_size=1_000):
    """Yield lists of texts, of a large corpus every n-th text only so that they hold about `max_characters`."""
    probe = texts[:: max(1, len(texts) // 1_000)]
    mean_length = sum(map(len, probe)) / max(len(probe), 1)
    step = max(1, math.ceil(len(texts) * mean_length / max_characters))
    for start in range(0, len(texts), batch_size * step):
        yield texts[start : start + batch_size * step : step]

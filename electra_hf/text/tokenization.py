"""Train a tokenizer whose accents survive, save it so that every reader of it agrees, and measure it."""

import json
import logging
import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import models
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from electra_hf.errors import InputError
from electra_hf.text.characters import clean_characters
from electra_hf.text.vocabularies import BUILDERS, MAX_WORD_CHARACTERS, batches, round_up_vocab_size

logger = logging.getLogger(__name__)

MAX_MEASURED_CHARACTERS = 10_000_000
MOST_UNKNOWN = 0.01  # share of the characters; above it a warning says why
# Of ten languages with blanks between words, 41 to 76 % of the entries begin one. Of Thai, and in BPE and Unigram of
# Chinese and Japanese, 3 to 16 % do: only phrases have blanks before them. (8,000 entries, FLORES-200.)
FEWEST_BEGINNINGS = 0.2
UNREADABLE = "\U0001d356"  # a sign of the Tai Xuan Jing, which no vocabulary has
UNUSED = re.compile(r"\[unused\d+\]")


def train_tokenizer(
    texts: Iterable[str] | Dataset,
    vocab_size: int = 52_000,
    tokenizer_type: str = "wordpiece",
    lowercase: bool = False,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """Train a WordPiece, byte-level BPE or Unigram tokenizer on texts, or on the "text" column of a dataset.

    The same texts in the same order, with the same settings, give the same tokenizer, byte for byte. `vocab_size` is
    rounded up to a multiple of 64. A small corpus gives fewer tokens; the vocabulary is then filled with [unused0],
    [unused1], … to the next multiple of 64, so that `len(tokenizer)` is one in every case and each id that a generator
    can sample has a token. A warning says so. Of more than 100 million characters an even sample is read. Lower case
    is Unicode's, which is wrong for the i of Turkish and Azeri (I is not the capital of i there): leave it off.
    Raises `InputError` for an unknown type, a size below 1, or no text.
    """
    if tokenizer_type not in BUILDERS:
        raise InputError(f"tokenizer_type: expected one of {', '.join(BUILDERS)}, got '{tokenizer_type}'.")
    if vocab_size < 1:
        raise InputError(f"vocab_size: expected a positive number of tokens, got {vocab_size}.")
    vocab_size = round_up_vocab_size(vocab_size)
    backend = BUILDERS[tokenizer_type](_as_sequence(texts), vocab_size, lowercase)
    tokens = sum(not UNUSED.fullmatch(token) for token in backend.get_vocab())
    if tokens < vocab_size - 64:
        logger.warning("vocab_size: the corpus gives %s tokens, not the %s that were asked for.", tokens, vocab_size)
    special_tokens = {
        f"{token.content.strip('[]').lower()}_token": token for token in backend.get_added_tokens_decoder().values()
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        # ElectraTokenizer builds its own normalizer from these two; its defaults would turn ŝ into s.
        do_lower_case=lowercase,
        strip_accents=False,
        add_prefix_space=tokenizer_type == "bpe",  # transformers 4.57 would switch it off
        **special_tokens,
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
    _check_vocabulary(tokenizer, name_or_path)
    return tokenizer


def _check_vocabulary(tokenizer, name_or_path):
    # Lines that occur twice or are empty in a vocab.txt leave numbers without a token: the model would be too small.
    ids = set(tokenizer.get_vocab().values())
    if ids != set(range(len(tokenizer))):
        gaps = [i for i in range(max(ids)) if i not in ids]
        named = ", ".join(map(str, gaps[:5])) + ", …" * (len(gaps) > 5)
        raise InputError(
            f"The vocabulary of {name_or_path} has {len(ids)} tokens, but their ids go up to {max(ids)}: none has the "
            f"id {named}. In a vocab.txt the id is the number of the line, from 0: remove duplicate and empty lines. "
            "Or let the recipe train a tokenizer."
        )
    try:
        tokenizer.backend_tokenizer.encode(UNREADABLE)
    except Exception as error:  # the library has no class for it
        raise InputError(
            f"The vocabulary of {name_or_path} has no token for what it cannot read ({error}). Put [UNK] into it, or "
            "let the recipe train a tokenizer."
        ) from None


def find_continuations(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Which vocabulary entries go on with a word that another one began: (len(tokenizer),) bool.

    WordPiece marks those (`##ing`); byte-level BPE and SentencePiece mark the others, those that begin one (`Ġthe`,
    `▁the`). Raises `InputError` where nothing is marked, and where the marks stand for phrases and not for words.
    """
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_ids)
    marks = [mark for mark in ("##", "Ġ", "▁") if any(token.startswith(mark) for token in tokens)]
    if not marks and isinstance(tokenizer.backend_tokenizer.model, models.WordPiece):
        raise InputError(
            "whole_word_selection: no entry of this vocabulary goes on with a word (##). In a script without blanks "
            "every character is a word of its own, so the setting would change nothing. Leave it out."
        )
    if not marks:
        raise InputError(
            "whole_word_selection: this tokenizer does not mark where a word begins or goes on (##, Ġ or ▁). "
            "Leave it out, or train a tokenizer here."
        )
    mark = marks[0]
    goes_on = [token.startswith(mark) == (mark == "##") and i not in special for i, token in enumerate(tokens)]
    # Single characters say nothing about a language: they are there in both forms.
    parts = [
        on
        for token, on in zip(tokens, goes_on, strict=True)
        if len(token.removeprefix(mark)) > 1 and not UNUSED.fullmatch(token)
    ]
    begins = 1 - sum(parts) / max(len(parts), 1)
    if begins < FEWEST_BEGINNINGS:
        raise InputError(
            f"whole_word_selection: only {begins:.0%} of this vocabulary begins a word. The text is written without "
            "blanks between words, so a whole word would be a whole phrase. Leave it out."
        )
    return torch.tensor(goes_on)


def measure_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str] | Dataset) -> dict:
    """How well a vocabulary fits the texts, without special tokens, on at most ten million characters of them.

    - `vocab_size`: ids, special and unused ones included
    - `fertility`: tokens per word, a word being what stands between white space (1 is best)
    - `unknown_share`: share of the tokens that are [UNK]
    - `unknown_character_share`: share of the characters that are inside an [UNK], blanks aside. One [UNK] can hold a
      whole phrase of a language without blanks, so this is the number to look at.
    - `changed_word_share`: share of the words whose spelling the normalizer changes (it strips accents, say). Form
      NFC, lower case where the tokenizer has that, and the rule of `clean_characters` do not count.

    A warning names the characters and the cause where more than 1 % of them are inside [UNK].
    """
    backend = tokenizer.backend_tokenizer
    num_words = num_tokens = num_unknown = num_characters = num_changed = 0
    unknown = Counter()
    for batch in batches(_as_sequence(texts), MAX_MEASURED_CHARACTERS):
        words = [word for text in batch for word in text.split()]
        num_words += len(words)
        num_characters += sum(map(len, words))
        num_changed += _count_changed(backend.normalizer, words)
        encodings = backend.encode_batch_fast(batch, add_special_tokens=False)
        num_tokens += sum(len(encoding.ids) for encoding in encodings)
        holed = [text for text, e in zip(batch, encodings, strict=True) if tokenizer.unk_token_id in e.ids]
        # Once more, for the offsets that the fast way leaves out.
        for text, encoding in zip(holed, backend.encode_batch(holed, add_special_tokens=False), strict=True):
            spans = [
                span for span, i in zip(encoding.offsets, encoding.ids, strict=True) if i == tokenizer.unk_token_id
            ]
            num_unknown += len(spans)
            unknown.update("".join(text[start:end].split()) for start, end in spans)
    num_lost = sum(len(span) * count for span, count in unknown.items())
    if num_lost > MOST_UNKNOWN * num_characters:
        logger.warning(
            "The tokenizer cannot read %.1f %% of the characters of this text. %s",
            100 * num_lost / num_characters,
            _explain(tokenizer, unknown),
        )
    return {
        "vocab_size": len(tokenizer),
        "fertility": num_tokens / max(num_words, 1),
        "unknown_share": num_unknown / max(num_tokens, 1),
        "unknown_character_share": num_lost / max(num_characters, 1),
        "changed_word_share": num_changed / max(num_words, 1),
    }


def _count_changed(normalizer, words):
    if normalizer is None:
        return 0
    lowers = normalizer.normalize_str("A") == "a"

    def letters(text):
        # Without blanks, since some normalizers set them round characters. Σ has two small letters, σ and final ς:
        # Python and the tokenizers library do not choose alike.
        cleaned = clean_characters(text.lower()).replace("ς", "σ") if lowers else clean_characters(text)
        return cleaned.replace(" ", "")

    text = " ".join(words)
    if letters(normalizer.normalize_str(text)) == letters(text):  # as nearly always: all at once is fast
        return 0
    return sum(letters(normalizer.normalize_str(word)) != letters(word) for word in words)


def _explain(tokenizer, unknown):
    """Why these pieces of text, {piece: how often}, became [UNK]."""
    lengths = {piece: len(piece) * count for piece, count in unknown.items()}
    too_long = sum(length for piece, length in lengths.items() if len(piece) > MAX_WORD_CHARACTERS)
    if too_long > sum(lengths.values()) / 2:
        return "It reads more than 100 characters without a blank as one unknown word. Put blanks between words."
    counts = Counter()
    for piece, count in unknown.items():
        counts.update(dict.fromkeys(piece, count))
    encode, unk = tokenizer.backend_tokenizer.encode, tokenizer.unk_token_id
    missing = [c for c, _ in counts.most_common() if unk in encode(c).ids]
    if not missing:
        return f"It knows the characters, but not where they stand, as in '{max(lengths, key=lengths.get)[:40]}'."
    named = ", ".join(f"{c} (U+{ord(c):04X}, {counts[c]:,} ×)" for c in missing[:5])
    tokens = [token.removeprefix("##").removeprefix("▁") for token in tokenizer.get_vocab()]
    if sum(len(token) == 1 for token in tokens) > len(tokens) / 2:
        cause = f"vocab_size is too small for this script: of {len(tokens):,} entries most are single characters"
    else:
        cause = "the text that it was trained on did not have them, or very rarely"
    return f"It has no token for {named}: {cause}."


def _as_sequence(texts):
    # A generator can be read once only, and the texts are read twice.
    if isinstance(texts, Dataset):
        return texts["text"]
    return texts if isinstance(texts, list) else list(texts)

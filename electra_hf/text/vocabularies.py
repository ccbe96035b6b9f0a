"""From texts to a vocabulary: WordPiece, byte-level BPE and Unigram, each a function of texts and settings alone.

The same texts with the same settings give the same tokenizer, byte for byte, in any process, with any number of
threads. The trainers of the tokenizers library keep that promise only where nothing is taken in the order of a hash
map; the comments below say where it would be.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from electra_hf.errors import InputError
from electra_hf.text.characters import character_normalizer, clean_characters
from electra_hf.text.unigram import MAX_PIECE_CHARACTERS, train_unigram

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4

# A character rarer than 0.01 / vocab_size (an average token: 0.25 / vocab_size) gets no token, and WordPiece reads its
# word as [UNK]. On four Esperanto corpora 285 of 4,096 tokens are single characters with it, 969 without.
MIN_CHARACTER_SHARE = 0.01
# The trainer's memory grows with the distinct words, so a larger corpus is sampled at even steps.
MAX_TRAINING_CHARACTERS = 100_000_000
# BERT's limit: WordPiece reads a longer word as [UNK], and the trainers need minutes for one of a million characters
# (base64, a language without blanks). Every type cuts it, in training and in use, so what was learned is what is met.
MAX_WORD_CHARACTERS = 100

NO_TEXT = "There is no text to train a tokenizer on: every text is empty or white space."

_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\x{20000}-\x{323af}]\p{M}*"
# Letters with the marks and joiners that belong to them, or digits, or other signs, each with the blank before it.
# GPT-2's expression has no marks among the letters: it breaks a Tamil or Hindi word at each vowel sign. The last two
# are the dots between the syllables of a Tibetan word, which Unicode calls punctuation.
_LETTERS = r"\p{L}\p{M}\u200c\u200d\u0f0b\u0f0c"
_WORD = r"{0}?[{1}]{{1,{2}}}|{0}?\p{{N}}{{1,{2}}}|{0}?[^\s{0}{1}\p{{N}}]{{1,{2}}}|[\s{0}]+"


def build_wordpiece(texts: Sequence[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """A WordPiece tokenizer: words parted at blanks, punctuation and Han characters, `##` inside a word."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS))
    backend.normalizer = character_normalizer(lowercase)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_HAN), "isolated"),
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.FixedLength(MAX_WORD_CHARACTERS),
        ]
    )
    backend.decoder = decoders.WordPiece()
    backend.post_processor = _template()

    # What stands inside one text only at a word's start ("p" of "pH") can stand inside a word elsewhere: both forms
    # get a token. Signs that are words of their own never go on with one.
    def forms(character):
        return 2 - (len(backend.pre_tokenizer.pre_tokenize_str(f"a{character}a")) > 1)

    alphabet = choose_alphabet(count_characters(texts, lowercase), vocab_size, forms)
    continuing = sorted(f"##{character}" for character in alphabet if forms(character) == 2)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        # Left alone, the trainer numbers the `##` forms as it meets them in a hash map, and breaks ties by number.
        special_tokens=SPECIAL_TOKENS + continuing,
        show_progress=False,
    )
    backend.train_from_iterator(batches(texts, MAX_TRAINING_CHARACTERS), trainer)
    return _with_vocabulary(backend, _fill(_trained(backend)["vocab"]), mask_takes_blank=False)


def build_byte_level_bpe(texts: Sequence[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """A byte-level BPE tokenizer: any text can be written with its 256 bytes, so it has no use for [UNK]."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = character_normalizer(lowercase)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # With a blank before the first word, a word has the same tokens at the start of a text and inside it.
            pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
            _split_into_words(" "),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    # The blank that was put before the first word is taken away again.
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), _template()])
    if not any(clean_characters(text) for batch in batches(texts, MAX_TRAINING_CHARACTERS) for text in batch):
        raise InputError(NO_TEXT)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    backend.train_from_iterator(batches(texts, MAX_TRAINING_CHARACTERS), trainer)
    return _with_vocabulary(backend, _fill(_trained(backend)["vocab"]), mask_takes_blank=True)


def build_unigram(texts: Sequence[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """A Unigram tokenizer: the most probable of all ways to write a word, `▁` for the blank before it."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = character_normalizer(lowercase)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first", split=False), _split_into_words("▁")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.post_processor = _template()
    counts = count_characters(texts, lowercase)
    alphabet = choose_alphabet(counts + Counter({"▁": counts.total()}), vocab_size, lambda character: 1)
    size = vocab_size - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * size,  # twice as many pieces as will stay; four times as many were no better
        min_frequency=2,
        initial_alphabet=sorted(alphabet),
        limit_alphabet=len(alphabet),
        max_token_length=MAX_PIECE_CHARACTERS,
        show_progress=False,
    )
    backend.train_from_iterator(batches(texts, MAX_TRAINING_CHARACTERS), trainer)
    scores = train_unigram(
        _trained(backend)["vocab"], _count_words(backend.pre_tokenizer, texts, lowercase), alphabet, size
    )
    special = dict.fromkeys(SPECIAL_TOKENS, 0.0)
    vocabulary = _fill(special | scores, lambda number: min(scores.values()) - 10)
    backend.model = models.Unigram(list(vocabulary.items()), SPECIAL_TOKENS.index("[UNK]"))
    return _with_vocabulary(backend, list(vocabulary.items()), mask_takes_blank=True)


BUILDERS: dict[str, Callable[[Sequence[str], int, bool], Tokenizer]] = {
    "wordpiece": build_wordpiece,
    "bpe": build_byte_level_bpe,
    "unigram": build_unigram,
}


def choose_alphabet(counts: Counter, vocab_size: int, forms: Callable[[str], int]) -> set[str]:
    """The characters that get tokens, `forms(character)` each: the frequent ones, as far as the vocabulary holds them.

    A warning says what had to be left out, and which size would hold all. Raises `InputError` where there is none.
    """
    if not counts:
        raise InputError(NO_TEXT)
    threshold = counts.total() * MIN_CHARACTER_SHARE / vocab_size
    wanted = sorted((c for c, count in counts.items() if count >= threshold), key=lambda c: (-counts[c], c))
    tokens = list(accumulate(map(forms, wanted), initial=len(SPECIAL_TOKENS)))
    alphabet = {c for c, needed in zip(wanted, tokens[1:], strict=True) if needed <= vocab_size}
    if len(alphabet) < len(wanted):
        lost = sum(counts[c] for c in wanted if c not in alphabet) / counts.total()
        logger.warning(
            "vocab_size: %s entries hold %s of the %s characters of the corpus; words with one of the others, %.2g %% "
            "of its characters, become [UNK]. All of them need %s entries, and words need more.",
            *(f"{vocab_size:,}", f"{len(alphabet):,}", f"{len(wanted):,}", 100 * lost),
            f"{round_up_vocab_size(tokens[-1]):,}",
        )
    return alphabet


def count_characters(texts: Sequence[str], lowercase: bool) -> Counter:
    """How often each character occurs in the texts as `character_normalizer` leaves them, blanks aside."""
    counts = np.zeros(0x110000, np.int64)
    for batch in batches(texts, MAX_TRAINING_CHARACTERS):
        # A bin for each code point: ten times as fast as a Counter, and it never grows.
        codes = np.frombuffer(_clean(batch, lowercase).encode("utf-32-le"), np.uint32)
        counts += np.bincount(codes, minlength=len(counts))
    counts[ord(" ")] = 0
    return Counter({chr(code): int(counts[code]) for code in counts.nonzero()[0]})


def _count_words(pre_tokenizer, texts, lowercase):
    """How often each word of the pre-tokenizer occurs in the texts."""
    counts, words = Counter(), Counter()
    for batch in batches(texts, MAX_TRAINING_CHARACTERS):
        counts.update(_clean(batch, lowercase).split(" "))
    del counts[""]
    for word, count in counts.items():  # each once: the pre-tokenizer parts at blanks too
        for piece, _ in pre_tokenizer.pre_tokenize_str(word):
            words[piece] += count
    return words


def _clean(batch, lowercase):
    text = "\n".join(batch)  # a line break becomes a blank
    return clean_characters(text.lower() if lowercase else text)  # three times as fast as the normalizer


def _split_into_words(blank):
    return pre_tokenizers.Split(Regex(_WORD.format(blank, _LETTERS, MAX_WORD_CHARACTERS)), "isolated")


def _template():
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )


def _trained(backend):
    return json.loads(backend.to_str())["model"]


def _fill(vocabulary, value=lambda number: number):
    """Add [unusedN] up to a multiple of 64, as plain vocabulary: no text is ever split into them."""
    size = len(vocabulary)
    unused = {f"[unused{number}]": value(size + number) for number in range(round_up_vocab_size(size) - size)}
    return vocabulary | unused


def _with_vocabulary(backend, vocabulary, mask_takes_blank):
    """The tokenizer with this vocabulary in its model, and with its special tokens.

    In byte-level BPE and Unigram a blank belongs to the word behind it. [MASK], which stands for such a word, takes it
    along: "la [MASK]" must not leave a token for the blank alone.
    """
    state = json.loads(backend.to_str())
    state["model"]["vocab"] = vocabulary
    state["added_tokens"] = []
    finished = Tokenizer.from_str(json.dumps(state))
    finished.add_special_tokens([AddedToken(t, lstrip=mask_takes_blank and t == "[MASK]") for t in SPECIAL_TOKENS])
    return finished


def round_up_vocab_size(vocab_size: int) -> int:
    """The next multiple of 64: matrix products over the vocabulary are fastest there."""
    return math.ceil(vocab_size / 64) * 64


def batches(texts: Sequence[str], max_characters: int, batch_size: int = 1_000) -> Iterator[list[str]]:
    """Yield lists of texts, of a large corpus every n-th text only so that they hold about `max_characters`."""
    probe = texts[:: max(1, len(texts) // 1_000)]
    mean_length = sum(map(len, probe)) / max(len(probe), 1)
    step = max(1, math.ceil(len(texts) * mean_length / max_characters))
    for start in range(0, len(texts), batch_size * step):
        yield texts[start : start + batch_size * step : step]

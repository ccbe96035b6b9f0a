"""Tagged sentences found again in running text, however they are spaced: a test must not be read in pretraining."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate, chain

from electra_hf.text.sources import Source
from electra_hf.text.tagged_text import TaggedSentence, read_source

# A shorter sentence ("Jes.") stands by chance inside of many others, and counts only where it stands as a sentence.
FEWEST_CHARACTERS, FEWEST_WORDS = 12, 6  # one of the two is enough; a Chinese character is a word
START = 6  # characters by which a sentence is looked up
SENTENCE_ENDS = set(".!?…。！？｡।॥؟۔։።၊။។៕")
END = "\0"  # stands for the end of a sentence in the spelling of a text; no text holds one
# The scripts that set no blanks between words: in them, a sentence may begin at any character.
WITHOUT_BLANKS = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI ", "BOPOMOFO")


class _Spelling(dict):
    """A table for `str.translate` that leaves letters, marks and digits of words, filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        self[code] = self._letter(chr(code))
        return self[code]

    def _letter(self, character):
        if character in SENTENCE_ENDS:
            return END
        if unicodedata.category(character)[0] not in "LMN":
            return "" if unicodedata.category(character) == "Cf" else " "
        return f" {character}" if unicodedata.name(character, "").startswith(WITHOUT_BLANKS) else character


_SPELLING = _Spelling()


def _spell(text):
    """The words of a text in lower case, with blanks between and `END` where a sentence ends.

    A word is a run of letters, marks and digits: the same in running and in tokenised text.
    """
    return unicodedata.normalize("NFC", text).casefold().translate(_SPELLING)


def sentence_key(text: str) -> str:
    """What is left of a sentence without blanks, punctuation and case: equal for running and for tokenised text."""
    return _join(_spell(text))


def spelled_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; a character of a script without blanks is a word."""
    return _split(_spell(text))


def _split(spelling):
    return spelling.replace(END, " ").split()


def _join(spelling):
    return "".join(_split(spelling))


class TaggedSentences:
    """The sentences of tagged files, and which of them were found in running text."""

    def __init__(self, sentences: Iterable[TaggedSentence]):
        spellings = [_spell(sentence.text or " ".join(sentence.words)) for sentence in sentences]
        self._number_of = Counter(map(_join, spellings))
        del self._number_of[""]  # a sentence of punctuation alone is not worth telling apart
        self._found = set()
        self._by_start = defaultdict(set)
        for spelling in spellings:
            key = _join(spelling)
            if len(key) >= FEWEST_CHARACTERS or len(_split(spelling)) >= FEWEST_WORDS:
                self._by_start[key[:START]].add(key)

    @classmethod
    def of_files(cls, sources: list[Source]) -> "TaggedSentences":
        """Read the sentences as a tagger reads them, and those without tags too. Raises `InputError`."""
        return cls(chain.from_iterable(read_source(source, need_tags=False) for source in sources))

    @property
    def number(self) -> int:
        """How many sentences there are."""
        return self._number_of.total()

    @property
    def number_found(self) -> int:
        """How many of them `find` has found so far."""
        return sum(self._number_of[key] for key in self._found)

    @property
    def keys_found(self) -> list[str]:
        """The keys (`sentence_key`) of those that `find` has found so far, in the order of their letters."""
        return sorted(self._found)

    def add_found(self, keys: Iterable[str]) -> None:
        """Count these keys as found: another process read other text for the same sentences."""
        self._found |= self._number_of.keys() & set(keys)

    def find(self, text: str) -> set[str]:
        """The keys of the tagged sentences that the text is or holds, as a sentence of it or from word to word."""
        spelling = _spell(text)
        words = _split(spelling)
        key = "".join(words)
        found = {key} & self._number_of.keys()
        # A text of one sentence is looked up above; only one that has an end inside is taken apart.
        if END in spelling.rstrip(f"{END} "):
            found |= {_join(sentence) for sentence in spelling.split(END)} & self._number_of.keys()
        start, borders = 0, None
        for word in words:
            if key[start : start + START] in self._by_start:
                borders = borders or set(accumulate(map(len, words)))  # once: a document has many words
                found |= self._longer_ones_at(start, key, borders)
            start += len(word)
        self._found |= found
        return found

    def _longer_ones_at(self, start, key, borders):
        candidates = self._by_start[key[start : start + START]]
        return {one for one in candidates if key.startswith(one, start) and start + len(one) in borders}

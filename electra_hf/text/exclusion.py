"""Tagged sentences found again in running text, however they are spaced: a test must not be read in pretraining."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import accumulate, chain

from electra_hf.text.sources import Source
from electra_hf.text.tagged_text import TaggedSentence, read_source

# A shorter sentence ("Jes.") stands by chance inside of many others, and counts only where it stands as a sentence.
SHORTEST_INSIDE = 12  # letters, marks and digits
SENTENCE_ENDS = set(".!?…。！？｡।॥؟۔։።၊။។៕")
END = "\0"  # stands for the end of a sentence in the spelling of a text; no text holds one
# The scripts that set no blanks between words: in them, a sentence may begin at any character.
WITHOUT_BLANKS = ("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI ", "BOPOMOFO")


class _Spelling(dict):
    """A table for `str.translate` that leaves letters, marks and digits of words, filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        self[code] = self._spell(chr(code))
        return self[code]

    def _spell(self, character):
        if character in SENTENCE_ENDS:
            return END
        if unicodedata.category(character)[0] not in "LMN":
            return "" if unicodedata.category(character) == "Cf" else " "
        return f" {character}" if unicodedata.name(character, "").startswith(WITHOUT_BLANKS) else character


_SPELLING = _Spelling()


def spell(text: str) -> list[list[str]]:
    """The words of each sentence in a text, in lower case: what is the same in running and in tokenised text.

    Words end where a character is none of letter, mark and digit; sentences end at full stops and the like.
    """
    spelling = unicodedata.normalize("NFC", text).casefold().translate(_SPELLING)
    return [sentence.split() for sentence in spelling.split(END)]


def sentence_key(text: str) -> str:
    """What is left of a sentence without blanks, punctuation and case: equal for running and for tokenised text."""
    return "".join(chain.from_iterable(spell(text)))


class TaggedSentences:
    """The sentences of tagged files, and which of them were found in running text."""

    def __init__(self, sentences: Iterable[TaggedSentence]):
        texts = (sentence.text or " ".join(sentence.words) for sentence in sentences)
        self._number_of = Counter(map(sentence_key, texts))
        del self._number_of[""]  # a sentence of punctuation alone is not worth telling apart
        self._found = set()
        self._by_start = defaultdict(list)
        for key in self._number_of:
            if len(key) >= SHORTEST_INSIDE:
                self._by_start[key[:SHORTEST_INSIDE]].append(key)

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

    def find(self, text: str) -> set[str]:
        """The keys of the tagged sentences that the text is or holds, as a sentence of it or from word to word."""
        sentences = spell(text)
        words = list(chain.from_iterable(sentences))
        key = "".join(words)
        borders = list(accumulate(map(len, words), initial=0))
        found = {key, *map("".join, sentences)} & self._number_of.keys()
        for start in borders:
            for candidate in self._by_start.get(key[start : start + SHORTEST_INSIDE], ()):
                if key.startswith(candidate, start) and start + len(candidate) in borders:
                    found.add(candidate)
        self._found |= found
        return found

"""Which characters of a text are spelling and which are layout: one rule for the corpus and for every tokenizer.

A text that a person reads can hold characters that nobody sees. Some of them are spelling: Persian `می‌خواهم` without
its zero-width non-joiner is misspelt. Others are layout, left by a word processor or a web page: two sentences that
differ by a soft hyphen are one sentence. The tables below say which is which. What they do not name stays as it is:

- zero-width non-joiner and joiner (Persian, Sinhala, Malayalam, Bengali, joined emoji), the Mongolian vowel separator;
- combining marks and variation selectors, the grapheme joiner, Hangul fillers;
- signs that Unicode calls "format" and that are seen all the same (Arabic number signs, U+06DD, U+070F);
- private use, unassigned characters, and tags (the flags of England, Scotland and Wales).
"""

import re
import unicodedata

from tokenizers import Regex, normalizers

# What is dropped without a trace. The ranges are written so that `re` and the tokenizers' Oniguruma read them alike.
DROPPED = {
    "soft hyphen": r"\u00ad",
    "marks, embeddings and isolates of writing direction": r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069",
    "word joiner and invisible operators": r"\u2060-\u2064",
    "deprecated format characters": r"\u206a-\u206f",
    "byte-order mark": r"\ufeff",
}
# What becomes a blank; several in a row become one.
BLANKS = {
    "white space": r"\u0009-\u000d\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    "zero-width space, the border of words in Khmer": r"\u200b",
    "control characters": r"\u0000-\u0008\u000e-\u001f\u007f-\u0084\u0086-\u009f",
    "borders of annotations, what stands for an object or for unreadable bytes": r"\ufff9-\ufffd",
    "the sign that a Unigram vocabulary writes for a blank": r"\u2581",
}
_DROPPED, _BLANKS = "".join(DROPPED.values()), "".join(BLANKS.values())
_TO_DROP, _TO_BLANK = f"[{_DROPPED}]+", f"[{_BLANKS}][{_BLANKS} ]*| [{_BLANKS} ]+"
# Found in few texts: one look at a text, and most are left alone.
_UNUSUAL, _ALL_DROPPED, _ALL_BLANKS = re.compile(f"[{_DROPPED}{_BLANKS}]"), re.compile(_TO_DROP), re.compile(_TO_BLANK)


def clean_characters(text: str) -> str:
    """The text without layout: `DROPPED` gone, `BLANKS` and runs of them one blank, none at the ends, in form NFC.

    Cleaning a clean text changes nothing.
    """
    if _UNUSUAL.search(text):
        text = _ALL_BLANKS.sub(" ", _ALL_DROPPED.sub("", text))
    # Dropped first: a letter and its accent can have had a soft hyphen between them.
    return " ".join(unicodedata.normalize("NFC", text).split())


def character_normalizer(lowercase: bool = False) -> normalizers.Normalizer:
    """The rule of `clean_characters` as a normalizer of the tokenizers library, and lower case where it is wanted.

    Blanks at the ends of a text stay, since a text can be a piece between two special tokens. Lower case is Unicode's,
    with the final sigma of Greek; the dotted and dotless i of Turkish and Azeri it cannot tell apart.
    """
    lower = [normalizers.Replace(Regex(r"(?<=[\p{L}\p{M}])Σ(?![\p{L}\p{M}])"), "ς"), normalizers.Lowercase()]
    return normalizers.Sequence(
        [normalizers.Replace(Regex(_TO_DROP), ""), normalizers.Replace(Regex(_TO_BLANK), " ")]
        + lower * lowercase
        # At the end: ǰ has no capital of its own, so lower case leaves two characters that belong together.
        + [normalizers.NFC()]
    )

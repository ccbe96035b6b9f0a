"""Where each word of a text begins and ends, in characters."""

from collections.abc import Iterable, Sequence

Span = tuple[int, int]  # of characters in a text: where it begins, and where it ends


def locate(pieces: Sequence[str], text: str) -> list[Span] | None:
    """The span of each piece in a text that holds these pieces in this order and nothing else but blanks.

    None where the text is another one. A piece without a character has an empty span.
    """
    # Characters are counted without blanks, which may stand inside of a piece too. `places` leads back to the text.
    places = [index for index, character in enumerate(text) if not character.isspace()]
    letters = ["".join(piece.split()) for piece in pieces]
    if "".join(letters) != "".join(text.split()):
        return None
    spans, at = [], 0
    for piece in letters:
        start = places[at] if at < len(places) else len(text)
        at += len(piece)
        # Ends behind its own last character: the next one's place would take in the blank between them.
        spans.append((start, places[at - 1] + 1 if piece else start))
    return spans


def divide(span: Span, text: str, words: Sequence[str]) -> list[Span]:
    """The spans of the words that one piece of a text stands for: `I'm` is `I` and `'m`, to the character.

    Words that are not written there (French `du` for `de` and `le`) all have the span of the whole piece.
    """
    start, end = span
    inside = locate(words, text[start:end])
    return [(start + a, start + b) for a, b in inside] if inside else [span] * len(words)


def locate_with_ranges(words: Iterable[str], are_words: Iterable[bool], text: str) -> list[Span] | None:
    """The span of each word that is one, where the others may be ranges: `du`, and then its words `de` and `le`.

    A range covers the words behind it that do not stand in the text behind it; what is neither a word nor written is
    an empty node. None where the text is not made of ranges and of words outside of them.
    """
    units = []  # (what is written, its words, whether it is a word itself)
    rest = "".join(text.split())
    for word, is_word in zip(words, are_words, strict=True):
        letters = "".join(word.split())
        # A word that the text goes on with is written there. Any other word belongs to the range before it.
        if rest.startswith(letters):
            rest = rest.removeprefix(letters)
            units.append((word, [word] if is_word else [], is_word))
        elif is_word:
            if not units or units[-1][2]:  # no range is open
                return None
            units[-1][1].append(word)
    spans = locate([unit for unit, *_ in units], text)
    if spans is None:
        return None
    return [one for span, (_, inside, _) in zip(spans, units, strict=True) for one in divide(span, text, inside)]

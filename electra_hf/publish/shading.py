"""Texts as HTML: tokens shaded by a probability, words coloured by their tag. The text itself is always escaped."""

from collections.abc import Iterable, Sequence
from html import escape

# The darkest shade is that of the most suspicious token of the text, but at least that of this probability. A small
# model gives low probabilities to all tokens: on a scale from 0 to 1 its text would look white.
DARKEST = 0.5


def shade_tokens(text: str, tokens: Sequence, panel: int, selected: int | None = None) -> str:
    """The text with a button for every token (start, end, probability, …), darker with the probability.

    `data-panel` and `data-token` say which one was clicked; the one that starts at `selected` is framed. One token
    alone is reached by Tab, the others from there by the arrows.
    """
    darkest = max([DARKEST, *(token.probability for token in tokens)])
    marks = []
    for index, token in enumerate(tokens):
        words = text[token.start : token.end]
        says = f"{token.probability:.1%} replaced"
        # Above 0.5 the discriminator itself says "replaced". The shade does not tell that, since it is relative.
        names = ["token"] + ["suspect"] * (token.probability > 0.5) + ["selected"] * (token.start == selected)
        marks.append(
            f'<button type="button" class="{" ".join(names)}" data-panel="{panel}" data-token="{index}" '
            f'data-probability="{token.probability:.6f}" data-says="{says}" aria-label="{escape(words)}: {says}" '
            f'tabindex="{-1 if index else 0}" style="--shade: {token.probability / darkest:.3f}">{escape(words)}'
            "</button>"
        )
    return _weave(text, tokens, marks)


def color_words(text: str, words: Sequence, labels: Sequence[str]) -> str:
    """The text with every word (start, end, tags) in the colour of its tag, which stands below it too."""
    marks = []
    for index, word in enumerate(words):
        # The tags come sorted. The next two are told as well: a close second often explains a mistake.
        tag, probability = word.tags[0]
        says = ", ".join(f"{name} {value:.1%}" for name, value in word.tags[:3])
        shown = escape(text[word.start : word.end])
        marks.append(
            f'<span class="word" role="note" tabindex="{-1 if index else 0}" data-tag="{escape(tag)}" '
            f'data-probability="{probability:.6f}" data-says="{escape(says)}" aria-label="{shown}: {escape(says)}" '
            f'style="--hue: {_hue(tag, labels)}">{shown}<small>{escape(tag)}</small></span>'
        )
    return _weave(text, words, marks)


def _hue(label, labels):
    # Equal steps on the colour circle, by the place among the labels: a label has one colour in every text.
    return round(360 * list(labels).index(label) / len(labels))


def _weave(text, spans, marks):
    """The text with a mark in the place of each span, escaped between them."""
    parts, end = [], 0
    for span, mark in zip(spans, marks, strict=True):
        # Piece by piece: to escape the whole text first would move the positions of all spans.
        parts += [escape(text[end : span.start]), mark]
        end = span.end
    return "".join([*parts, escape(text[end:])])


def draw_bars(values: Iterable[tuple[str, float]], in_percent: bool = True) -> str:
    """A table of names with their probabilities as bars, or with plain numbers."""
    rows = [
        f'<tr data-label="{escape(name)}" data-value="{value:.6f}"><th>{escape(name)}</th>'
        + (
            f'<td class="bar"><i style="width: {100 * value:.1f}%"></i></td><td>{value:.1%}</td>'
            if in_percent
            else f"<td>{value:.3f}</td>"
        )
        for name, value in values
    ]
    return f'<table class="bars">{"".join(rows)}</table>'


def list_guesses(original: str, guesses: Sequence, chosen: int | None = None) -> str:
    """A table with a button per guess; the last puts the original piece back, and the chosen one is marked.

    `guesses`: each with `piece`, `probability`, `text`, `start` and `suspicion`.
    """
    heads = ("put in its place", "the generator guesses it", "the discriminator would suspect it")
    rows = ["".join(f"<th>{head}</th>" for head in heads)]
    for index, guess in enumerate(guesses):
        # A piece that goes on with the word before it says so.
        joined = guess.start > 0 and not guess.text[guess.start - 1].isspace() and guess.piece[0].isalnum()
        choice = _choice(index, "-" * joined + guess.piece, chosen)
        rows.append(f"<td>{choice}</td><td>{guess.probability:.1%}</td><td>{guess.suspicion:.1%}</td>")
    # The number after the last guess stands for the original, so that the page needs one way to answer a click.
    rows.append(f"<td>{_choice(len(guesses), original, chosen)}</td><td colspan=2>as it was</td>")
    return f'<table class="guesses">{"".join(f"<tr>{row}</tr>" for row in rows)}</table>'


def _choice(index, piece, chosen):
    # HTML writes true and false in small letters.
    pressed = str(index == chosen).lower()
    return f'<button type="button" data-guess="{index}" aria-pressed="{pressed}">{escape(piece)}</button>'

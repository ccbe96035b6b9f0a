"""Texts as HTML: every letter is there once, none of it is markup, and the shade is the probability."""

import re
from collections import namedtuple
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.publish.shading import color_words, draw_bars, list_guesses, shade_tokens

Token = namedtuple("Token", "start end probability")
Word = namedtuple("Word", "start end tags")
Guess = namedtuple("Guess", "piece probability text start suspicion")


class Reading(HTMLParser):
    """What a browser makes of it: the names of the elements, and the text."""

    def __init__(self, source):
        super().__init__()
        self.names, self.text = [], ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)

    def handle_data(self, data):
        self.text += data


@given(text=st.text(max_size=40) | st.text(alphabet="<>&\"'/b =", max_size=40), data=st.data())
def test_the_text_is_whole_and_only_the_marks_are_markup(text, data):
    places = data.draw(st.lists(st.integers(0, len(text)), unique=True).map(sorted))
    tokens = [Token(start, end, 0.25) for start, end in zip(places, places[1:], strict=False)]
    read = Reading(shade_tokens(text, tokens, panel=0))
    assert read.text == text.replace("\r\n", "\n").replace("\r", "\n") or read.text == text
    assert read.names == ["button"] * len(tokens)


def shades(probabilities):
    text = "a" * len(probabilities)
    tokens = [Token(place, place + 1, probability) for place, probability in enumerate(probabilities)]
    return list(map(float, re.findall(r"--shade: ([\d.]+)", shade_tokens(text, tokens, panel=0))))


def test_the_shade_grows_with_the_probability_up_to_the_most_suspicious_of_the_text():
    assert shades([0.0, 0.1, 0.25]) == [0.0, 0.2, 0.5]  # a timid text: the darkest is 0.5
    assert shades([0.2, 0.8]) == [0.25, 1.0]


def test_a_token_called_replaced_is_underlined_and_the_chosen_one_framed():
    source = shade_tokens("abc", [Token(0, 1, 0.5), Token(1, 2, 0.51), Token(2, 3, 0.1)], panel=4, selected=2)
    assert re.findall(r'class="([^"]+)"', source) == ["token", "token suspect", "token selected"]
    assert re.findall(r'tabindex="(-?\d)"', source) == ["0", "-1", "-1"]
    assert 'data-panel="4"' in source and 'data-says="51.0% replaced"' in source


def test_a_word_has_its_tag_in_writing_and_a_color_of_its_own():
    tags = [("NOUN", 0.75), ("<i>", 0.25)]
    source = color_words("dog & cat", [Word(0, 3, tags), Word(6, 9, tags[::-1])], ["<i>", "NOUN"])
    read = Reading(source)
    assert read.text == "dogNOUN & cat<i>" and read.names == ["span", "small"] * 2
    assert re.findall(r"--hue: (\d+)", source) == ["180", "0"]
    assert 'data-says="NOUN 75.0%, &lt;i&gt; 25.0%"' in source


@pytest.mark.parametrize("in_percent, shown", [(True, "25.0%"), (False, "0.250")])
def test_labels_have_a_row_each(in_percent, shown):
    read = Reading(draw_bars([("<b>", 0.25), ("good", 0.5)], in_percent))
    assert read.names.count("tr") == 2 and "b" not in read.names
    assert read.text.startswith("<b>" + shown)


def test_guesses_say_what_they_are_and_the_last_puts_the_old_piece_back():
    guesses = [Guess("dog", 0.5, "the dog", 4, 0.1), Guess("s", 0.25, "thes", 3, 0.9), Guess("<", 0.1, "the<", 3, 0.2)]
    source = list_guesses("old", guesses, chosen=1)
    assert re.findall(r'data-guess="(\d)" aria-pressed="(\w+)">([^<]+)', source) == [
        ("0", "false", "dog"),
        ("1", "true", "-s"),
        ("2", "false", "&lt;"),
        ("3", "false", "old"),
    ]
    assert "50.0%" in source and "90.0%" in source

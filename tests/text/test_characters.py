"""Layout goes, spelling stays, and the corpus and the tokenizers read a text alike."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from electra_hf.text.characters import character_normalizer, clean_characters

# Python and the tokenizers library know different versions of Unicode: what one does not know, it leaves alone.
KNOWN_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("man\u00adĝ\u00adi", "manĝi"),
        ("\ufeffla\ufeff hundo", "la hundo"),
        ("\u202bשלום\u202c \u2066x\u2069", "שלום x"),
        ("a\u2060b\u2063c\u206ed", "abcd"),
        ("ខ្ញុំ\u200bស្រឡាញ់", "ខ្ញុំ ស្រឡាញ់"),
        (" a\u200b \u200b\u3000\tb\x00\x85c\ufffd ", "a b c"),
        ("a▁b", "a b"),
        ("e\u00ad\u0301", "é"),
    ],
)
def test_layout_goes(text, cleaned):
    assert clean_characters(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",  # Persian: the non-joiner is spelling
        "ක්\u200dෂ",  # Sinhala: the joiner is spelling
        "👩\u200d👧 ❤\ufe0f",
        "葛\U000e0100",  # which of two forms of a character
        "ᠮᠣᠩᠭᠣᠯ\u180eᠠ",
        "\u0600١٢ \u06dd",  # signs that are seen
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\ue000\U0010ffff",
    ],
)
def test_spelling_and_what_no_rule_names_stays(text):
    assert clean_characters(text) == text
    assert character_normalizer().normalize_str(text) == text


@given(st.text())
@example("a \u200b b")
@example("e\u00ad\u0301")
def test_cleaning_a_clean_text_changes_nothing(text):
    assert clean_characters(clean_characters(text)) == clean_characters(text)


@given(KNOWN_TEXT)
@example(" \u200b a \x1c")
def test_the_normalizer_of_a_tokenizer_does_what_the_corpus_cleaning_does(text):
    # It leaves one blank at an end, since a text can be a piece between two special tokens.
    assert character_normalizer().normalize_str(text).strip(" ") == clean_characters(text)


@given(KNOWN_TEXT)
@example("J\u030c")
def test_lower_case_is_in_form_nfc_and_lower_casing_it_again_changes_nothing(text):
    normalizer = character_normalizer(lowercase=True)
    lowered = normalizer.normalize_str(text)
    assert unicodedata.is_normalized("NFC", lowered)
    assert normalizer.normalize_str(lowered) == lowered


def test_lower_case_knows_the_final_sigma():
    assert character_normalizer(lowercase=True).normalize_str("Ο ΣΟΦΟΣ ΟΔΥΣΣΕΑΣ, Σ.") == "ο σοφος οδυσσεας, σ."


def test_offsets_point_into_the_text_that_was_given():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = character_normalizer(), pre_tokenizers.BertPreTokenizer()
    text = "\ufeffman\u00adĝi\u200bbo\u0302n"
    assert [text[start:end] for start, end in tokenizer.encode(text).offsets] == ["man\u00adĝi", "bo\u0302n"]

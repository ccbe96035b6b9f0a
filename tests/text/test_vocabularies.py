"""A tokenizer is a function of text and settings, loses nothing of a text that it can know, and keeps its size."""

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.text.characters import clean_characters
from electra_hf.text.vocabularies import BUILDERS, choose_alphabet, count_characters

TYPES = list(BUILDERS)


def made_up_texts():
    """Texts with many words that are equally frequent, in letters of four scripts: ties wherever a trainer counts."""
    choose = random.Random(0)
    alphabets = ["abcdefghijklmnoprstuvzĉĝŝ", "αβγδεζηθικλμνξο", "कखगघचछजझटठािीुू", "漢字文章語人日本"]
    words = ["".join(choose.choices(alphabet, k=choose.randint(1, 9))) for alphabet in alphabets for _ in range(400)]
    return [" ".join(choose.choices(words, k=8)) + choose.choice(".!?,") for _ in range(600)]


def digest(tokenizer_type):
    return hashlib.sha256(BUILDERS[tokenizer_type](made_up_texts(), 1_024, False).to_str().encode()).hexdigest()


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_the_same_text_gives_the_same_bytes(tokenizer_type):
    assert len({digest(tokenizer_type) for _ in range(4)}) == 1


@pytest.mark.slow
def test_the_same_text_gives_the_same_bytes_in_any_process_with_any_number_of_threads():
    code = "from test_vocabularies import digest, TYPES; print([digest(kind) for kind in TYPES])"
    folder = os.path.dirname(__file__)
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ
            | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
            | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, threads, parallel in (("0", "1", "true"), ("1", "7", "true"), ("2", "2", "false"))
    }
    assert digests == {f"{[digest(kind) for kind in TYPES]}\n"}


# Some of every script and of each kind of mark (none that make one character with a letter of these). All of it is in
# the training text, so nothing is unknown.
CHARACTERS = (
    "aAbBzZĉĈßıİéàœ 0189٣४.,;:!?'\"#()[]-_/«»…—€"
    + "αβςΣΩ"
    + "бЖя"
    + "ابپتی\u200c\u0651"
    + "אבשׁ"
    + "कखिी्ं\u200d"
    + "กขาิ่้"
    "กิ" + "සිංහල්" + "한글각" + "漢字葛丈" + "かがキー" + "བོད་" + "👩👧❤\ufe0f\U000e0100" + "\u030d\u0489" + "▅▁"
)
LAYOUT = "\u00ad\u200b\u200e\u202b\u2060\ufeff\x00\x1f\x85\u3000\n\t"


@pytest.fixture(scope="module", params=TYPES)
def reader(request):
    training = [CHARACTERS, " ".join(CHARACTERS), "x".join(CHARACTERS)] * 3
    return BUILDERS[request.param](training, 1_024, False)


@given(text=st.text(CHARACTERS + LAYOUT))
def test_encoding_and_decoding_change_blanks_and_layout_alone(reader, text):
    encoding = reader.encode(text, add_special_tokens=False)
    assert reader.token_to_id("[UNK]") not in encoding.ids
    assert letters(reader.decode(encoding.ids)) == letters(clean_characters(text))


@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn"))))
def test_every_type_reads_the_same_text_and_loses_what_is_in_an_unknown_token_alone(reader, text):
    assert reader.normalizer.normalize_str(text).strip(" ") == clean_characters(text)
    reader.encode_special_tokens = True  # as packing does: "[CLS]" in a text is text
    clean = clean_characters(text)
    encoding = reader.encode(clean, add_special_tokens=False)
    unknown = reader.token_to_id("[UNK]")
    lost = [span for span, i in zip(encoding.offsets, encoding.ids, strict=True) if i == unknown]
    kept = "".join(c for place, c in enumerate(clean) if not any(start <= place < end for start, end in lost))
    assert letters(reader.decode([i for i in encoding.ids if i != unknown])) == letters(kept)


def letters(text):
    return "".join(text.split())


@pytest.mark.parametrize("tokenizer_type", ["wordpiece", "unigram"])
def test_a_character_seen_at_the_start_of_words_only_is_known_inside_and_the_other_way_round(tokenizer_type):
    reader = BUILDERS[tokenizer_type](["Hundo Kato paŝo"] * 5, 128, False)
    for text in ("pH", "ŝato", "KatoKato", "ooŝ"):
        assert reader.token_to_id("[UNK]") not in reader.encode(text).ids


def test_characters_that_are_words_of_their_own_take_one_token():
    vocabulary = BUILDERS["wordpiece"](["漢字 paŝo."] * 5, 128, False).get_vocab()
    assert {"漢", "字", "."} <= set(vocabulary)
    assert not {"##漢", "##字", "##."} & set(vocabulary)
    assert {"p", "##p", "ŝ", "##ŝ"} <= set(vocabulary)


@pytest.mark.parametrize("tokenizer_type", ["wordpiece", "unigram"])
def test_a_script_that_does_not_fit_keeps_its_frequent_characters_and_says_so(tokenizer_type, caplog):
    characters = [chr(0x4E00 + number) for number in range(1_000)]
    texts = [character * (2 if number < 100 else 1) for number, character in enumerate(characters)]
    vocabulary = BUILDERS[tokenizer_type](texts, 256, False).get_vocab()
    assert len(vocabulary) == 256
    assert set(characters[:100]) <= set(vocabulary)
    assert "256 entries hold 251 of the 1,00" in caplog.text and "need 1,024 entries" in caplog.text


@given(st.dictionaries(st.characters(), st.integers(1, 1_000), min_size=1), st.integers(6, 64))
def test_an_alphabet_fits_and_no_character_left_out_is_more_frequent_than_one_kept(counts, vocab_size):
    alphabet = choose_alphabet(Counter(counts), vocab_size, lambda character: 2)
    assert 2 * len(alphabet) + 5 <= vocab_size
    out = [counts[character] for character in counts.keys() - alphabet]
    assert max(out, default=0) <= min((counts[character] for character in alphabet), default=1_000)


@pytest.mark.parametrize("lowercase", [False, True])
def test_characters_are_counted_as_a_tokenizer_reads_them(lowercase):
    texts = ["A a\u200ba", "\ufeffE\u0301e\u0301 漢", "J\u030c ΟΔΟΣ", CHARACTERS]
    normalised = [BUILDERS["bpe"](["x"], 320, lowercase).normalizer.normalize_str(text) for text in texts]
    assert count_characters(texts, lowercase) == Counter(letters("".join(normalised)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("می\u200cخواهم رفت", ["می\u200cخواهم", "رفت"]),
        ("བོད་སྐད་ཡིག", ["བོད་སྐད་ཡིག"]),
        ("la 3-a, ĉu?", ["la", "3", "-", "a", ",", "ĉu", "?"]),
    ],
)
@pytest.mark.parametrize(("tokenizer_type", "blank"), [("bpe", "Ġ"), ("unigram", "▁")])
def test_marks_and_joiners_stand_inside_a_word(tokenizer_type, blank, text, words):
    # A frequent word becomes one token, if nothing parts it before.
    reader = BUILDERS[tokenizer_type]([text] * 20, 1_024, False)
    decoded = [reader.decode([i]).strip() for i in reader.encode(text, add_special_tokens=False).ids]
    assert decoded == words

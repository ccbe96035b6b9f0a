"""Documents are linked as often as their true similarity promises, in every script, and clusters keep the first."""

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.text import near_duplicates
from electra_hf.text.near_duplicates import HASHES, bands_of, cluster, link, shape_of_bands, shingles_of

LETTERS = "abcdefghijklmnoprstuvzĉĝĥĵŝŭ"


def documents(number, words, chance, letters=LETTERS):
    vocabulary = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(3000)]
    return [chance.choices(vocabulary, k=words) for _ in range(number)]


def change(words, share, chance):
    """The words, with a share of them replaced."""
    changed = list(words)
    for place in chance.sample(range(len(words)), round(share * len(words))):
        changed[place] = "".join(chance.choices(LETTERS, k=12))
    return changed


def jaccard(one, other, size=5):
    """By its definition: of all runs of `size` items that either has, the share that both have."""
    one, other = ({tuple(items[at : at + size]) for at in range(len(items) - size + 1)} for items in (one, other))
    return len(one & other) / len(one | other)


def are_linked(one, other, similarity):
    bands = [bands_of(text, *shape_of_bands(similarity)) for text in (one, other)]
    return bool((bands[0] == bands[1]).any())


def test_pairs_are_linked_as_often_as_their_true_similarity_promises():
    chance = random.Random(0)
    for similarity in (0.3, 0.5, 0.7, 0.9):
        bands, hashes = shape_of_bands(similarity)
        found, expected = [], []
        for words in documents(300, 150, chance):
            other = change(words, chance.uniform(0, 0.15), chance)
            found.append(are_linked(" ".join(words), " ".join(other), similarity))
            expected.append(1 - (1 - jaccard(words, other) ** hashes) ** bands)
        deviation = sum(p * (1 - p) for p in expected) ** 0.5
        assert abs(sum(found) - sum(expected)) < 4 * deviation, similarity
        assert 20 < sum(found) < 290


def test_at_a_similarity_of_seven_tenths_recall_and_precision_are_high_a_step_to_either_side():
    chance = random.Random(1)
    pairs = [
        (words, change(words, share, chance))
        for share in np.linspace(0, 0.12, 30)
        for words in documents(15, 200, chance)
    ]
    found = [(jaccard(*pair), are_linked(*map(" ".join, pair), 0.7)) for pair in pairs]
    above = [linked for similarity, linked in found if similarity >= 0.85]
    below = [linked for similarity, linked in found if similarity <= 0.5]
    assert len(above) > 50 and sum(above) >= 0.95 * len(above)
    assert len(below) > 50 and sum(below) <= 0.05 * len(below)


def test_no_unrelated_documents_are_linked():
    chance = random.Random(2)
    bands = [set(bands_of(" ".join(words), *shape_of_bands(0.3)).tolist()) for words in documents(300, 150, chance)]
    assert len(set.union(*bands)) == sum(map(len, bands)) == 300 * 25


def test_half_of_the_pairs_of_the_similarity_that_is_asked_for_are_linked():
    for similarity in np.arange(0.3, 0.951, 0.01):
        bands, hashes = shape_of_bands(similarity)
        assert bands * hashes <= HASHES
        assert abs(1 - (1 - similarity**hashes) ** bands - 0.5) < 0.07
    assert shape_of_bands(0.7) == (12, 8)


@pytest.mark.parametrize(
    ("text", "shingles"),
    [
        ("Unu, du: TRI kvar kvin. Ses!", {"unu du tri kvar kvin", "du tri kvar kvin ses"}),
        ("Unu du", {"unu du"}),
        ("हिन्दी में किताब है और", {"हिन्दी में किताब है और"}),  # its marks belong to the words
        ("东京大学的人", {"东 京 大 学 的", "京 大 学 的 人"}),
        ("ภาษาไทย", {"ภ า ษ า ไ", "า ษ า ไ ท", "ษ า ไ ท ย"}),
        ("… — !", set()),
    ],
)
def test_a_shingle_is_five_words_or_five_characters_where_no_blanks_are_written(text, shingles):
    assert shingles_of(text) == shingles


@pytest.mark.parametrize(
    ("first", "last"), [("一", "龥"), ("ぁ", "ゖ"), ("ก", "ฮ"), ("ກ", "ຮ"), ("ក", "អ"), ("က", "အ")]
)
def test_in_scripts_without_blanks_a_changed_sentence_is_found_and_other_text_is_not(first, last):
    chance = random.Random(3)
    letters = [chr(code) for code in range(ord(first), ord(last) + 1) if chr(code).isalpha()]
    one, other = ("".join(chance.choices(letters, k=600)) for _ in range(2))
    changed = one[:300] + other[300:330] + one[330:]
    assert are_linked(one, changed, 0.7) and not are_linked(one, other, 0.3)
    assert jaccard(one, changed) > 0.85


def test_case_and_punctuation_make_no_difference_and_a_text_without_words_has_no_bands():
    assert np.array_equal(bands_of("Unu du tri, kvar kvin ses.", 12, 8), bands_of("unu DU tri kvar: kvin ses", 12, 8))
    assert bands_of("… — !", 12, 8).shape == (0,)


def test_a_long_document_has_the_same_bands_piece_by_piece(monkeypatch):
    text = " ".join(documents(1, 500, random.Random(4))[0])
    whole = bands_of(text, 12, 8)
    monkeypatch.setattr(near_duplicates, "AT_A_TIME", 7)
    assert np.array_equal(bands_of(text, 12, 8), whole) and len(set(whole.tolist())) == 12


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), max_size=60))
def test_texts_with_an_equal_band_are_linked_to_the_first_of_them(pairs):
    of_band = defaultdict(list)
    for band, text in pairs:
        of_band[band].append(text)
    expected = sorted((min(texts), text) for texts in of_band.values() for text in sorted(texts)[1:])
    bands, texts = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert sorted(zip(*link(bands, texts).tolist(), strict=True)) == expected


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=40), st.integers(0, 40))
def test_a_cluster_is_what_links_join_and_keeps_its_first_also_in_two_steps(links, cut):
    first = {text: text for pair in links for text in pair}
    for _ in first:  # every round carries the least number one link on
        for one, other in links:
            first[one] = first[other] = min(first[one], first[other])
    expected = [[first[text], text] for text in sorted(first) if first[text] != text]
    array = np.array(links, np.uint64).reshape(-1, 2).T
    assert cluster(array).T.tolist() == expected
    assert cluster(np.concatenate([cluster(array[:, :cut]), array[:, cut:]], axis=1)).T.tolist() == expected

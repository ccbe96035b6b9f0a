from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from electra_hf.tasks.alignment import cut_windows, encode_words, gather_words, labels_and_losses, make_windows
from electra_hf.text.running_text import locate
from electra_hf.text.tagged_text import TaggedSentence
from electra_hf.text.tokenization import train_tokenizer

PAD, UNK, CLS, SEP, LA, KAT, SUFFIX_O, SUFFIX_J = range(8)
LABELS = {"DET": 0, "NOUN": 1}


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "la", "kat", "##o", "##j"]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def sentence(*words, tag="NOUN"):
    return TaggedSentence(list(words), [tag] * len(words), "tagged.txt", list(range(1, len(words) + 1)))


def test_the_first_token_of_a_word_carries_its_label_and_no_other_does(tokenizer):
    tagged = TaggedSentence(["la", "katoj"], ["DET", "NOUN"], "tagged.txt", [1, 2])
    [window] = make_windows([tagged], tokenizer, LABELS, max_length=16)
    assert window["input_ids"] == [CLS, LA, KAT, SUFFIX_O, SUFFIX_J, SEP]
    assert window["labels"] == [-100, 0, 1, -100, -100, -100]


@pytest.mark.parametrize("word", ["\u00ad", "\u200b", "\x00", "\ufeff", "\ufffd", ""])
def test_a_word_without_sub_tokens_becomes_unk_and_is_scored(tokenizer, word):
    [window] = make_windows([sentence("la", word, "kato")], tokenizer, LABELS, max_length=16)
    assert window["input_ids"] == [CLS, LA, UNK, KAT, SUFFIX_O, SEP]
    assert window["positions"] == [1, 2, 3]


def test_a_word_of_several_pre_tokens_has_one_label(tokenizer):
    [window] = make_windows([sentence("la-kato", "la")], tokenizer, LABELS, max_length=16)
    assert window["input_ids"] == [CLS, LA, UNK, KAT, SUFFIX_O, LA, SEP]
    assert window["labels"] == [-100, 1, -100, -100, -100, 1, -100]


def test_a_label_that_the_model_does_not_have_carries_no_loss_but_its_word_is_scored(tokenizer):
    [window] = make_windows([sentence("la", tag="INTJ")], tokenizer, LABELS, max_length=16)
    assert window["labels"] == [-100, -100, -100]
    assert window["words"] == [0]


def test_words_of_several_sentences_do_not_mix(tokenizer):
    assert list(encode_words([sentence("la"), sentence("kato", "la")], tokenizer)) == [[[LA]], [[KAT, SUFFIX_O], [LA]]]


def test_a_sentence_that_fits_is_one_window():
    assert cut_windows([1, 2, 1], size=4) == [(0, 3, [0, 1, 2])]


def test_a_long_sentence_is_cut_into_windows_that_overlap_by_half():
    # Words of one token, windows of four. Word 2 has one token on its poorer side in the first window, none in the
    # second; word 3 none in the first, one in the second.
    assert cut_windows([1] * 8, size=4) == [(0, 4, [0, 1, 2]), (2, 6, [3, 4]), (4, 8, [5, 6, 7])]


def test_a_window_ends_between_words():
    assert cut_windows([2, 2, 3, 1], size=4) == [(0, 2, [0, 1]), (2, 4, [2, 3])]


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=60), size=st.integers(7, 12))
def test_every_word_is_scored_once_where_it_has_most_context(lengths, size):
    windows = cut_windows(lengths, size)
    assert sorted(word for *_, words in windows for word in words) == list(range(len(lengths)))
    for first, end, words in windows:
        assert sum(lengths[first:end]) <= size
        for word in words:
            assert first <= word < end
            context = min(sum(lengths[first:word]), sum(lengths[word + 1 : end]))
            others = (w for w in windows if w[0] <= word < w[1])
            assert context == max(min(sum(lengths[f:word]), sum(lengths[word + 1 : e])) for f, e, _ in others)


def test_a_word_far_from_both_ends_sees_almost_a_quarter_of_the_window_on_its_poorer_side():
    for first, end, words in cut_windows([1] * 100, size=20):
        assert all(min(word - first, end - 1 - word) >= 4 for word in words if 4 <= word <= 95)


@given(words=st.lists(st.sampled_from(["la", "kato", "katojoj", "\u00ad", "x" * 120, ""]), min_size=1, max_size=40))
def test_there_is_one_prediction_per_word_always(tokenizer, words):
    sentences = [sentence(*words), sentence("la")]
    windows = make_windows(sentences, tokenizer, LABELS, max_length=7)
    assert max(len(window["input_ids"]) for window in windows) <= 7
    predictions = np.arange(len(windows) * 7).reshape(len(windows), 7)
    gathered = gather_words(windows, predictions, sentences)
    assert [len(row) for row in gathered] == [len(words), 1]
    assert None not in gathered[0]


def test_a_prediction_comes_from_the_first_token_of_its_word(tokenizer):
    windows = make_windows([sentence("kato", "la")], tokenizer, LABELS, max_length=16)
    assert gather_words(windows, [[9, 1, 9, 0, 9]], [sentence("kato", "la")]) == [[1, 0]]


def test_a_word_longer_than_a_window_is_cut_and_still_scored(tokenizer):
    [first, second] = make_windows([sentence("katojojoj", "la")], tokenizer, LABELS, max_length=5)
    assert first["input_ids"] == [CLS, KAT, SUFFIX_O, SUFFIX_J, SEP]
    assert second["input_ids"] == [CLS, LA, SEP]


def test_an_evaluation_keeps_one_label_and_one_loss_per_token():
    logits = torch.tensor([[[0.0, 0.0], [5.0, -5.0]]])
    label_ids, losses = labels_and_losses(logits, torch.tensor([[1, -100]]))
    assert label_ids.shape == losses.shape == (1, 2)
    assert label_ids[0, 1] == 0
    assert losses.tolist() == [[pytest.approx(0.6931, abs=1e-4), 0.0]]


# Running text


def running(text, *words):
    tagged = sentence(*words)
    tagged.text, tagged.spans = text, locate(words, text)
    assert tagged.spans
    return tagged


def test_words_of_a_running_text_have_its_tokens(tokenizer):
    counts = Counter()
    tagged = running("lakato la", "la", "kato", "la")
    assert list(encode_words([tagged], tokenizer, counts)) == [[[UNK], [UNK], [LA]]]
    # Word by word, `la` would be a token of its own: here [UNK] stands for all of `lakato`.
    assert counts == {"words_in_running_text": 3, "words_with_shared_token": 1, "words_without_token": 0}


def test_a_word_has_all_tokens_that_cover_some_of_it(tokenizer):
    counts = Counter()
    sentences = [running("katoj la", "kat", "oj", "la"), running("katoj", "k", "atoj")]
    assert list(encode_words(sentences, tokenizer, counts)) == [
        [[KAT], [SUFFIX_O, SUFFIX_J], [LA]],
        [[KAT], [KAT, SUFFIX_O, SUFFIX_J]],
    ]
    assert counts["words_with_shared_token"] == 1


def test_words_that_share_a_token_have_a_place_each_for_label_and_prediction(tokenizer):
    tagged = running("la kato", "la", "ka", "t", "o")
    tagged.tags = ["DET", "NOUN", "DET", "NOUN"]
    windows = make_windows([tagged], tokenizer, LABELS, max_length=16)
    assert [window["input_ids"] for window in windows] == [[CLS, LA, KAT, KAT, SUFFIX_O, SEP]]
    assert windows[0]["labels"] == [-100, 0, 1, 0, 1, -100]
    assert gather_words(windows, [[9, 1, 2, 3, 4, 9]], [tagged]) == [[1, 2, 3, 4]]


def test_words_that_a_contraction_stands_for_have_its_tokens_each(tokenizer):
    tagged = sentence("la", "kato", "la")
    tagged.text, tagged.spans = "katoj   la", [(0, 5), (0, 5), (8, 10)]
    assert list(encode_words([tagged], tokenizer)) == [[[KAT, SUFFIX_O, SUFFIX_J], [KAT, SUFFIX_O, SUFFIX_J], [LA]]]


def test_a_word_that_is_cleaned_away_is_unk_in_running_text_too(tokenizer):
    counts = Counter()
    assert list(encode_words([running("la \u00ad la", "la", "\u00ad", "la")], tokenizer, counts)) == [
        [[LA], [UNK], [LA]]
    ]
    assert counts["words_without_token"] == 1


JAPANESE = "私はりんごを食べました。彼女もりんごを食べています。ＡＢＣとＩstanbulで½"


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def trained(request):
    texts = [JAPANESE, "La kato dormas, ĉu ne? İstanbul'da ΣΑΣ", "می‌خواهم की"] * 20
    return train_tokenizer(texts, 512, request.param, lowercase=True)


@given(
    words=st.lists(
        st.text(min_size=1, max_size=5) | st.sampled_from(["食べ", "ました", "\u0301", "İ", "ﬃ", "e"]), min_size=1
    ),
    data=st.data(),
)
def test_tokens_are_those_of_the_running_text_and_every_word_has_one(trained, words, data):
    words = [word for word in words if word.split()] or ["a"]
    text = "".join(word + data.draw(st.sampled_from(["", " ", "\u3000"])) for word in words)
    tagged = running(text, *words)
    (pieces,) = encode_words([tagged], trained)
    encoding = trained(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    tokens = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
    for ids, (start, end) in zip(pieces, tagged.spans, strict=True):
        covering = [token_id for token_id, (first, last) in tokens if first < end and start < last]
        # Before them, and behind those of the last word, a blank that is a token.
        assert ids and any(ids[at : at + len(covering)] == covering for at in range(len(ids)))
    rest = iter(token_id for ids in pieces for token_id in ids)
    assert all(token_id in rest for token_id, _ in tokens)  # all of the text's, in their order

"""Accents survive every way in and out, sizes are multiples of 64, and what is no tokenizer is refused."""

import json
import random
import re
import unicodedata

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ElectraConfig, ElectraTokenizer, PreTrainedTokenizerFast

from electra_hf.errors import InputError
from electra_hf.text.tokenization import (
    find_continuations,
    load_tokenizer,
    measure_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from electra_hf.text.vocabularies import SPECIAL_TOKENS, batches, round_up_vocab_size

SENTENCES = [
    "Ĉu ŝi aĉetis la ĝardenon ĉe la ĥoro?",
    "Ĵaŭde la ŝafoj paŝtiĝas apud la ŝoseo.",
    "La ĵurnalisto antaŭe loĝis en Ĝenevo, ĉu ne?",
    "Hodiaŭ mi legas libron pri eĥo kaj aŭroro.",
] * 5
TYPES = ["wordpiece", "bpe", "unigram"]


@pytest.fixture(scope="module", params=TYPES)
def tokenizer(request):
    return train_tokenizer(SENTENCES, 500, request.param)


def written(tokenizer, text):
    """The text as the tokenizer sees it, without any white space."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    return "".join(tokenizer.decode(ids).split())


@pytest.mark.parametrize(("asked", "rounded"), [(1, 64), (64, 64), (65, 128), (52_000, 52_032)])
def test_a_vocabulary_size_is_rounded_up_to_a_multiple_of_64(asked, rounded):
    assert round_up_vocab_size(asked) == rounded


def test_special_tokens_have_the_ids_0_to_4(tokenizer):
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [0, 1, 2, 3, 4]
    ids = [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")]
    assert ids == [0, 1, 2, 3, 4]


def test_texts_are_framed_and_a_pair_has_token_types(tokenizer):
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    one = tokenizer("ĝardeno", add_special_tokens=False)["input_ids"]
    two = tokenizer("eĥo", add_special_tokens=False)["input_ids"]
    assert tokenizer("ĝardeno")["input_ids"] == [cls, *one, sep]
    pair = tokenizer("ĝardeno", "eĥo")
    assert pair["input_ids"] == [cls, *one, sep, *two, sep]
    assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(two) + 1)


@pytest.mark.parametrize("lowercase", [False, True], ids=["cased", "lowercase"])
@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_accents_survive_training_and_both_ways_of_loading(tokenizer_type, lowercase, tmp_path):
    trained = train_tokenizer(SENTENCES, 500, tokenizer_type, lowercase)
    save_tokenizer(trained, tmp_path)
    for reader in (trained, AutoTokenizer.from_pretrained(tmp_path), ElectraTokenizer.from_pretrained(tmp_path)):
        for text in SENTENCES[:4]:
            expected = "".join((text.lower() if lowercase else text).split())
            assert written(reader, text) == expected
            decomposed = unicodedata.normalize("NFD", text)
            assert decomposed != text
            assert reader(decomposed)["input_ids"] == trained(text)["input_ids"]


def test_the_saved_folder_names_a_class_that_transformers_4_knows(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    save_tokenizer(load_tokenizer(tmp_path), tmp_path)  # what a recipe does with an existing tokenizer
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["do_lower_case"] is False and config["strip_accents"] is False
    assert config["model_max_length"] == 512
    # The flag that makes ElectraTokenizer read the file lets nothing run: the folder names and holds no code.
    assert "auto_map" not in config and not list(tmp_path.glob("*.py"))


def test_a_tokenizer_of_another_class_keeps_its_class_and_its_choices(tmp_path):
    stripping = ElectraTokenizer(vocab={token: i for i, token in enumerate([*SPECIAL_TOKENS, "cu", "si"])})
    save_tokenizer(stripping, tmp_path)
    assert load_tokenizer(tmp_path).tokenize("Ĉu ŝi") == ["cu", "si"]


@pytest.mark.parametrize("texts", [["a"], ["saluton mondo"], SENTENCES], ids=["a letter", "two words", "sentences"])
@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_a_small_corpus_still_gives_a_multiple_of_64_with_a_token_for_every_id(
    texts, tokenizer_type, tmp_path, caplog
):
    save_tokenizer(train_tokenizer(texts, 52_000, tokenizer_type), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) % 64 == 0
    assert len(tokenizer) < 52_000
    assert re.search(r"vocab_size: the corpus gives \d+ tokens, not the 52032 that were asked for", caplog.text)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert None not in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))


def test_a_corpus_that_can_fill_it_gets_the_size_that_was_asked(caplog):
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
    assert len(train_tokenizer([" ".join(words)] * 3, 70)) == 128
    assert not caplog.text


def test_filled_up_tokens_never_stand_for_text():
    tokenizer = train_tokenizer(["saluton mondo"], 64)
    unused = {i for token, i in tokenizer.get_vocab().items() if token.startswith("[unused")}
    assert unused
    assert not unused & set(tokenizer("[unused0] saluton [unused1]")["input_ids"])


def test_a_generator_a_list_and_a_dataset_train_the_same_alphabet():
    of_list = set(train_tokenizer(SENTENCES, 128).get_vocab())
    letters = {token for token in of_list if len(token) == 1}
    assert letters
    for texts in ((text for text in SENTENCES), Dataset.from_dict({"text": SENTENCES})):
        assert {token for token in train_tokenizer(texts, 128).get_vocab() if len(token) == 1} == letters


def test_a_character_rarer_than_the_limit_takes_no_token():
    # The limit for 64 tokens is 1 in 6,400 characters: of 9,004, ŭ is one in 3,001.
    vocabulary = train_tokenizer(["ab" * 5] * 900 + ["ŭ", "ŭ", "ŭ", "漢"], 64).get_vocab()
    assert "ŭ" in vocabulary
    assert "漢" not in vocabulary


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_a_word_of_more_than_100_characters_is_cut_in_training_and_in_use(tokenizer_type):
    # Uncut, this one word alone would be merged to one token; and a word of a million characters takes minutes.
    tokenizer = train_tokenizer(["ab" * 200] * 10, 320, tokenizer_type)
    assert max(len(token.removeprefix("##")) for token in tokenizer.get_vocab()) <= 101
    for word in ("ab" * 50, "ab" * 50 + "a", "ba" * 500):
        encoding = tokenizer.backend_tokenizer.encode(word, add_special_tokens=False)
        assert tokenizer.unk_token_id not in encoding.ids
        assert tokenizer.decode(encoding.ids).replace(" ", "") == word
        covered = {place for start, end in encoding.offsets for place in range(start, end)}
        assert covered == set(range(len(word)))


@pytest.mark.parametrize("texts", [[], ["", "  \n\t"], (text for text in ())])
def test_a_corpus_without_text_is_refused(texts):
    with pytest.raises(InputError, match="no text"):
        train_tokenizer(texts, 64)


def test_an_unknown_type_is_refused_with_the_choices():
    with pytest.raises(InputError, match="wordpiece, bpe, unigram, got 'words'"):
        train_tokenizer(SENTENCES, 64, "words")
    with pytest.raises(InputError, match="vocab_size.*got 0"):
        train_tokenizer(SENTENCES, 0)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    # transformers makes a tokenizer of five special tokens from this one, without a word.
    ElectraConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    for content in ("", "{broken", "{}", "[]"):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match="no tokenizer"):
            load_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_mask_is_refused(tokenizer, tmp_path):
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]"
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no sep and no mask token"):
        load_tokenizer(tmp_path)


def test_fertility_and_unknown_share_are_counted_by_hand():
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, "la", "hund", "##o", "."])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    # la hund ##o .  |  la [UNK]  |  nothing: six tokens of which one is unknown, for four words
    # 14 characters aside from blanks, 4 of them in the unknown word
    assert measure_tokenizer(tokenizer, ["la hundo.", "la kato", ""]) == {
        "vocab_size": 9,
        "fertility": 6 / 4,
        "unknown_share": 1 / 6,
        "unknown_character_share": 4 / 14,
        "changed_word_share": 0.0,
    }


def test_words_that_the_normalizer_respells_are_counted_but_not_those_in_form_nfc_or_lower_case():
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(SPECIAL_TOKENS)}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    texts = ["Ĉu ŝi", unicodedata.normalize("NFD", "Ĝi") + " ΣΟΦΟΣ", "می\u200cخواهم x"]
    for normalizer, changed in (
        (normalizers.NFC(), 0),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]), 0),
        (normalizers.BertNormalizer(lowercase=True), 4),  # three accents, and the joiner of the Persian word
        (normalizers.Replace("x", "y"), 1),
    ):
        tokenizer.backend_tokenizer.normalizer = normalizer
        assert measure_tokenizer(tokenizer, texts)["changed_word_share"] == changed / 6


@pytest.mark.parametrize(
    ("training", "vocab_size", "text", "causes"),
    [
        ("la kato", 64, "la kato ŝ", ["ŝ (U+015D, 1 ×)", "did not have them"]),
        ("".join(map(chr, range(0x4E00, 0x4E80))), 64, "上乿", ["乿 (U+4E7F, 1 ×)", "vocab_size is too small"]),
    ],
)
def test_one_warning_names_the_characters_that_are_lost_and_the_cause(training, vocab_size, text, causes, caplog):
    tokenizer = train_tokenizer([training], vocab_size)
    caplog.clear()
    assert measure_tokenizer(tokenizer, [text])["unknown_character_share"] > 0.01
    (record,) = caplog.records
    assert all(cause in record.getMessage() for cause in causes), record.getMessage()


def test_text_without_blanks_is_read_here_and_is_the_cause_named_for_a_tokenizer_that_cannot(caplog):
    protein = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 20
    ours = train_tokenizer([protein], 64)
    caplog.clear()
    assert measure_tokenizer(ours, [protein])["unknown_character_share"] == 0
    assert not caplog.records
    backend = Tokenizer(models.WordPiece(ours.get_vocab(), unk_token="[UNK]"))
    stock = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    assert measure_tokenizer(stock, [protein])["unknown_character_share"] == 1
    assert "more than 100 characters without a blank" in caplog.text


def test_a_large_corpus_is_read_at_even_steps():
    texts = [f"{number:010d}" for number in range(20_000)]
    sample = [text for batch in batches(texts, max_characters=10_000) for text in batch]
    assert sample == texts[::20]
    assert [text for batch in batches(texts, max_characters=200_000) for text in batch] == texts


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_what_goes_on_with_a_word_is_known_by_its_mark(tokenizer_type):
    tokenizer = train_tokenizer(SENTENCES, 256, tokenizer_type)
    continues_word = find_continuations(tokenizer)
    assert continues_word.shape == (len(tokenizer),)
    assert not continues_word[tokenizer.all_special_ids].any()
    ids = tokenizer("la ŝafoj loĝis", add_special_tokens=False)["input_ids"]
    assert (~continues_word[ids]).sum() == 3


def test_a_tokenizer_without_marks_cannot_select_whole_words():
    plain = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL_TOKENS, "la"])}, "[UNK]"))
    with pytest.raises(InputError, match="whole_word_selection: this tokenizer does not mark"):
        find_continuations(PreTrainedTokenizerFast(tokenizer_object=plain))


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_the_mask_takes_its_blank_and_the_words_around_it_keep_their_tokens(tokenizer_type, tmp_path):
    save_tokenizer(train_tokenizer(SENTENCES, 500, tokenizer_type), tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    whole = tokenizer("la ŝafoj loĝis", add_special_tokens=False)["input_ids"]
    parts = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("la", "loĝis")]
    assert tokenizer("la [MASK] loĝis", add_special_tokens=False)["input_ids"] == [*parts[0], 4, *parts[1]]
    assert whole[: len(parts[0])] == parts[0] and whole[-len(parts[1]) :] == parts[1]


def test_in_a_script_without_blanks_whole_words_are_refused_with_what_is_true():
    tokenizer = train_tokenizer(["漢字文章", "文字"], 64)
    with pytest.raises(InputError, match="every character is a word of its own"):
        find_continuations(tokenizer)


@pytest.mark.parametrize("tokenizer_type", ["bpe", "unigram"])
def test_where_a_whole_word_would_be_a_phrase_it_is_refused(tokenizer_type):
    choose, syllables = random.Random(0), [f"{a}{b}" for a in "กขคงจฉช" for b in "าิู"]
    phrases = ["".join(choose.choices(syllables, k=30)) for _ in range(100)]
    with pytest.raises(InputError, match="without blanks between words, so a whole word would be a whole phrase"):
        find_continuations(train_tokenizer(phrases, 512, tokenizer_type))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*SPECIAL_TOKENS, "la", "hundo", "la"], "8 tokens|none has the id 5"),
        ([*SPECIAL_TOKENS, "la", "", "", "hundo"], "none has the id 6"),
        ([token for token in SPECIAL_TOKENS if token != "[UNK]"] + ["la"], r"Put \[UNK\] into it"),
    ],
    ids=["twice", "empty line", "no unknown token"],
)
def test_a_vocabulary_that_would_break_a_model_is_refused_with_the_way_out(lines, message, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ElectraTokenizer"}', encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("tokenizer_type", TYPES)
def test_a_special_token_written_in_a_text_can_be_read_as_text(tokenizer_type):
    backend = train_tokenizer([*SENTENCES, "[ ] S E P"], 500, tokenizer_type).backend_tokenizer
    backend.encode_special_tokens = True
    assert min(backend.encode("[SEP]", add_special_tokens=False).ids) > 4

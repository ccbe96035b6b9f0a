"""What a model says of a text is what the model itself says, and it stands where the text has it."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
)

from electra_hf.errors import InputError
from electra_hf.tasks import predicting
from electra_hf.tasks.alignment import cut_windows
from electra_hf.tasks.inspection import (
    classify_text,
    find_suspicion,
    find_tokens,
    guess_token,
    open_reader,
    split_words,
    tag_words,
    write_token,
)
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

SENTENCES = [
    "The small dog runs through the long street, and nobody follows it.",
    "She reads a book; he isn't reading anything today.",
    "Ĉiutage la hundo kuras rapide en la urbo 🙂.",
    "वह हिन्दी पढ़ता है।",
]
TEXT = "The small dog reads a long book today, and nobody runs."
LENGTH = 64  # tokens at a time
TYPES = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module")
def tokenizers():
    return {
        kind: train_tokenizer(SENTENCES * 20, vocab_size=320, tokenizer_type=kind, model_max_length=LENGTH)
        for kind in TYPES
    }


def save_model(model_class, folder, tokenizer, seed=0, **settings):
    """A network of random weights that are far enough from zero for its outputs to differ."""
    torch.manual_seed(seed)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ElectraConfig(
        vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=LENGTH, initializer_range=0.5, **size,
        **settings,
    )  # fmt: skip
    model = model_class(config).eval()
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return model


@pytest.fixture(scope="module")
def runs(tokenizers, tmp_path_factory):
    """A pretraining run of each type of tokenizer, and a tagger of the first."""
    place = tmp_path_factory.mktemp("runs")
    for kind, tokenizer in tokenizers.items():
        save_model(ElectraForPreTraining, place / kind / "discriminator", tokenizer)
        save_model(ElectraForMaskedLM, place / kind / "generator", tokenizer, seed=1)
    tags = {"id2label": {0: "NOUN", 1: "VERB", 2: "<b>", 3: "X"}}
    save_model(ElectraForTokenClassification, place / "tagger", tokenizers["wordpiece"], **tags)
    return place


@pytest.fixture(scope="module")
def readers(runs):
    return {kind: open_reader(runs / kind) for kind in TYPES}


def plainly(reader, text):
    """What the code on the card gives: the tokenizer's call, the model's logits."""
    encoding = reader.tokenizer(text, return_tensors="pt", return_token_type_ids=True)
    with torch.no_grad():
        return encoding["input_ids"][0], reader.model(**encoding).logits[0]


# Suspicion


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("text", [TEXT, *SENTENCES])
def test_the_probabilities_are_those_of_the_code_on_the_card(readers, kind, text):
    reader = readers[kind]
    ids, logits = plainly(reader, text)
    expected = logits.sigmoid()[1:-1]
    tokens = find_suspicion(reader, text)
    for token in tokens:
        assert token.probability == pytest.approx(expected[list(token.positions)].max().item(), abs=1e-6)
    assert sorted(position for token in tokens for position in token.positions) == list(range(len(ids) - 2))


@pytest.mark.parametrize("kind", TYPES)
def test_the_probabilities_of_different_tokens_differ(readers, kind):
    assert len({round(token.probability, 3) for token in find_suspicion(readers[kind], TEXT)}) > 5


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=60) | st.text(alphabet="ab .,\n\t'ĉ🙂हि\u00ad\u200b", max_size=60),
    kind=st.sampled_from(TYPES),
)
def test_every_token_stands_in_the_text_in_order_and_none_is_a_blank(readers, text, kind):
    end = 0
    for token in find_suspicion(readers[kind], text):
        assert end <= token.start < token.end <= len(text)
        piece = text[token.start : token.end]
        assert piece == piece.strip() != ""
        end = token.end


@pytest.mark.parametrize("kind", TYPES)
def test_every_visible_letter_belongs_to_a_token(readers, kind):
    for text in [TEXT, *SENTENCES]:
        covered = {place for token in find_suspicion(readers[kind], text) for place in range(token.start, token.end)}
        assert covered == {place for place, letter in enumerate(text) if not letter.isspace()}


def test_an_emoji_of_several_bytes_is_one_token_as_suspicious_as_its_worst(readers):
    text = "a 🙃 b"
    ids, logits = plainly(readers["bpe"], text)
    emoji = next(token for token in find_suspicion(readers["bpe"], text) if text[token.start] == "🙃")
    assert (emoji.start, emoji.end) == (2, 3) and len(emoji.positions) > 1
    assert emoji.probability == pytest.approx(logits.sigmoid()[1:-1][list(emoji.positions)].max().item(), abs=1e-6)


@pytest.mark.parametrize("text", ["", " \n\t", "\u00ad"])
def test_a_text_without_a_letter_has_no_token(readers, text):
    assert find_suspicion(readers["wordpiece"], text) == []


def test_a_special_token_that_is_typed_is_text(readers):
    tokenizer = readers["wordpiece"].tokenizer
    ids, _ = find_tokens(tokenizer, "the [SEP] dog [MASK]")
    assert not {tokenizer.sep_token_id, tokenizer.mask_token_id} & set(ids)


def test_a_long_text_is_read_in_windows_each_token_where_it_has_most_context(readers):
    reader = readers["wordpiece"]
    text = " ".join(SENTENCES * 10)
    ids, _ = find_tokens(reader.tokenizer, text)
    windows = cut_windows([1] * len(ids), LENGTH - 2)
    assert len(windows) > 5
    expected = {}
    for first, end, scored in windows:
        window = [reader.tokenizer.cls_token_id, *ids[first:end], reader.tokenizer.sep_token_id]
        with torch.no_grad():
            logits = reader.model(input_ids=torch.tensor([window])).logits[0, 1:-1]
        expected |= {place: logits[place - first].sigmoid().item() for place in scored}
    tokens = find_suspicion(reader, text)
    assert len(tokens) == len(ids)
    for place, token in enumerate(tokens):
        assert token.probability == pytest.approx(expected[place], abs=1e-6)


@pytest.mark.parametrize("number", [0, 1, 61, 62, 63, 64, 93, 200, 1_001])
def test_the_windows_score_every_token_once_and_in_order(number):
    scored = [place for _, _, places in cut_windows([1] * number, LENGTH - 2) for place in places]
    assert scored == list(range(number))


# Guesses


@pytest.mark.parametrize("kind", TYPES)
def test_the_guesses_are_the_generator_s_own(readers, kind):
    reader = readers[kind]
    token = find_suspicion(reader, TEXT)[3]
    ids, _ = plainly(reader, TEXT)
    place = token.positions[0] + 1
    assert len(token.positions) == 1
    masked = ids.clone()
    masked[place] = reader.tokenizer.mask_token_id
    with torch.no_grad():
        probabilities = reader.generator(input_ids=masked[None]).logits[0, place].softmax(-1)
    best = [index for index in probabilities.argsort(descending=True).tolist() if write_token(reader.tokenizer, index)]
    guesses = guess_token(reader, TEXT, token, number=5)
    assert [guess.piece for guess in guesses] == [write_token(reader.tokenizer, index) for index in best[:5]]
    assert [guess.probability for guess in guesses] == pytest.approx(probabilities[best[:5]].tolist(), abs=1e-6)
    for guess, index in zip(guesses, best, strict=False):
        put = ids.clone()
        put[place] = index
        with torch.no_grad():
            suspicion = reader.model(input_ids=put[None]).logits[0, place].sigmoid().item()
        assert guess.suspicion == pytest.approx(suspicion, abs=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_the_text_with_a_guess_is_the_text_with_that_piece_in_the_place(readers, kind):
    reader = readers[kind]
    for token in find_suspicion(reader, TEXT):
        for guess in guess_token(reader, TEXT, token, number=4):
            assert guess.text[guess.start : guess.start + len(guess.piece)] == guess.piece
            assert guess.text[: guess.start].rstrip() == TEXT[: token.start].rstrip()
            assert guess.text[guess.start + len(guess.piece) :].lstrip() == TEXT[token.end :].lstrip()


def test_a_piece_that_goes_on_with_a_word_is_joined_to_it_and_a_word_is_not(readers):
    reader = readers["wordpiece"]
    tokenizer = reader.tokenizer
    text = "the dog runs"
    token = find_suspicion(reader, text)[1]
    guesses = guess_token(reader, text, token, number=len(tokenizer))
    assert any("dog" not in guess.text and guess.text.startswith("the ") for guess in guesses)
    joined = [guess for guess in guesses if guess.text[guess.start - 1] != " "]
    assert joined and all(guess.text.startswith("the" + guess.piece) for guess in joined)


def test_a_text_with_a_guess_put_in_has_the_suspicion_that_was_foretold(readers):
    """Where the new text is read as the same tokens but one, which is nearly always."""
    reader, right = readers["wordpiece"], 0
    old = find_suspicion(reader, TEXT)
    for token in old[:8]:
        guess = guess_token(reader, TEXT, token, number=1)[0]
        new = find_suspicion(reader, guess.text)
        there = [found for found in new if found.start == guess.start]
        if len(new) == len(old) and there:
            assert there[0].probability == pytest.approx(guess.suspicion, abs=1e-6)
            right += 1
    assert right > 3


def test_no_guess_is_a_special_token_or_a_filler(readers):
    reader = readers["wordpiece"]
    assert any(token.startswith("[unused") for token in reader.tokenizer.get_vocab())
    guesses = guess_token(reader, TEXT, find_suspicion(reader, TEXT)[0], number=len(reader.tokenizer))
    pieces = {guess.piece for guess in guesses}
    assert not any(piece.startswith("[") and len(piece) > 1 for piece in pieces) and "" not in pieces


def test_a_discriminator_alone_guesses_nothing_and_says_why(runs, tmp_path):
    shutil.copytree(runs / "wordpiece/discriminator", tmp_path / "alone")
    reader = open_reader(tmp_path / "alone")
    with pytest.raises(InputError, match="no generator"):
        guess_token(reader, TEXT, find_suspicion(reader, TEXT)[0])


# Tags and labels


@pytest.mark.parametrize(
    "text, words",
    [
        ("The dog runs .", ["The", "dog", "runs", "."]),
        ("The dog, (it) runs!?", ["The", "dog", ",", "(", "it", ")", "runs", "!", "?"]),
        ("He doesn't use list.sort() or x-y.", ["He", "doesn't", "use", "list.sort", "(", ")", "or", "x-y", "."]),
        ("do n't it 's we ’ll", ["do", "n't", "it", "'s", "we", "’ll"]),
        ("वह हिन्दी है।", ["वह", "हिन्दी", "है", "।"]),
        ("$5 ... 🙂", ["$", "5", ".", ".", ".", "🙂"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_words_stand_between_blanks_and_signs_at_their_ends_are_words(text, words):
    assert [text[start:end] for start, end in split_words(text)] == words


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_the_words_of_a_text_are_all_of_it_but_the_blanks(text):
    spans = split_words(text)
    assert "".join(text[start:end] for start, end in spans) == "".join(text.split())
    assert all(start < end for start, end in spans) and spans == sorted(spans)


def test_the_tags_are_those_of_the_code_on_the_card(runs):
    reader = open_reader(runs / "tagger")
    words = "The small dog reads a long book today , and nobody runs .".split()
    inputs = reader.tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        probabilities = reader.model(**inputs).logits[0].softmax(-1)
    tagged = tag_words(reader, TEXT)
    assert [TEXT[word.start : word.end] for word in tagged] == words
    for number, word in enumerate(tagged):
        expected = probabilities[inputs.word_to_tokens(number).start]
        assert word.tags[0][0] == reader.model.config.id2label[expected.argmax().item()]
        assert dict(word.tags)["VERB"] == pytest.approx(expected[1].item(), abs=1e-6)
        assert sum(probability for _, probability in word.tags) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("running_text", [True, False])
def test_a_tagger_reads_the_text_on_the_page_as_it_was_trained_to(runs, running_text):
    reader = open_reader(runs / "tagger")
    reader.model.config.running_text = running_text
    # Word by word, every word begins a token of its own; in running text "adogtoday," has no such borders.
    text = "(adogtoday, and) " + TEXT * 3
    words = [text[start:end] for start, end in split_words(text)]
    expected = predicting.tag_words(words, reader.model, reader.tokenizer, text)
    assert [word.tags[0][0] for word in tag_words(reader, text)] == expected


def test_every_word_of_a_long_text_has_a_tag(runs):
    text = " ".join(SENTENCES * 10)
    assert len(tag_words(open_reader(runs / "tagger"), text)) == len(split_words(text))


def test_a_text_without_a_word_has_no_tag(runs):
    assert tag_words(open_reader(runs / "tagger"), " ") == []


def test_the_labels_are_those_of_the_model_and_a_long_text_is_cut_as_in_fine_tuning(tokenizers, tmp_path):
    labels = {"id2label": {0: "good", 1: "bad", 2: "so so"}}
    save_model(ElectraForSequenceClassification, tmp_path, tokenizers["wordpiece"], **labels)
    reader = open_reader(tmp_path)
    for text in (TEXT, " ".join(SENTENCES * 10)):
        inputs = reader.tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            expected = reader.model(**inputs).logits[0].softmax(-1)
        values, length, seen = classify_text(reader, text)
        assert dict(values) == pytest.approx(dict(zip(labels["id2label"].values(), expected.tolist(), strict=True)))
        assert [value for _, value in values] == sorted((value for _, value in values), reverse=True)
        assert seen == min(length, LENGTH - 2)


def test_a_model_of_numbers_gives_its_number(tokenizers, tmp_path):
    settings = {"id2label": {0: "score"}, "problem_type": "regression"}
    save_model(ElectraForSequenceClassification, tmp_path, tokenizers["wordpiece"], **settings)
    reader = open_reader(tmp_path)
    ((name, value),), _, _ = classify_text(reader, TEXT)
    _, logits = plainly(reader, TEXT)
    assert name == "score" and value == pytest.approx(logits.item(), abs=1e-6)


# Folders


def test_a_run_and_its_discriminator_are_the_same_model_with_the_generator_beside_it(runs):
    for folder in (runs / "wordpiece", runs / "wordpiece/discriminator"):
        reader = open_reader(folder)
        assert (reader.kind, reader.max_length, reader.generator is not None) == ("detector", LENGTH, True)
        assert reader.folder == runs / "wordpiece/discriminator"


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def lose_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.popitem()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model that can be loaded"),
    "cut weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
        "holds no model that can be loaded",
    ),
    "a weight missing": (lose_weight, "lacks 1 weights"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "cut config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "other shapes": (lambda folder: change_config(folder, hidden_size=32), "holds no model that can be loaded"),
    "no architecture": (lambda folder: change_config(folder, architectures=None), "found nothing in config.json"),
    "a pair": (
        lambda folder: change_config(folder, model_type="electra-pretraining"),
        "recipes/export.py --checkpoint",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_words(runs, tmp_path, damage):
    shutil.copytree(runs / "wordpiece/discriminator", tmp_path / "model")
    break_it, message = DAMAGES[damage]
    break_it(tmp_path / "model")
    with pytest.raises(InputError, match=message) as caught:
        open_reader(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)


def test_a_folder_without_a_model_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        open_reader(tmp_path / "none")
    with pytest.raises(InputError, match="holds no model"):
        open_reader(tmp_path)
    (tmp_path / "checkpoint-8").mkdir()
    with pytest.raises(InputError, match="recipes/export.py"):
        open_reader(tmp_path)


@pytest.mark.parametrize("model_class", [ElectraForMaskedLM, ElectraForQuestionAnswering])
def test_a_model_that_says_nothing_of_a_text_alone_is_refused(tokenizers, tmp_path, model_class):
    save_model(model_class, tmp_path, tokenizers["wordpiece"])
    with pytest.raises(InputError, match=f"found {model_class.__name__}"):
        open_reader(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(runs, tokenizers, tmp_path):
    shutil.copytree(runs / "wordpiece/discriminator", tmp_path / "model")
    larger = train_tokenizer(SENTENCES * 20, vocab_size=448, tokenizer_type="bpe", model_max_length=LENGTH)
    assert len(larger) > len(tokenizers["wordpiece"])
    save_tokenizer(larger, tmp_path / "model")
    with pytest.raises(InputError, match="does not fit its tokenizer"):
        open_reader(tmp_path / "model")

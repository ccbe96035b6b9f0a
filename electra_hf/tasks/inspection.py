"""What a finished model says of a text, with the places in the text: suspicion, guesses, tags, labels."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import models
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from electra_hf.errors import InputError
from electra_hf.files import read_json
from electra_hf.tasks.alignment import cut_windows, make_windows
from electra_hf.text.tagged_text import TaggedSentence
from electra_hf.text.tokenization import load_tokenizer

# What a folder's config.json calls its model, what that is here, and the class that loads it.
KINDS = {
    "ElectraForPreTraining": ("detector", AutoModelForPreTraining),
    "ForTokenClassification": ("tagger", AutoModelForTokenClassification),
    "ForSequenceClassification": ("classifier", AutoModelForSequenceClassification),
}


@dataclass
class Reader:
    """A model that reads texts, and its own folder. `generator` is a detector's partner, where it lies beside it."""

    folder: Path
    kind: str  # detector | tagger | classifier
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # tokens it reads at a time, [CLS] and [SEP] included
    generator: PreTrainedModel | None = None


class Token(NamedTuple):
    """Characters start to end of the text, and how probably they were replaced.

    `positions`: where its tokens stand among those of the text. A letter that byte-level BPE writes with several
    tokens is one `Token`.
    """

    start: int
    end: int
    probability: float
    positions: tuple[int, ...]


class Word(NamedTuple):
    """Characters start to end of the text, and the tags with their probabilities, the most probable first."""

    start: int
    end: int
    tags: list[tuple[str, float]]


class Guess(NamedTuple):
    """What the generator would put at a place, and how probably; `text` is the whole text with it.

    `start` is where it stands there, `suspicion` how probably the discriminator would call it replaced.
    """

    piece: str
    probability: float
    text: str
    start: int
    suspicion: float


def open_reader(folder: str | Path) -> Reader:
    """The model of a folder: a pretraining run (discriminator/ and generator/), a discriminator, tagger, classifier.

    Nothing is fetched. Raises `InputError` where there is no such model, or where it cannot be loaded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder. Give the folder of a run or of a model.")
    # A run and its discriminator mean the same here, so that a user can give either.
    inner = folder / "discriminator" if (folder / "discriminator").is_dir() else folder
    kind, auto_class = _find_kind(inner)
    model, tokenizer = _load(auto_class, inner), load_tokenizer(inner)
    # The smaller one: a tokenizer without a limit of its own says 10^30.
    max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
    _check_fit(inner, tokenizer, model, max_length)
    partner = inner.parent / "generator"
    generator = None
    # Only a run's own neighbour is surely of the same training and vocabulary.
    if kind == "detector" and inner.name == "discriminator" and partner.is_dir():
        generator = _load(AutoModelForMaskedLM, partner)
        _check_fit(partner, tokenizer, generator, max_length)
    return Reader(inner, kind, model, tokenizer, max_length, generator)


def _find_kind(folder):
    if not (folder / "config.json").is_file():
        way_out = "Give the folder of a finished run, or of a model (config.json, model.safetensors)."
        if any(folder.glob("checkpoint-*")):
            command = f"python recipes/export.py --checkpoint {folder}/checkpoint-N --output_dir FOLDER"
            way_out = f"Make one from a checkpoint: {command}"
        raise InputError(f"{folder} holds no model: neither config.json nor discriminator/. {way_out}")
    config = read_json(folder / "config.json")
    if config.get("model_type") == "electra-pretraining":
        raise InputError(
            f"{folder} is a checkpoint of generator and discriminator together. Make the two models from it: "
            f"python recipes/export.py --checkpoint {folder} --output_dir FOLDER"
        )
    architectures = config.get("architectures") or ["nothing"]
    # By the ending, since an encoder of another family may have been fine-tuned too.
    for ending, kind in KINDS.items():
        if str(architectures[0]).endswith(ending):
            return kind
    raise InputError(
        f"{folder}: expected a discriminator, a tagger or a classifier, found {architectures[0]} in config.json. "
        "A generator is shown with its discriminator: give the folder that holds both."
    )


def _load(auto_class, folder):
    try:
        model, loading = auto_class.from_pretrained(
            folder, dtype="float32", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a damaged file raises whatever it leads to
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} holds no model that can be loaded ({reason}). Make or fetch it again.") from None
    # The library would fill these with random numbers and only warn; the page would show noise.
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"{folder}: model.safetensors lacks {len(missing)} weights, {missing[0]} first.")
    return model.eval()


def _check_fit(folder, tokenizer, model, max_length):
    if len(tokenizer) > model.config.vocab_size or max_length > model.config.max_position_embeddings:
        raise InputError(
            f"{folder} does not fit its tokenizer: it knows {model.config.vocab_size} tokens and reads "
            f"{model.config.max_position_embeddings} at a time; the tokenizer has {len(tokenizer)}, for {max_length}. "
            "Put the tokenizer there that it was trained with."
        )
    if max_length < 3:
        raise InputError(f"{folder} reads {max_length} tokens at a time, which leaves no room for text.")


# Tokens: the text is read as a whole, in windows that overlap where it is too long


def find_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The text's token ids without special ones, and where in the text each stands. A typed "[SEP]" is text."""
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    return encoding["input_ids"], [_trim(text, *span) for span in encoding["offset_mapping"]]


def _trim(text, start, end):
    """The span without the blanks that some tokenizers count to a token."""
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    # A token of blanks alone becomes an empty span, never one that ends before it starts.
    return (start + left, start + max(left, len(piece.rstrip())))


@torch.no_grad()
def score_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int], size: int) -> Tensor:
    """The model's logits (N, ...) for N token ids, in windows of at most `size` tokens and [CLS] and [SEP].

    A text that fits is read at once. In a longer one each token is scored where it has most context.
    """
    rows = [
        _score_window(model, tokenizer, ids[first:end])[[index - first for index in scored]]
        for first, end, scored in _windows(len(ids), size)
    ]
    return torch.cat(rows) if rows else torch.empty(0)


def _windows(number, size):
    """Windows of a text of so many tokens, their scored ones rising: together, every token once and in order."""
    return cut_windows([1] * number, size)


def _score_window(model, tokenizer, ids):
    window = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    return model(input_ids=window).logits[0, 1:-1].float()


def find_suspicion(reader: Reader, text: str) -> list[Token]:
    """Every token of the text with the discriminator's probability that it was replaced, in the order of the text."""
    ids, spans = find_tokens(reader.tokenizer, text)
    probabilities = score_tokens(reader.model, reader.tokenizer, ids, reader.max_length - 2).sigmoid().tolist()
    return [
        Token(*span, max(probabilities[position] for position in positions), positions)
        for span, positions in _join_spans(spans)
    ]


def _join_spans(spans):
    """Spans that follow each other, each with its positions: tokens that share a character stand together."""
    # Byte-level BPE writes a rare letter with several tokens that all have the same span: to a reader that is one.
    joined, waiting = [], []
    for position, (start, end) in enumerate(spans):
        # No character may stand in two spans, else the page would show it twice.
        start = max(start, joined[-1][0][1] if joined else 0)
        if start < end:
            joined.append(((start, end), (*waiting, position)))
            waiting = []
        elif joined:
            joined[-1] = (joined[-1][0], (*joined[-1][1], position))
        else:  # a token of a blank before the first letter
            waiting.append(position)
    return joined


# Guesses


def guess_token(reader: Reader, text: str, token: Token, number: int = 8) -> list[Guess]:
    """What the generator would put in the token's place, the most probable first; the token itself may be among it.

    It reads the text with the token masked, in the window that shows most around it. Raises `InputError` where the
    model has no generator.
    """
    if reader.generator is None:
        raise InputError(f"{reader.folder} has no generator beside its discriminator, so nothing guesses.")
    tokenizer, size = reader.tokenizer, reader.max_length - 2
    ids, _ = find_tokens(tokenizer, text)
    # All tokens of a letter give way to one mask: half a letter cannot stay in the text.
    place = token.positions[0]
    before, after = ids[:place], ids[token.positions[-1] + 1 :]
    masked = [*before, tokenizer.mask_token_id, *after]
    probabilities = _score_place(reader.generator, tokenizer, masked, place, size).softmax(-1)
    guesses = []
    # Some tokens cannot be written: special ones, parts of a letter, blanks, the fillers of a vocabulary.
    for candidate in probabilities[: len(tokenizer)].argsort(descending=True)[: 4 * number].tolist():
        piece = write_token(tokenizer, candidate)
        if piece and len(guesses) < number:
            new_ids = [*before, candidate, *after]
            written = _put(tokenizer, text, token, piece, new_ids)
            suspicion = _score_place(reader.model, tokenizer, new_ids, place, size).sigmoid().item()
            guesses.append(Guess(piece, probabilities[candidate].item(), *written, suspicion))
    return guesses


@torch.no_grad()
def _score_place(model, tokenizer, ids, place, size):
    """The logits of one token alone, equal to its row of `score_tokens`."""
    (first, end) = next((first, end) for first, end, scored in _windows(len(ids), size) if place in scored)
    return _score_window(model, tokenizer, ids[first:end])[place - first]


def write_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """The token as it stands in a text, without blanks; empty for a token that cannot stand in a text on its own."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token_id in tokenizer.all_special_ids or re.fullmatch(r"\[unused\d+\]", token):
        return ""
    # The clean-up would take blanks away before punctuation, which depends on neighbours that are not there.
    piece = tokenizer.decode([token_id], clean_up_tokenization_spaces=False).strip()
    # "##" marks a continued word in WordPiece alone; elsewhere the two signs are text.
    if isinstance(tokenizer.backend_tokenizer.model, models.WordPiece):
        piece = piece.removeprefix("##") if piece != "##" else piece
    # That sign is what a part of a letter decodes to.
    return "" if "\ufffd" in piece else piece


def _put(tokenizer, text, token, piece, ids):
    """The text with `piece` in the token's place, and where it stands: with the blanks that give the tokens `ids`.

    "##ing" goes on with the word before it, and a word in the place of "##s" needs a blank. Where no way of writing
    gives these tokens, the blanks stay as they are.
    """
    left, right = text[: token.start], text[token.end :]
    # The text as it is comes first, so that blanks change only where they have to.
    for before in (left, left.rstrip(), left + " "):
        for after in (right, " " + right):
            written = before + piece + after
            if find_tokens(tokenizer, written)[0] == ids:
                return written, len(before)
    return left + piece + right, len(left)


# Tags and labels


def split_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text stand: what blanks part, and each sign of punctuation at its ends a word of its own.

    Signs inside a word stay in it (don't, list.sort), and so does an apostrophe before a letter ('s, 'll), as taggers'
    texts write them.
    """
    spans = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        # From the left and from the right only: what stands between letters stays, as in list.sort.
        while start < end and _is_sign(text[start]) and not re.match(r"['’]\w", text[start:end]):
            spans.append((start, start + 1))
            start += 1
        signs = []
        while start < end and _is_sign(text[end - 1]):
            signs.append((end - 1, end))
            end -= 1
        spans += ([(start, end)] if start < end else []) + signs[::-1]
    return spans


def _is_sign(character):
    return unicodedata.category(character)[0] in "PS"


@torch.no_grad()
def tag_words(reader: Reader, text: str) -> list[Word]:
    """Every word of the text with a tagger's tags, as its fine-tuning read them: by the first token of the word."""
    spans = split_words(text)
    words = [text[start:end] for start, end in spans]
    # Tags and lines are placeholders: the windows of the recipe want a whole sentence.
    sentence = TaggedSentence(words, [""] * len(words), "text", [0] * len(words))
    if getattr(reader.model.config, "running_text", False):  # it was trained on words as they stand in their text
        sentence.text, sentence.spans = text, spans
    tagged = {}
    # The recipe's own windows, so that the page says what the scores were measured on.
    for window in make_windows([sentence], reader.tokenizer, {}, reader.max_length):
        logits = reader.model(input_ids=torch.tensor([window["input_ids"]])).logits[0]
        for word, position in zip(window["words"], window["positions"], strict=True):
            tagged[word] = name_outputs(reader.model, logits[position].softmax(-1))
    return [Word(*span, tagged[index]) for index, span in enumerate(spans)]


@torch.no_grad()
def classify_text(reader: Reader, text: str) -> tuple[list[tuple[str, float]], int, int]:
    """A classifier's labels with their probabilities, the most probable first; tokens of the text, and those read.

    A model of numbers gives one pair, its name and the number. It reads the beginning of a text that is too long, as
    in fine-tuning.
    """
    ids, _ = find_tokens(reader.tokenizer, text)
    # Cut where fine-tuning cuts; both numbers go back, so that the page can say what was not read.
    read = ids[: reader.max_length - 2]
    window = torch.tensor([[reader.tokenizer.cls_token_id, *read, reader.tokenizer.sep_token_id]])
    logits = reader.model(input_ids=window).logits[0].float()
    values = logits if gives_number(reader.model) else _as_probabilities(reader.model, logits)
    return name_outputs(reader.model, values), len(ids), len(read)


def gives_number(model: PreTrainedModel) -> bool:
    """Whether a classifier gives a number in place of labels."""
    return model.config.problem_type == "regression" or model.config.num_labels == 1


def _as_probabilities(model, logits):
    # With several labels at a time each has a probability of its own.
    return logits.sigmoid() if model.config.problem_type == "multi_label_classification" else logits.softmax(-1)


def name_outputs(model: PreTrainedModel, values: Tensor) -> list[tuple[str, float]]:
    """The names of a model's outputs with their values (labels,), the largest first."""
    order = values.argsort(descending=True).tolist()
    return [(str(model.config.id2label[index]), float(values[index])) for index in order]

"""A tagger's answers outside of its recipe, and the same as in it: one tag for each word of any text."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from electra_hf.errors import InputError
from electra_hf.tasks.alignment import gather_words, make_windows
from electra_hf.tasks.finetuning import longest_window
from electra_hf.text.running_text import locate
from electra_hf.text.tagged_text import TaggedSentence

BATCH = 32  # windows that the model reads at a time


def tag_words(
    words: list[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str | None = None
) -> list[str]:
    """The tag of each word, as the recipe that fine-tuned this model would give it, however many words there are.

    `text` is the running text that the words stand in: a tagger that was trained on such reads it. Raises `InputError`
    where the text is not made of the words in their order, blanks aside.
    """
    # Where each word stands is looked for here, so that a caller needs the words and the text only.
    spans = None if text is None else locate(words, text)
    if text is not None and spans is None:
        raise InputError("text: expected a text made of the words in their order, blanks aside. Give each word once.")
    # Tags and lines are placeholders: they are only used in training and in messages.
    sentence = TaggedSentence(words, [""] * len(words), "words", [0] * len(words), text, spans)
    return tag_sentences([sentence], model, tokenizer)[0] if words else []


def tag_sentences(
    sentences: list[TaggedSentence], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[list[str]]:
    """The tags of each sentence, such as `read_tagged_sentences` reads from a file; its own tags are not looked at."""
    if not getattr(model.config, "running_text", True):  # it was trained word by word
        sentences = [replace(sentence, text=None, spans=None) for sentence in sentences]
    # An empty `label2id`: nothing is to be learned, so every label is ignored.
    windows = make_windows(sentences, tokenizer, {}, longest_window(None, tokenizer, model.config))
    predicted = []
    model.eval()
    for start in range(0, len(windows), BATCH):
        rows = [{"input_ids": window["input_ids"]} for window in windows[start : start + BATCH]]
        inputs = tokenizer.pad(rows, return_tensors="pt").to(model.device)
        with torch.no_grad():
            predicted += model(**inputs).logits.argmax(-1).tolist()
    names = model.config.id2label
    return [[names[label] for label in row] for row in gather_words(windows, predicted, sentences)]

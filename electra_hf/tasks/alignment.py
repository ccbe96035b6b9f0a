"""Words and tokens: labels on first sub-tokens, long sentences in windows, one prediction per word."""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate, chain

from torch import Tensor
from torch.nn import functional

IGNORED = -100  # the label that carries no loss (PyTorch's default)
# What is counted of the words: those read in a running text, and of them those that begin inside a token of the word
# before; and those that the tokenizer leaves nothing of.
WORD_COUNTS = ("words_in_running_text", "words_with_shared_token", "words_without_token")


def encode_words(sentences: list, tokenizer, counts: Counter | None = None) -> Iterator[list[list[int]]]:
    """Yield, per sentence, the token ids of each word, one at least.

    `sentences` is a list of `TaggedSentence`, here and below, and `tokenizer` a fast tokenizer. Where a sentence has
    its running text, the tokens are those of the text, as pretraining read it, and a word's ids are those of all
    tokens that cover some of it. A token that covers several words (`した` for `し` and `た`, French `du` for `de` and
    `le`) therefore stands once in each, so that every word has a place for its label and its prediction. A word that
    the tokenizer leaves nothing of is [UNK]. `counts` gains what `WORD_COUNTS` names.
    """
    counts = Counter() if counts is None else counts
    settings = {
        "add_special_tokens": False,
        "return_attention_mask": False,
        "return_token_type_ids": False,
        "split_special_tokens": True,  # a word "[SEP]" in a text about BERT is a word
        "verbose": False,  # no warning about long sentences: they are cut into windows
    }
    for sentence in sentences:
        if sentence.spans is None:
            encoding = tokenizer(sentence.words, is_split_into_words=True, **settings)
            pieces = [[] for _ in sentence.words]
            for token_id, word in zip(encoding["input_ids"], encoding.word_ids(), strict=True):
                pieces[word].append(token_id)
        else:
            encoding = tokenizer(sentence.text, return_offsets_mapping=True, **settings)
            pieces = _share_out(encoding["input_ids"], encoding["offset_mapping"], sentence.spans, counts)
            counts["words_in_running_text"] += len(sentence.words)
        counts["words_without_token"] += sum(not ids for ids in pieces)
        # A soft hyphen or a zero-width space alone is cleaned away; its word still needs a prediction.
        yield [ids or [tokenizer.unk_token_id] for ids in pieces]


def _share_out(token_ids, offsets, spans, counts):
    """The ids of each word of a running text; `offsets` and `spans` are the characters of tokens and words."""
    starts, ends = ([place[side] for place in offsets] for side in (0, 1))
    pieces, read = [], 0  # how many tokens stand in a word already
    for start, end in spans:
        after = max(read, bisect_left(starts, end))
        first = min(read, bisect_right(ends, start, hi=read))  # before `read`: what the word shares with others
        counts["words_with_shared_token"] += first < read
        # A blank that is a token goes to the word behind it.
        pieces.append(token_ids[first:after])
        read = after
    pieces[-1] += token_ids[read:]
    return pieces


def cut_windows(lengths: list[int], size: int) -> list[tuple[int, int, list[int]]]:
    """Cut words of `lengths` tokens (1 to `size` each) into windows of at most `size` tokens that overlap by half.

    Returns (first word, end, scored words) per window. Every word is scored exactly once, in the window that shows
    most context on its poorer side; a window that scores none is left out.
    """
    offsets = [0, *accumulate(lengths)]
    spans, first, end = [], 0, 0
    while end < len(lengths):
        end = bisect_right(offsets, offsets[first] + size) - 1
        spans.append((first, end))
        first = min(max(first + 1, bisect_left(offsets, offsets[first] + size // 2)), end)
    best = [(-1, 0)] * len(lengths)  # per word: context, window
    for window, (first, end) in enumerate(spans):
        for word in range(first, end):
            context = min(offsets[word] - offsets[first], offsets[end] - offsets[word + 1])
            if context > best[word][0]:
                best[word] = (context, window)
    scored = defaultdict(list)
    for word, (_, window) in enumerate(best):
        scored[window].append(word)
    return [(*spans[window], words) for window, words in sorted(scored.items())]


def make_windows(
    sentences: list, tokenizer, label2id: dict[str, int], max_length: int, counts: Counter | None = None
) -> list[dict]:
    """Turn sentences into the model's input: `input_ids` and `labels` of at most `max_length` tokens each.

    The first token of a word that the window scores carries the word's label, every other token -100 (rule 19). The
    keys `sentence`, `words` and `positions` say which word is scored at which token; see `gather_words`. `counts`
    gains what `encode_words` counts.
    """
    size = max_length - 2  # [CLS] and [SEP]
    windows = []
    for index, (sentence, pieces) in enumerate(
        zip(sentences, encode_words(sentences, tokenizer, counts), strict=True)
    ):
        pieces = [ids[:size] for ids in pieces]
        for first, end, words in cut_windows([len(ids) for ids in pieces], size):
            input_ids = [tokenizer.cls_token_id, *chain(*pieces[first:end]), tokenizer.sep_token_id]
            starts = list(accumulate(map(len, pieces[first:end]), initial=1))
            positions = [starts[word - first] for word in words]
            labels = [IGNORED] * len(input_ids)
            for word, position in zip(words, positions, strict=True):
                labels[position] = label2id.get(sentence.tags[word], IGNORED)
            windows.append(
                {"input_ids": input_ids, "labels": labels, "sentence": index, "words": words, "positions": positions}
            )
    return windows


def gather_words(windows: list[dict], predictions, sentences: list) -> list[list[int]]:
    """One prediction per word from one per token: a list for each sentence, as long as its words.

    `windows` are those of `make_windows` for the same `sentences`; `predictions` (windows, L) has a number per token.
    """
    gathered = [[None] * len(sentence.words) for sentence in sentences]
    for window, row in zip(windows, predictions, strict=True):
        for word, position in zip(window["words"], window["positions"], strict=True):
            gathered[window["sentence"]][word] = int(row[position])
    return gathered


def labels_and_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable label of each token and its loss, both (B, L), from logits (B, L, labels).

    A `preprocess_logits_for_metrics` of `Trainer`: what an evaluation keeps does not grow with the number of labels.
    """
    losses = functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return logits.argmax(-1), losses

"""Fine-tuning an answerer: questions become windows of their texts, a seed a model, its outputs answers and scores."""

import math
import re
from dataclasses import dataclass, field

import numpy as np
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
)

from electra_hf.errors import InputError
from electra_hf.tasks.answer_metrics import compute_answer_scores, find_best_threshold, score_each_answer
from electra_hf.tasks.finetuning import (
    EncoderArguments,
    FinetuningArguments,
    fine_tune,
    load_config,
    load_encoder_tokenizer,
    longest_window,
)
from electra_hf.tasks.question_answering import (
    Answer,
    Question,
    QuestionAnsweringArguments,
    QuestionAnsweringData,
)

BATCH = 1_000  # questions that are encoded at a time
NULL = 0  # the position that stands for no answer: that of [CLS]
HIDDEN = -1  # in place of the offsets of a token that is no part of the context


@dataclass
class AnswererTrainingArguments(FinetuningArguments):
    """`FinetuningArguments`, with as many epochs as the paper took for SQuAD."""

    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the training part (paper: 2)."})


@dataclass
class Windows:
    """What the model reads: one input per window, with the number of its question and what its tokens stand for.

    `offsets` of a window: (L, 2), where each token begins and ends in the context, `HIDDEN` if it is no part of it.
    """

    inputs: list[dict]
    questions: list[int]
    offsets: list[np.ndarray]


@dataclass
class AnswererInputs:
    """What the model reads of each part, and of how many training questions no window holds the whole answer."""

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    doc_stride: int
    train: list[dict]
    threshold: Windows
    test: Windows
    train_answers_cut: int


@dataclass
class Found:
    """The best span of a question, and by how much the score of no answer is above its own."""

    text: str
    difference: float

    def above(self, threshold: float | None) -> str:
        """The answer to give: none above the threshold, which is None where every question has an answer."""
        return "" if threshold is not None and self.difference > threshold else self.text


def make_inputs(
    encoder_args: EncoderArguments, data: QuestionAnsweringData, arguments: QuestionAnsweringArguments
) -> AnswererInputs:
    """Load configuration and tokenizer and cut every text into windows. Raises `InputError` if they do not fit.

    The tokenizer remembers max_length, so that the lines of code in the card read what the model was trained on.
    """
    config = load_config(encoder_args.model_name_or_path, ["start", "end"])
    tokenizer = load_encoder_tokenizer(encoder_args)
    tokenizer.model_max_length = longest_window(arguments.max_length, tokenizer, config)
    tokenizer.padding_side = "right"  # the positions of answers count from the left
    stride = tokenizer.model_max_length // 4 if arguments.doc_stride is None else arguments.doc_stride
    # All parts are checked before the first window is cut: that takes the most time here.
    for questions in (data.train, data.threshold, data.test):
        _check_lengths(questions, tokenizer, stride)
    train, threshold, test = (
        make_windows(questions, tokenizer, stride) for questions in (data.train, data.threshold, data.test)
    )
    windows = zip(train.questions, train.inputs, strict=True)
    # A window without the whole answer has its target on [CLS]; a question is lost where all its windows do.
    whole = {number for number, window in windows if window["start_positions"] != NULL}
    cut = sum(bool(question.answers) and number not in whole for number, question in enumerate(data.train))
    if not whole:
        raise InputError(
            f"{data.train[0].place} and the rest of the training part: no window holds a whole answer. Raise "
            f"max_length (now {tokenizer.model_max_length}) or doc_stride (now {stride})."
        )
    return AnswererInputs(config, tokenizer, stride, train.inputs, threshold, test, cut)


def _check_lengths(questions, tokenizer, stride):
    """Every window takes a whole question, the tokens that it shares with the window before, and a new one."""
    # The 1 is one new token of the text per window: without it the windows would never come to the end.
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add(pair=True) - stride - 1
    if room < 1:
        raise InputError(
            f"doc_stride: windows of {tokenizer.model_max_length} tokens that share {stride} have no room for a "
            "question and new text. Lower doc_stride, or raise max_length."
        )
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        # In batches: a tokenizer reads many texts in parallel, but its output for all of them at once would be large.
        encoded = tokenizer([question.text for question in batch], add_special_tokens=False, verbose=False)
        for question, ids in zip(batch, encoded["input_ids"], strict=True):
            if len(ids) > room:
                raise InputError(
                    f"{question.place}: the question has {len(ids)} tokens, and a window of "
                    f"{tokenizer.model_max_length} that shares {stride} with the next has room for {room}. Shorten "
                    "it or leave it out, lower doc_stride, or raise max_length if the model allows it."
                )


def make_windows(questions: list[Question], tokenizer: PreTrainedTokenizerBase, doc_stride: int) -> Windows:
    """Every question with every window of its context; two windows in a row share `doc_stride` tokens of the context.

    The target is the first gold answer, as is usual; where a window does not hold all of it, no answer. The last
    window keeps what is left, so no character of a context is lost.
    """
    windows = Windows([], [], [])
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        encoded = tokenizer(
            [question.text for question in batch],
            [question.context for question in batch],
            truncation="only_second",
            stride=doc_stride,
            return_overflowing_tokens=True,
        )
        numbers = encoded["overflow_to_sample_mapping"]
        for index, (number, encoding) in enumerate(zip(numbers, encoded.encodings, strict=True)):
            question = batch[number]
            offsets = _offsets_in_context(encoding, question.context)
            # Windows come in the order of the text: the one before and the one behind tell whether this is at an edge.
            is_first, is_last = (not 0 <= i < len(numbers) or numbers[i] != number for i in (index - 1, index + 1))
            span = _locate(question.answers[0], offsets, is_first, is_last) if question.answers else None
            first, last = span or (NULL, NULL)
            # Arrays, since lists of Python's integers would take eight times the memory. The collator makes the mask.
            inputs = {
                name: np.array(encoded[name][index], kind)
                for name, kind in (("input_ids", np.int32), ("token_type_ids", np.int8))
                if name in encoded
            }
            windows.inputs.append(inputs | {"start_positions": first, "end_positions": last})
            windows.questions.append(start + number)
            windows.offsets.append(offsets)
    tokenizer.backend_tokenizer.no_truncation()  # else it would be saved so, and cut every text of another client
    return windows


def _offsets_in_context(encoding, context):
    offsets = np.full((len(encoding.ids), 2), HIDDEN, np.int32)
    for token, (part, (start, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
        # Some tokenizers have tokens for a blank alone: an answer made of one would be empty.
        if part == 1 and context[start:end].strip():
            offsets[token] = start, end
    return offsets


def _locate(answer: Answer, offsets: np.ndarray, is_first: bool, is_last: bool) -> tuple[int, int] | None:
    """The first and the last token of an answer; None where the window, first or last of its text, cuts it.

    An answer that begins or ends inside of a token gets the whole token.
    """
    # Blanks at the ends of an answer belong to no token, so they must not count as cut off.
    start = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip())
    shown = offsets[offsets[:, 0] != HIDDEN]
    tokens = np.flatnonzero((offsets[:, 0] != HIDDEN) & (offsets[:, 0] < end) & (offsets[:, 1] > start))
    # The edge of a text is no cut, even if its first characters have no token.
    if not len(tokens) or not (is_first or shown[0, 0] <= start) or not (is_last or end <= shown[-1, 1]):
        return None
    return int(tokens[0]), int(tokens[-1])


def find_best_span(
    start_logits: np.ndarray, end_logits: np.ndarray, is_context: np.ndarray, max_answer_length: int
) -> tuple[float, int, int]:
    """Score, first and last token of the best span of at most so many tokens, all of it in the context; each (L,).

    The score is the sum of two logits, as in the official code; it is -inf where there is no context.
    """
    # Only the context may hold an answer: else the question or [SEP] could be the best span.
    starts, ends = (np.where(is_context, logits, -np.inf) for logits in (start_logits, end_logits))
    length = len(starts)
    # One row per length instead of all pairs (L, L): 30 rows instead of 512.
    scores = np.full((min(max_answer_length, length), length), -np.inf)
    for more in range(len(scores)):  # row: by how many tokens the span is longer than one; column: where it starts
        scores[more, : length - more] = starts[: length - more] + ends[more:]
    more, first = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores[more, first]), int(first), int(first + more)


def find_answers(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    windows: Windows,
    questions: list[Question],
    max_answer_length: int,
) -> list[Found]:
    """The best span of each question over all of its windows, and the difference to no answer; logits (N, L).

    The score of no answer is the smallest of all windows, as in the official code: most windows of a long text lack
    the answer and say so, and one that has it counts against them.
    """
    # One pass over the windows: nothing of them is kept but the best so far of each question.
    best, texts, null = [-math.inf] * len(questions), [""] * len(questions), [math.inf] * len(questions)
    for window, (number, offsets) in enumerate(zip(windows.questions, windows.offsets, strict=True)):
        # Rows of a batch have one length: the rest of a shorter window is padding.
        starts, ends = (logits[window, : len(offsets)] for logits in (start_logits, end_logits))
        null[number] = min(null[number], float(starts[NULL]) + float(ends[NULL]))
        score, first, last = find_best_span(starts, ends, offsets[:, 0] != HIDDEN, max_answer_length)
        if score > best[number]:
            best[number] = score
            texts[number] = questions[number].context[offsets[first, 0] : offsets[last, 1]].strip()
    return [Found(text, none - score) for text, none, score in zip(texts, null, best, strict=True)]


def train_answerer(
    seed: int, encoder_args: EncoderArguments, training_args: FinetuningArguments, inputs: AnswererInputs
) -> Trainer:
    """Fine-tune one model with this seed."""
    return fine_tune(
        seed,
        AutoModelForQuestionAnswering,
        encoder_args,
        training_args,
        inputs.config,
        inputs.tokenizer,
        inputs.train,
        data_collator=DataCollatorWithPadding(inputs.tokenizer),
    )


def answer(
    trainer: Trainer, windows: Windows, questions: list[Question], max_answer_length: int
) -> tuple[list[Found], float]:
    """What the model answers, and its loss: the mean cross-entropy of first and last token over all windows.

    Raises `FloatingPointError` where the loss is not finite.
    """
    output = trainer.predict(windows.inputs)
    loss = output.metrics["test_loss"]
    # Broken weights would answer something everywhere, and score low without a word of why.
    if not math.isfinite(loss):
        raise FloatingPointError(f"The loss is {loss}. Lower learning_rate, or warm up for longer (warmup_steps).")
    # A model may give more outputs than these two, which then come first.
    start_logits, end_logits = output.predictions[:2]
    return find_answers(start_logits, end_logits, windows, questions, max_answer_length), loss


def score_test(
    trainer: Trainer,
    data: QuestionAnsweringData,
    inputs: AnswererInputs,
    arguments: QuestionAnsweringArguments,
    language: str,
) -> tuple[dict[str, float], list[Found]]:
    """The scores of the test by their names in metrics.json, and what was found for each of its questions.

    Where questions may lack an answer, `no_answer_threshold` is what decides. It is never chosen on the test: it is
    null_score_diff_threshold, or the best one for F1 on the articles that were kept out of training, or 0. F1 with
    the best one for the test itself, which the official script prints beside, is `eval_best_f1_on_test`.
    """
    found, loss = answer(trainer, inputs.test, data.test, arguments.max_answer_length)
    gold = [[one.text for one in question.answers] for question in data.test]
    threshold = arguments.null_score_diff_threshold
    # For each seed anew: how large its logits are differs from model to model.
    if threshold is None and data.threshold:
        kept_apart, _ = answer(trainer, inputs.threshold, data.threshold, arguments.max_answer_length)
        threshold, _ = _best_threshold(kept_apart, data.threshold, language)
    # 0 means: no answer is given where its own score is the higher one.
    elif threshold is None and data.may_lack_answers:
        threshold = 0.0
    answers = [one.above(threshold) for one in found]
    scores = {"eval_loss": loss}
    scores |= {f"eval_{name}": value for name, value in compute_answer_scores(answers, gold, language).items()}
    if threshold is not None:
        scores["no_answer_threshold"] = threshold
        scores["eval_best_f1_on_test"] = 100 * _best_threshold(found, data.test, language)[1]
    return scores, found


def _best_threshold(found, questions, language):
    gold = [[one.text for one in question.answers] for question in questions]
    _, f1 = score_each_answer([one.text for one in found], gold, language)
    return find_best_threshold(np.array([one.difference for one in found]), f1, np.array(list(map(bool, gold))))


def no_answer_probability(difference: float) -> float:
    """The difference as a number from 0 to 1, as the official script takes it: 1/2 where both are equal."""
    # exp overflows just above 709; so far down the probability is 0 in any case.
    return 1 / (1 + math.exp(-difference)) if difference > -700 else 0.0


def describe_data(data: QuestionAnsweringData, inputs: AnswererInputs, language: str) -> dict[str, float]:
    """What needs no network: the baselines, how many questions and windows there are, and how many answers are cut."""
    gold = [[one.text for one in question.answers] for question in data.test]
    answers = {"closest_sentence": [find_closest_sentence(question) for question in data.test]}
    # To answer nothing is a baseline only where that can be right.
    if not all(gold):
        answers["no_answer"] = [""] * len(gold)
    baselines = {
        f"baseline_{baseline}_{name}": value
        for baseline, predictions in answers.items()
        for name, value in compute_answer_scores(predictions, gold, language).items()
        if name in ("exact_match", "f1")
    }
    return baselines | {
        "train_questions": len(data.train),
        "train_windows": len(inputs.train),
        "train_answers_cut": inputs.train_answers_cut,
        "threshold_questions": len(data.threshold),
        "test_questions": len(data.test),
        "test_windows": len(inputs.test.inputs),
    }


def find_closest_sentence(question: Question) -> str:
    """The baseline: the sentence of the context that has most words of the question, the first of equals."""
    wanted = _words(question.text)
    # The full stops of Chinese and Japanese have no blank behind them; the others need one, or 3.5 would be two.
    sentences = re.split(r"(?<=[.!?।؟])\s+|(?<=[。！？])", question.context.strip())
    return max(sentences, key=lambda sentence: len(wanted & _words(sentence)))


def _words(text):
    return set(re.findall(r"\w+", text.lower()))

"""Windows hold what they should, and the best span is the best of all: each against a slower way to the same."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.tasks.answering import (
    HIDDEN,
    NULL,
    Found,
    Windows,
    _check_lengths,
    find_answers,
    find_best_span,
    find_closest_sentence,
    make_windows,
    no_answer_probability,
)
from electra_hf.tasks.question_answering import Answer, Question
from electra_hf.text.tokenization import train_tokenizer

TEXT = "The naïve café's owner (born 1902) paid $3.50 — «la ĉevalo» kuras ĉiutage; 🐕 bojas. Ĉu vi vidas ĝin?"


@pytest.fixture(scope="module", params=["wordpiece", "bpe", "unigram"])
def tokenizer(request):
    tokenizer = train_tokenizer([TEXT] * 5, vocab_size=256, tokenizer_type=request.param)
    tokenizer.model_max_length = 40
    return tokenizer


def ask(context, start, end, identifier="q"):
    answers = [Answer(start, context[start:end])] if end > start else []
    return Question(identifier, "", context, "Kio kuras?", answers, "file, question 1")


def shown(question, offsets, first, last):
    return question.context[offsets[first, 0] : offsets[last, 1]].strip()


def test_every_answer_is_found_again_where_its_window_holds_it_and_is_null_where_it_is_cut(tokenizer):
    draw = random.Random(0)
    context = " ".join([TEXT] * 3)
    questions = []
    for number in range(60):
        words = [i for i, c in enumerate(context) if c != " " and (i == 0 or context[i - 1] == " ")]
        start = draw.choice(words)
        end = min(context.find(" ", start + draw.randrange(12)) % (len(context) + 1), len(context))
        questions.append(ask(context, start, max(end, start + 1), str(number)))
    windows = make_windows(questions, tokenizer, doc_stride=12)
    short = {n for n, one in enumerate(questions) if len(tokenizer.tokenize(one.answers[0].text)) < 12}
    found = set()
    for number, inputs, offsets in zip(windows.questions, windows.inputs, windows.offsets, strict=True):
        question = questions[number]
        answer = question.answers[0]
        start, end = answer.start, answer.start + len(answer.text)
        inside = offsets[offsets[:, 0] != HIDDEN]
        if inputs["start_positions"] == NULL:
            assert inputs["end_positions"] == NULL
            assert start < inside[0, 0] or end > inside[-1, 1]
        else:
            found.add(number)
            text = shown(question, offsets, inputs["start_positions"], inputs["end_positions"])
            assert answer.text.strip() in text and len(text) <= len(answer.text) + 12  # a token at most on each side
    assert found >= short and len(short) > 25  # what is no longer than what two windows share is whole in one


def test_windows_lose_nothing_of_a_text_and_share_what_they_should(tokenizer):
    question = ask(" ".join([TEXT] * 4), 0, 3)
    windows = make_windows([question], tokenizer, doc_stride=7)
    assert len(windows.inputs) > 3 and set(windows.questions) == {0}
    covered = np.zeros(len(question.context), bool)
    for inputs, offsets in zip(windows.inputs, windows.offsets, strict=True):
        assert len(inputs["input_ids"]) == len(offsets) <= 40
        for start, end in offsets[offsets[:, 0] != HIDDEN]:
            covered[start:end] = True
    blank = np.array([character == " " for character in question.context])
    assert (covered | blank).all()
    for before, after in zip(windows.offsets[:-1], windows.offsets[1:], strict=True):
        shared = {tuple(pair) for pair in before.tolist()} & {tuple(pair) for pair in after.tolist()}
        assert len(shared - {(HIDDEN, HIDDEN)}) <= 7
    starts = [inputs["start_positions"] for inputs in windows.inputs]
    assert starts[0] != NULL and set(starts[1:]) == {NULL}


def test_a_short_text_is_one_window_and_a_question_without_an_answer_points_to_no_answer(tokenizer):
    windows = make_windows([ask("Ĉu vi vidas?", 0, 0), ask("Ĉu vi vidas?", 3, 5)], tokenizer, doc_stride=5)
    assert windows.questions == [0, 1]
    assert windows.inputs[0]["start_positions"] == windows.inputs[0]["end_positions"] == NULL
    assert windows.inputs[0]["input_ids"][NULL] == tokenizer.cls_token_id
    assert windows.inputs[1]["start_positions"] != NULL
    assert tokenizer.backend_tokenizer.truncation is None


def test_an_answer_at_the_edge_of_a_text_is_whole_even_if_the_edge_has_no_token(tokenizer):
    context = "\u0000 kuras ĉiutage \u0000"  # a character that no tokenizer keeps
    (inputs,) = make_windows([ask(context, 0, len(context))], tokenizer, doc_stride=5).inputs
    assert inputs["start_positions"] != NULL


def test_a_question_that_leaves_no_room_for_text_is_refused_with_its_place(tokenizer):
    question = ask("Ĉu vi vidas?", 0, 2)
    question.text = TEXT
    with pytest.raises(InputError, match="file, question 1: the question has .* Shorten it or leave it out"):
        _check_lengths([question], tokenizer, 10)
    _check_lengths([ask("Ĉu vi vidas?", 0, 2)], tokenizer, 10)


LOGITS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.booleans()), min_size=1, max_size=10)


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.integers(1, 12))
def test_no_other_span_scores_higher(rows, longest):
    starts, ends, inside = map(np.array, zip(*rows, strict=True))
    score, first, last = find_best_span(starts.astype(float), ends.astype(float), inside.astype(bool), longest)
    spans = {
        (i, j): starts[i] + ends[j]
        for i in range(len(rows))
        for j in range(i, min(i + longest, len(rows)))
        if inside[i] and inside[j]
    }
    if spans:
        assert (first, last) in spans and score == spans[first, last] == max(spans.values())
    else:
        assert score == -np.inf


def make_logits(*windows):
    """Two windows' logits, (N, L) each, from {token: logit} for first and last tokens."""
    arrays = []
    for kind in (0, 1):
        array = np.full((len(windows), 6), -5.0)
        for row, pair in enumerate(windows):
            for token, logit in pair[kind].items():
                array[row, token] = logit
        arrays.append(array)
    return arrays


def test_the_best_span_is_that_of_all_windows_and_no_answer_has_the_smallest_score_of_all():
    question = ask("a b c d e f", 0, 0)
    offsets = [np.array([[-1, -1], [-1, -1], [0, 1], [2, 3], [4, 5], [-1, -1]]),
               np.array([[-1, -1], [-1, -1], [6, 7], [8, 9], [10, 11], [-1, -1]])]  # fmt: skip
    windows = Windows([{}, {}], [0, 0], offsets)
    logits = make_logits(
        ({NULL: 3.0, 2: 1.0}, {NULL: 4.0, 3: 1.0}),  # no answer 7, span "a b" 2
        ({NULL: -1.0, 3: 2.0, 1: 99.0}, {NULL: 0.5, 4: 2.5, 5: 99.0}),  # no answer -0.5, span "e f" 4.5
    )
    (found,) = find_answers(*logits, windows, [question], 30)
    assert found == Found("e f", -0.5 - 4.5)
    (found,) = find_answers(*logits, windows, [question], 1)  # of one token: "f" alone, -5 + 2.5, or "e", 2 - 5
    assert found.text == "f" and found.difference == -0.5 - (-2.5)


def test_no_answer_is_given_above_the_threshold_and_never_without_one():
    found = Found("cat", 1.5)
    assert [found.above(threshold) for threshold in (1.4, 1.5, None)] == ["", "cat", "cat"]
    assert no_answer_probability(0.0) == 0.5
    assert 0 <= no_answer_probability(-5_000.0) < no_answer_probability(1.5) < no_answer_probability(900.0) <= 1


def test_the_baseline_is_the_sentence_that_shares_most_words():
    question = ask("Dogs bark. The horse kuras fast! Cats sleep.", 0, 0)
    question.text = "Who kuras the fast way?"
    assert find_closest_sentence(question) == "The horse kuras fast!"
    question.text = "Nothing shared"
    assert find_closest_sentence(question) == "Dogs bark."

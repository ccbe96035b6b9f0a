"""Spans are the same spans in whichever scheme their tags are written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.tasks.spans import SCHEMES, find_misfits, read_spans, recognise_scheme, score_each_type, write_tags
from electra_hf.tasks.tagging_metrics import compute_tagging_scores
from electra_hf.text.tagged_text import TaggedSentence


@st.composite
def sentences_of_spans(draw):
    """(spans, length): pieces of one to four words, each a span of one of two types or outside."""
    spans, end = [], 0
    for kind, size in draw(st.lists(st.tuples(st.sampled_from(["PER", "geo-loc", None]), st.integers(1, 4)))):
        if kind:
            spans.append((end, end + size, kind))
        end += size
    return spans, end


def sentence(tags):
    return TaggedSentence(["w"] * len(tags), list(tags), "names.txt", list(range(1, len(tags) + 1)))


@given(sentences_of_spans(), st.sampled_from(list(SCHEMES)))
def test_spans_written_as_tags_are_read_again(spans_and_length, scheme):
    spans, length = spans_and_length
    tags = write_tags(spans, length, scheme)
    assert read_spans(tags, scheme) == spans
    assert find_misfits(tags, scheme) == []


@given(st.lists(sentences_of_spans(), min_size=1), st.sampled_from(list(SCHEMES)))
def test_the_scheme_is_recognised(sentences, scheme):
    if any(spans for spans, _ in sentences):
        assert recognise_scheme([sentence(write_tags(*one, scheme)) for one in sentences]) == scheme


@settings(deadline=None, max_examples=30)  # building a metric takes its time
@given(st.lists(st.tuples(sentences_of_spans(), sentences_of_spans()), min_size=1))
def test_the_same_predictions_have_the_same_scores_in_every_scheme_and_those_counted_by_hand(pairs):
    length = max(max(1, gold[1], predicted[1]) for gold, predicted in pairs)
    golds, guesses = [set(gold) for (gold, _), _ in pairs], [set(guess) for _, (guess, _) in pairs]
    right = sum(len(gold & guess) for gold, guess in zip(golds, guesses, strict=True))
    total = sum(map(len, golds)) + sum(map(len, guesses))
    for scheme in SCHEMES:
        references, predictions = ([write_tags(spans, length, scheme) for spans in rows] for rows in (golds, guesses))
        scores = compute_tagging_scores(predictions, references, scheme)
        assert scores["eval_f1"] == pytest.approx(2 * right / total if total else 0.0)
        assert scores["eval_misfit_share"] == 0.0


# Conll-2003 as distributed is IOB1: B- only parts two names of one type. The spans were counted by hand.
@pytest.mark.parametrize(
    ("tags", "scheme", "spans"),
    [
        ("I-PER I-PER O I-LOC B-LOC", "iob1", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),
        ("B-PER I-PER O B-LOC B-LOC", "iob2", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),
        ("B-PER E-PER O S-LOC S-LOC", "iobes", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),
        ("B-PER L-PER O U-LOC U-LOC", "bilou", [(0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC")]),
    ],
)
def test_each_scheme_by_hand(tags, scheme, spans):
    assert recognise_scheme([sentence(tags.split())]) == scheme
    assert read_spans(tags.split(), scheme) == spans


def test_perfect_predictions_in_iob1_score_one_and_missed_entities_in_iobes_score_nothing():
    gold = [["I-PER", "I-PER", "O"]]
    assert compute_tagging_scores(gold, gold, "iob1")["eval_f1"] == 1.0
    assert compute_tagging_scores([["O", "O", "O"]], [["B-PER", "E-PER", "O"]], "iobes")["eval_f1"] == 0.0


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["PER", "O"], ["O-NOUN", "B-X"], ["B", "I"]])
def test_bare_tags_have_no_scheme(tags):
    assert recognise_scheme([sentence(tags)]) is None


def test_a_named_scheme_wins():
    assert recognise_scheme([sentence(["B-X", "B-X"])], "none") is None
    with pytest.raises(InputError, match="names.txt, line 1: the tag B-X does not fit IOB1"):
        recognise_scheme([sentence(["B-X", "I-X"])], "iob1")


def test_a_file_of_nothing_but_o_is_refused():
    with pytest.raises(InputError, match="names.txt: every tag is O"):
        recognise_scheme([sentence(["O", "O"])])


@pytest.mark.parametrize(
    ("tags", "line"),
    [
        (["B-X", "O", "I-X"], 3),  # IOB2, and a span that begins with I
        (["B-X", "E-X", "O", "U-X"], 4),  # IOBES and BILOU
        (["B-X", "I-Y"], 2),
        (["S-X", "I-X"], 2),
    ],
)
def test_mixed_schemes_are_refused_with_the_line(tags, line):
    with pytest.raises(InputError, match=rf"names.txt, line {line}: the tag .* does not fit .*Expected one scheme"):
        recognise_scheme([sentence(["O"]), sentence(tags)])


def test_predicted_tags_that_fit_no_span_are_counted_and_not_repaired():
    scores = compute_tagging_scores([["I-X", "O", "B-X", "I-Y"]], [["B-X", "O", "B-X", "O"]], "iob2")
    assert scores["eval_misfit_share"] == 0.5
    assert (scores["eval_precision"], scores["eval_recall"]) == (1.0, 0.5)  # a lonely I is no span


def test_each_type_has_its_own_row_the_most_frequent_first():
    gold, predicted = [["B-X", "I-X", "B-Y", "B-Y"]], [["B-X", "O", "B-Y", "B-Y"]]
    assert score_each_type(predicted, gold, "iob2") == [("Y", 1.0, 1.0, 1.0, 2), ("X", 0.0, 0.0, 0.0, 1)]

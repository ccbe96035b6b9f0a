"""The official rules of SQuAD and MLQA, computed here in another way: character by character, pair by pair."""

import random
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_hf.tasks.answer_metrics import (
    ARTICLES,
    AnswerScores,
    choose_language,
    compute_answer_scores,
    describe_rule,
    find_best_threshold,
    format_scores,
    normalise_answer,
    score_each_answer,
)


def words_of(text, articles=("a", "an", "the"), all_marks=False):
    """The words that count: runs of letters, cut where a mark of punctuation that stays stands, articles left out."""
    kept = ""
    for character in text.lower():
        is_mark = unicodedata.category(character).startswith("P") if all_marks else False
        if not (is_mark or character in string.punctuation):
            kept += character
    pieces, run = [], ""
    for character in kept + "\n":
        if character.isalnum():
            run += character
            continue
        pieces += [" " if run in articles else run, character]  # an article leaves a gap where it stood
        run = ""
    return "".join(pieces).split()


def f1_of(found, gold):
    """By precision and recall; each word of the gold answer can be found once."""
    left, common = list(gold), 0
    for word in found:
        if word in left:
            left.remove(word)
            common += 1
    if not found or not gold:
        return 1.0 if found == gold else 0.0
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(gold)
    return 2 * precision * recall / (precision + recall)


PARTS = (
    """
the The A an a cat CAT dog's U.S. 3,000 – x–the–y «la» don't é ... t.he “the” a-b 猫 ß (an) $5 5 anthem
""".split()
    + ["\u00a0"]
)


def draw_answer(draw):
    return "".join(draw.choice(PARTS) + draw.choice(["", " ", "  ", "\t", "-"]) for _ in range(draw.randint(0, 4)))


def draw_pairs(number, seed=0):
    draw = random.Random(seed)
    for _ in range(number):
        gold = [draw_answer(draw) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
        near = [answer.title() for answer in gold] + [f"the {answer}!" for answer in gold]
        yield draw.choice([draw_answer(draw), "", *gold, *near]), gold


def test_a_thousand_random_pairs_score_as_the_official_rules_say():
    pairs = list(draw_pairs(1_000))
    exact, f1 = [], []
    for prediction, answers in pairs:
        gold = [words for words in map(words_of, answers) if words] or [[]]
        exact.append(words_of(prediction) in gold)
        f1.append(max(f1_of(words_of(prediction), words) for words in gold))
    has = np.array([bool(answers) for _, answers in pairs])
    exact, f1 = np.array(exact), np.array(f1)
    expected = {}
    for name, part in (("", slice(None)), ("has_answer_", has), ("no_answer_", ~has)):
        expected |= {f"{name}exact_match": 100 * exact[part].mean(), f"{name}f1": 100 * f1[part].mean()}
    scores = compute_answer_scores(*map(list, zip(*pairs, strict=True)))
    assert scores == pytest.approx(expected)
    assert 0.2 < exact.mean() < 0.9 and exact.mean() < f1.mean() < 1  # the pairs tell the two apart
    each = score_each_answer(*map(list, zip(*pairs, strict=True)))
    assert each[0].tolist() == exact.tolist() and each[1].tolist() == pytest.approx(f1.tolist())


@pytest.mark.parametrize(
    ("prediction", "gold", "exact", "f1"),
    [
        ("The Cat!", ["cat"], 1, 1),
        ("cat", ["the dog", "a cat."], 1, 1),  # the best of several
        ("black cat", ["the cat"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it stands there
        ("U.S.", ["US"], 1, 1),
        ("an", ["the"], 1, 1),  # of both nothing is left
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("don't", ["dont"], 1, 1),
        ("anthem", ["them"], 0, 0),
    ],
)
def test_answers_score_as_worked_out_by_hand(prediction, gold, exact, f1):
    found = score_each_answer([prediction], [gold])
    assert [float(score[0]) for score in found] == pytest.approx([exact, f1])


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20), st.sampled_from(["en", "es", "de", "vi", "eo", "hi", "zh"]))
def test_a_normalised_answer_has_no_capital_no_mark_and_no_needless_blank(text, language):
    found = normalise_answer(text, language)
    assert found == " ".join(found.split()) and found == found.lower()
    assert not set(found) & set(string.punctuation)


@pytest.mark.parametrize("language", ["es", "de", "vi", "eo", "hi"])
def test_other_languages_follow_mlqa(language):
    draw = random.Random(1)
    articles = ARTICLES.get(language, "").split()
    parts = [*PARTS, "el", "los", "der", "einem", "của", "là", "la", "¿", "。"]
    for _ in range(300):
        text = " ".join(draw.choices(parts, k=draw.randint(0, 5)))
        assert normalise_answer(text, language).split() == words_of(text, articles, all_marks=True), text


def test_a_language_keeps_the_words_that_are_articles_in_another():
    assert normalise_answer("a la casa", "es") == "a casa"
    assert normalise_answer("a la casa", "en") == "la casa"
    assert normalise_answer("La hundo", "eo") == "la hundo"
    assert normalise_answer("“Yes” – the end", "en") == "“yes” – end"  # SQuAD's rule knows the marks of ASCII alone
    assert normalise_answer("“Ja” – das Ende", "de") == "ja ende"
    assert normalise_answer("الكتاب", "ar") == "كتاب"
    assert normalise_answer("《红楼梦》 2 册", "zh") == "红 楼 梦 2 册"


def test_the_language_is_the_one_that_is_named_or_the_card_s_or_english():
    assert choose_language(None, []) == "en"
    assert choose_language(None, ["eo"]) == "eo"
    assert choose_language(None, ["de", "fr"]) == "en"
    assert choose_language("pt-BR", ["eo"]) == "pt"
    assert "SQuAD's rule for English" in describe_rule("en") and "a, an, the" in describe_rule("en")
    assert "MLQA's rule, without articles for the language eo" in describe_rule("eo") and "words" not in describe_rule(
        "eo"
    )


def test_the_metric_is_one_of_evaluate_and_in_per_cent():
    metric = AnswerScores(keep_in_memory=True)
    assert metric.compute(predictions=["a cat", "dog"], references=[["cat"], ["cat", "fox"]]) == {
        "exact_match": 50.0,
        "f1": 50.0,
    }


def test_kinds_of_questions_are_scored_apart_only_where_there_are_both():
    assert compute_answer_scores(["x"], [["x"]]).keys() == {"exact_match", "f1"}
    names = compute_answer_scores(["x", ""], [["x"], []]).keys()
    assert {"has_answer_f1", "no_answer_exact_match"} <= names
    assert "has_answer_f1" not in compute_answer_scores([""], [[]])


QUESTIONS = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.5, 1.0]), st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(QUESTIONS)
def test_no_other_threshold_has_a_higher_score(questions):
    """Also where differences are equal, which no threshold can part."""
    questions = [(float(difference), score if has else 0.0, has) for difference, score, has in questions]

    def mean_score(threshold):
        return np.mean([(0.0 if has else 1.0) if d > threshold else score for d, score, has in questions])

    differences, scores, has_answer = map(np.array, zip(*questions, strict=True))
    threshold, best = find_best_threshold(differences, scores, has_answer)
    assert mean_score(threshold) == pytest.approx(best)
    assert best == pytest.approx(max(mean_score(other) for other in np.arange(-5, 5, 0.5)))


def test_the_printed_scores_have_the_spread_over_seeds_beside_them_and_the_rule_below():
    values = {"eval_f1": 50.0, "eval_f1_mean": 60.0, "eval_f1_sd": 10.0, "test_questions": 3, "test_windows": 7}
    printed = format_scores(values, "en")
    assert "50.00   over the seeds 60.00 ± 10.00" in printed and "SQuAD's rule" in printed.splitlines()[-1]

import gzip
import json
from collections import Counter

import datasets
import pytest

from electra_hf.errors import InputError
from electra_hf.tasks.question_answering import (
    Answer,
    Question,
    QuestionAnsweringArguments,
    load_questions,
    read_squad,
    split_by_article,
)


def make_file(path, articles):
    """articles: {title: {context: [(id, question, answers)]}}, an answer as a text or as (text, start)."""
    data = []
    for title, paragraphs in articles.items():
        rows = []
        for context, questions in paragraphs.items():
            qas = []
            for identifier, question, answers in questions:
                pairs = [(answer, context.index(answer)) if isinstance(answer, str) else answer for answer in answers]
                answers = [{"text": text, "answer_start": start} for text, start in pairs]
                qas.append({"id": identifier, "question": question, "answers": answers})
            rows.append({"context": context, "qas": qas})
        data.append({"title": title, "paragraphs": rows})
    path.write_text(json.dumps({"version": "1.1", "data": data}), encoding="utf-8")
    return path


def make_questions(articles, per_article=2, without=()):
    return [
        Question(
            f"{article}-{n}", article, f"Text of {article}.", "What?", [] if n in without else [Answer(0, "Text")], ""
        )
        for article in articles
        for n in range(per_article)
    ]


def test_a_file_is_read_in_its_order_with_every_gold_answer(tmp_path):
    answers = ["Ĉi tiu", ("hundo", 7)]
    articles = {"Hundoj": {"Ĉi tiu hundo 🐕 bojas.": [("a", "Kiu bojas?", answers), ("b", "Kial?", [])]}}
    first, second = read_squad(make_file(tmp_path / "t.json", articles))
    assert (first.id, first.article, first.text) == ("a", "Hundoj", "Kiu bojas?")
    assert first.answers == [Answer(0, "Ĉi tiu"), Answer(7, "hundo")] and second.answers == []
    assert first.place == f"{tmp_path / 't.json'}, article 1 (Hundoj), paragraph 1, question 1 (id a)"


def test_compressed_files_byte_order_marks_missing_titles_and_numbers_as_ids_are_read(tmp_path):
    content = {"data": [{"paragraphs": [{"context": "x y", "qas": [{"id": 7, "question": "q", "answers": [
        {"text": "y", "answer_start": 2, "answer_id": 1}], "more": None}]}]}]}  # fmt: skip
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(content).encode()))
    (question,) = read_squad(tmp_path / "t.json.gz")
    assert (question.id, question.article, question.answers) == ("7", "", [Answer(2, "y")])


def test_an_answer_elsewhere_is_refused_with_where_it_stands(tmp_path):
    file = make_file(tmp_path / "t.json", {"T": {"one two three": [("q1", "Which?", [("three", 4)])]}})
    with pytest.raises(
        InputError, match=r"\(id q1\): the answer 'three' is not .* 4, where 'two t' stands. It stands at 8"
    ):
        list(read_squad(file))


@pytest.mark.parametrize("form", ["lists", "records"])
def test_rows_of_a_dataset_read_like_a_file(tmp_path, form):
    answers = [{"text": "y", "answer_start": 2}, {"text": "x y", "answer_start": 0}]
    if form == "lists":
        answers = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
    row = {"id": "1", "title": "T", "context": "x y", "question": "q?", "answers": answers}
    other = {**row, "id": "2", "context": "x y z", "title": "U"}
    for split in ("train", "test"):
        datasets.Dataset.from_list([row, other]).to_parquet(tmp_path / f"{split}.parquet")
    data = load_questions(QuestionAnsweringArguments(dataset_name=str(tmp_path)))
    assert [question.answers for question in data.train] == [[Answer(2, "y"), Answer(0, "x y")]] * 2
    assert [question.article for question in data.test] == ["T", "U"]
    with pytest.raises(InputError, match="has no split 'dev', only t"):
        load_questions(QuestionAnsweringArguments(dataset_name=str(tmp_path), test_split="dev"))


def test_validation_is_tested_before_test_whose_answers_are_often_withheld(tmp_path):
    for split in ("train", "validation", "test"):
        answers = {"text": ["y"], "answer_start": [2]}
        row = {"id": split, "context": "x y", "question": "q?", "answers": answers}
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / f"{split}.parquet")
    (question,) = load_questions(QuestionAnsweringArguments(dataset_name=str(tmp_path))).test
    assert question.id == "validation"
    with pytest.raises(InputError, match=r"no column 'context'"):
        datasets.Dataset.from_list([{"id": "1", "text": "x"}]).to_parquet(tmp_path / "train.parquet")
        (tmp_path / "test.parquet").unlink()
        (tmp_path / "validation.parquet").unlink()
        load_questions(QuestionAnsweringArguments(dataset_name=str(tmp_path)))


def test_no_article_stands_on_both_sides_and_the_share_is_kept():
    questions = make_questions([f"A{n}" for n in range(40)], per_article=3)
    train, test = split_by_article(questions, 0.1)
    assert len(test) == 4 * 3 and len(train) == 36 * 3
    assert not {q.article for q in train} & {q.article for q in test}
    again = split_by_article(questions[::-1], 0.1)[1]
    assert {q.id for q in again} == {q.id for q in test}  # whatever the order


def test_one_article_is_parted_by_its_texts_and_an_equal_text_stays_on_one_side():
    questions = make_questions(["A", "B", "C"])
    for question in questions:
        question.article = "the same"
    train, test = split_by_article(questions, 0.1)
    assert len({q.context for q in test}) == 1 and len({q.context for q in train}) == 2
    questions = make_questions([f"A{n}" for n in range(10)])
    for question in questions:
        question.context = "the same"
    with pytest.raises(InputError, match="all questions are on one text"):
        split_by_article(questions, 0.1)


def write_parts(tmp_path, articles, without):
    parts = {f"A{n}": {f"Text {n}.": [(f"q{n}", "What?", [] if n in without else ["Text"])]} for n in range(articles)}
    return make_file(tmp_path / "train.json", parts)


@pytest.mark.parametrize(
    ("articles", "without", "settings", "kept_apart"),
    [
        (40, range(20), {"threshold_share": 0.25}, 10),
        (40, (), {"threshold_share": 0.25}, 0),  # every question has an answer: no threshold is needed
        (40, range(20), {"null_score_diff_threshold": 1.5}, 0),
        (40, range(20), {"threshold_share": 0.0}, 0),
        (12, range(6), {}, 0),  # a twentieth of twelve articles is none
        (40, range(39), {"threshold_share": 0.05}, 0),  # the share has one kind of question alone
    ],
)
def test_articles_are_kept_apart_only_where_a_threshold_can_be_found_on_them(
    tmp_path, articles, without, settings, kept_apart
):
    file = str(write_parts(tmp_path, articles, without))
    data = load_questions(QuestionAnsweringArguments(train_file=file, test_file=file, **settings))
    assert (len(data.threshold), len(data.train), len(data.test)) == (kept_apart, articles - kept_apart, articles)
    assert not {q.id for q in data.threshold} & {q.id for q in data.train}
    assert data.may_lack_answers == bool(without)


def test_test_and_threshold_articles_are_chosen_independently(tmp_path):
    file = str(write_parts(tmp_path, 100, range(50)))
    arguments = QuestionAnsweringArguments(train_file=file, test_share=0.2, threshold_share=0.1)
    data = load_questions(arguments)
    assert (len(data.test), len(data.threshold), len(data.train)) == (20, 8, 72)
    ids = Counter(question.id for part in (data.train, data.threshold, data.test) for question in part)
    assert set(ids.values()) == {1}


def test_a_sample_is_the_same_each_time(tmp_path):
    file = str(write_parts(tmp_path, 30, ()))
    arguments = QuestionAnsweringArguments(train_file=file, test_file=file, max_train_samples=7)
    samples = [[question.id for question in load_questions(arguments).train] for _ in range(2)]
    assert samples[0] == samples[1] and len(set(samples[0])) == 7

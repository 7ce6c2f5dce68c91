"""Lengths: MT-Bench's questions as they are, words counted, their ratio with an interval."""

import hashlib

import pytest

from labkit import data, models
from labkit.evaluate import lengths


def test_mt_bench_is_the_packages_own():
    file = data.ROOT / "mt_bench" / "question.jsonl"
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith("119565adbab82227")
    questions = lengths.open_questions()
    assert len(questions) == 80
    by_category = [row["category"] for row in questions]
    assert {by_category.count(category) for category in by_category} == {10}
    assert questions[0]["prompt"].startswith("Compose an engaging travel blog post")


def test_words_are_counted_and_a_cut_answer_says_so():
    questions = lengths.open_questions()[:3]
    rows = lengths.ask(*models.load("smoke"), questions, max_new_tokens=6)
    assert [row["words"] for row in rows] == [len(row["text"].split()) for row in rows]
    assert all(row["stopped"] in (True, False) for row in rows) and not all(row["stopped"] for row in rows)


def test_the_ratio_is_of_sums_and_its_interval_of_questions():
    before = [{"words": n} for n in (10, 20, 30, 40)]
    assert lengths.ratio([{"words": row["words"] / 2} for row in before], before) == (0.5, 0.5, 0.5)
    share, low, high = lengths.ratio([{"words": n} for n in (10, 5, 15, 10)], before)
    assert share == pytest.approx(0.4) and low < 0.4 < high <= 1.0
    assert lengths.ratio([{"words": 3}], [{"words": 0}])[0] == 3  # no division by zero

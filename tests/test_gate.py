"""The gate on made cases: what changed nothing never passes, whatever its figures."""

import pytest

from labkit import gate
from labkit.errors import RunError


def answers(golds, corrects=None, texts=None):
    corrects = corrects or [1.0] * len(golds)
    texts = texts or [f"answer worth {gold}" for gold in golds]
    return [
        {"id": str(n), "prompt": "?", "split": "phrasing", "text": text, "gold": gold, "correct": correct}
        for n, (gold, correct, text) in enumerate(zip(golds, corrects, texts, strict=True))
    ]


SAME = answers([2.0] * 300)


def test_the_same_answers_changed_nothing():
    found = gate.gate(SAME, SAME)
    assert found.verdict == gate.NOTHING and not found.passed and found.changed[0] == 0 and found.changed[2] > 0
    assert found.metrics()["gate_passed"] == 0


def test_other_words_of_the_same_worth_changed_nothing():
    found = gate.gate(answers([2.0] * 300, texts=[f"said otherwise {n}" for n in range(300)]), SAME)
    assert found.verdict == gate.NOTHING and found.changed[0] == 1.0


def test_a_handful_of_wins_among_a_thousand_is_nothing():
    many = answers([2.0] * 1000)
    found = gate.gate(answers([3.0] * 8 + [2.0] * 992), many)
    assert found.win_rate[1] > 0.5 and found.verdict == gate.NOTHING


def test_wins_with_the_accuracy_kept_are_an_improvement():
    found = gate.gate(answers([3.0] * 60 + [1.0] * 10 + [2.0] * 230), SAME)
    assert found.passed and found.win_rate[0] == pytest.approx(60 / 70) and found.win_rate[1] > 0.5
    assert [row["measured"] for row in found.table()][-1] == "verdict" and found.table()[-1]["found"] == "improved"


def test_losses_are_worse_and_so_are_wins_that_cost_accuracy():
    assert gate.gate(answers([1.0] * 60 + [3.0] * 10 + [2.0] * 230), SAME).verdict == gate.WORSE
    dear = gate.gate(answers([3.0] * 100 + [2.0] * 200, corrects=[0.0] * 40 + [1.0] * 260), SAME)
    assert dear.win_rate[1] > 0.5 and dear.verdict == gate.WORSE and "13.3%" in dear.why


def test_what_lies_between_is_noise():
    assert gate.gate(answers([3.0] * 12 + [1.0] * 9 + [2.0] * 279), SAME).verdict == gate.NOISY
    few = gate.gate(answers([3.0] * 60 + [2.0] * 240, corrects=[0.0] * 6 + [1.0] * 294), SAME)  # 2% [0.4%, 4%] lost
    assert few.accuracy[2] > -gate.SPARE and few.verdict == gate.NOISY and "accuracy" in few.why


def test_accuracy_is_of_safe_questions():
    mine, parent = answers([2.0] * 100), answers([2.0] * 100)
    for n in range(50):
        mine[n]["split"] = parent[n]["split"] = "unsafe"
        mine[n]["correct"] = 0.0
    assert gate.gate(mine, parent).accuracy[0] == 0


def test_other_questions_cannot_be_compared():
    other = [row | {"id": f"x{row['id']}"} for row in SAME]
    with pytest.raises(RunError):
        gate.gate(SAME, other)

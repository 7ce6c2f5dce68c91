"""Judges whose faults are known: each is found."""

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from labkit import models
from labkit.errors import DataError
from labkit.evaluate import judge, votes


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs whose gold, length and owner vary independently; the better answer says "good"."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        gold, own = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
        sides = [
            " ".join(["good" if gold == side else "poor", "mine" if own == side else "theirs"] + ["w"] * length)
            for side, length in ((1, rng.integers(2, 20)), (-1, rng.integers(2, 20)))
        ]
        about = {"prompt": f"Question {number}?", "reference": "good"}
        found.append({**about, "first": sides[0], "second": sides[1], "gold": gold, "own": own})
    return found


def by(rule):
    """A judge that sees the two answers as they stand in the prompt: rule(a, b) > 0 for A, < 0 for B, 0 for neither."""

    def asked(prompts, options):
        assert tuple(options) == ("A", "B")
        shown = [re.search(r"Answer A: (.*?)\n\nAnswer B: (.*?)\n\n", prompt, re.S).groups() for prompt in prompts]
        return [[(1 + lead) / 2, (1 - lead) / 2] for lead in (float(np.sign(rule(*sides))) for sides in shown)]

    return asked


ORACLE = by(lambda a, b: a.startswith("good") - b.startswith("good"))
LENGTH = by(lambda a, b: len(a.split()) - len(b.split()))
ALWAYS_A = by(lambda a, b: 1)
OWN = by(lambda a, b: ("mine" in a) - ("mine" in b))


def coin():
    rng = np.random.default_rng(3)
    return by(lambda a, b: rng.choice([-1, 1]))


@pytest.mark.parametrize("wording", judge.WORDINGS)
def test_an_oracle_passes_the_audit(wording):
    rows = judge.compare(ORACLE, pairs(80), wording)
    assert [row["verdict"] for row in rows] == [row["gold"] for row in rows] == [row["leaning"] for row in rows]
    evidence = judge.audit(rows)
    assert judge.usable(evidence) == "may be used" and all(one.supports for one in evidence)
    assert judge.influences(rows)["gold"] == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("biased", "name"), [(ALWAYS_A, "position"), (LENGTH, "length"), (OWN, "own")], ids=["position", "length", "own"]
)
def test_a_bias_is_found_and_no_other(biased, name):
    rows = judge.compare(biased, pairs(80))
    effects = judge.influences(rows)
    assert effects.pop(name) == pytest.approx((1.0, 1.0, 1.0))
    assert all(low <= 1e-9 and high >= -1e-9 for _, low, high in effects.values()), effects
    refuted = {one.name for one in judge.audit(rows) if one.refutes}
    assert f"size of {name} bias" in refuted and judge.usable(judge.audit(rows)) == "may not be used"


def test_a_judge_of_position_agrees_with_nothing_and_a_liking_for_b_counts_as_much():
    rows = judge.compare(ALWAYS_A, pairs(60))
    assert judge.agreement(rows)[0] == 0.0 and judge.consistency(rows)[0] == 0.0
    assert {row["verdict"] for row in rows} == {row["leaning"] for row in rows} == {0}
    rows = judge.compare(by(lambda a, b: -1), pairs(60))
    assert judge.influences(rows)["position"][0] == pytest.approx(-1.0)
    size = next(one for one in judge.audit(rows) if one.name == "size of position bias")
    assert size.estimate == pytest.approx(1.0) and size.refutes


def test_a_coin_does_not_pass():
    rows = judge.compare(coin(), pairs(200))
    effects = judge.influences(rows)
    assert all(low < 0 < high for _, low, high in effects.values()), effects
    _, low, high = judge.agreement(rows)
    assert low < 0 < high < 0.4 and judge.usable(judge.audit(rows)) == "may not be used"


def test_intervals_of_an_influence_hold_the_truth():
    """A judge that follows gold in four of five cases and else tosses a coin: the true effect is 0.8."""
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        mixed = by(lambda a, b, rng=rng: a.startswith("good") - b.startswith("good") if rng.random() < 0.8
                   else rng.choice([-1, 1]))  # fmt: skip
        _, low, high = judge.influences(judge.compare(mixed, pairs(60, seed)))["gold"]
        hits += low <= 0.8 <= high
    assert hits >= 51  # 95% of 60 is 57; fewer than 51 would come of an interval that is too narrow


def test_a_few_pairs_show_nothing():
    decided = [{**pair, "gold": 1, "own": 0} for pair in pairs(4)]
    mostly = judge.compare(by(lambda a, b: 1 if a < b else -1), decided)
    for row, said in zip(mostly, ((1, 1), (1, 1), (1, 1), (1, -1)), strict=True):
        row |= {"forward": said[0], "backward": said[1], "verdict": 1 if said == (1, 1) else 0}
    found = judge.audit(mostly)
    assert not any(one.refutes for one in found) and judge.usable(found).startswith("not shown")
    with pytest.raises(DataError, match="pairs must be decided by gold; got '4 ties'"):
        judge.agreement([{**row, "gold": 0} for row in mostly])


def test_kappa_against_scikit_learn():
    rng = np.random.default_rng(0)
    for labels in (2, 3, 5):
        left = rng.integers(labels, size=200)
        right = np.where(rng.random(200) < 0.6, left, rng.integers(labels, size=200))
        assert judge.kappa(left, right) == pytest.approx(cohen_kappa_score(left, right))
    assert judge.kappa([1, 1], [1, 1]) == 0.0
    table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15  # observed 0.7, expected 0.5
    assert judge.kappa(*zip(*table, strict=True)) == pytest.approx(0.4)


def test_wordings_that_disagree_are_counted():
    rows, others = judge.compare(ORACLE, pairs(40)), judge.compare(LENGTH, pairs(40))
    different = sum(row["forward"] != other["forward"] for row, other in zip(rows, others, strict=True))
    assert judge.changed(rows, others)[0] == different / 40 > 0 == judge.changed(rows, rows)[0]
    stuck, tossed = judge.compare(ALWAYS_A, pairs(40)), judge.compare(coin(), pairs(40))
    assert judge.changed(stuck, tossed)[0] > 0.5
    assert judge.changed(stuck, judge.compare(by(lambda a, b: -1), pairs(40)), of=["leaning"])[0] == 0.0


def test_unreadable_verdicts_are_no_verdicts():
    def mute(prompts, options):
        return [None] * len(prompts)

    rows = judge.compare(mute, pairs(30))
    assert {(row["forward"], row["verdict"]) for row in rows} == {(None, 0)}
    assert judge.consistency(rows)[0] == 0.0 and judge.agreement(rows)[0] == 0.0
    assert all(effect == 0 for effect, _, _ in judge.influences(rows).values())
    assert judge.usable(judge.audit(rows)) == "may not be used"


def test_one_unreadable_order_decides_nothing():
    """The other order alone would be the liking for a side: it is no leaning, and no part of the position."""

    def half(prompts, options):
        return [[1.0, 0.0]] * (len(prompts) // 2) + [None] * (len(prompts) // 2)

    rows = judge.compare(half, pairs(30))
    assert {(row["forward"], row["backward"], row["leaning"]) for row in rows} == {(1, None, 0)}
    assert judge.influences(rows)["position"] == (0.0, -np.inf, np.inf)
    rows += judge.compare(ALWAYS_A, pairs(10))
    assert judge.influences(rows)["position"] == pytest.approx((1.0, 1.0, 1.0))  # of the ten alone


@pytest.fixture(scope="module")
def local():
    return judge.Local(*models.load("smoke", seed=5), "smoke", batch_size=3)


def test_the_local_judge_by_hand(local):
    """p(A) and p(B) after "Verdict:", one prompt at a time, without padding."""
    asked = ["Short?", "A longer question than the first, with more words?", "Middle one, then?", "B?"]
    for options in (("A", "B"), judge.GRADES):
        for prompt, row in zip(asked, local(asked, options), strict=True):
            text = f"<|user|> {prompt}<|assistant|>Verdict:"
            ids = local.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            letters = [local.tokenizer(f"{text} {one}", add_special_tokens=False)["input_ids"] for one in options]
            assert all(len(one) >= ids.shape[1] + 1 for one in letters)
            shared = len(letters[0]) - 1  # " 1" may be a blank and a digit: then the blank belongs to the prompt
            ids = torch.tensor([letters[0][:shared]])
            with torch.no_grad(), models.autocast():
                logits = local.model(ids, use_cache=False).logits[0, -1].float()
            expected = logits[[one[shared] for one in letters]].softmax(-1)
            assert row == pytest.approx(expected.tolist(), abs=5e-3)


def test_the_local_judge_writes_answers_too(local):
    assert len(local.write(["Short?", "B?"])) == 2


def test_the_local_judge_refuses_before_judging(local):
    with pytest.raises(DataError, match="prompts must fit the judge's 1024 tokens; got '1 longer'"):
        local(["short", "word " * 2000], ("A", "B"))
    assert local.estimate(["a b", "c"])["requests"] == 2


def test_grades_are_means(local):
    marks = judge.grade(lambda prompts, options: [[0, 0, 0, 0, 1.0], [0.5, 0, 0, 0, 0.5], None], [
        {"prompt": "q", "answer": "{braces} stay"}] * 3)  # fmt: skip
    assert marks == [5.0, 3.0, None]
    assert all(1 <= mark <= 5 for mark in judge.grade(local, [{"prompt": "q", "answer": "a"}]))


def test_only_votes_of_people_count(tmp_path):
    file = tmp_path / "votes.jsonl"
    said = [(votes.HUMAN, "a"), (votes.HUMAN, "b"), (votes.HUMAN, "tie"), (votes.HUMAN, "both_bad")]
    for number, (voter, choice) in enumerate([*said, (votes.SCRIPTED, "a")]):
        battle = {"id": str(number), "prompt": "q", "models": {"a": "m", "b": "n"}, "answers": {"a": "x", "b": "y"}}
        assert votes.add(battle, choice, voter, file)
    with file.open("a") as handle:
        handle.write('{"voter": "human", "choi')  # a kernel that died in writing
    with pytest.warns(UserWarning, match="unreadable"):
        found, left_out = judge.human_votes(file)
    assert [one["vote"] for one in found] == [1, -1, 0, 0] and left_out == 1
    assert {(one["prompt"], one["first"], one["second"]) for one in found} == {("q", "x", "y")}
    assert judge.human_votes(tmp_path / "none.jsonl") == ([], 0)

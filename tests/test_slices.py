"""The adversarial slices: gold agrees with every pair, and nothing of them was trained on."""

import json

from labkit import data
from labkit.evaluate import checkers, slices

PARTS = {"long_wrong": "correct", "rambling": "concise", "polite_refusal": "correct", "compliance": "safe"}


def test_gold_prefers_what_each_slice_calls_chosen():
    questions = {row["id"]: row for row in data.questions()}
    found = slices.slices()
    assert found == slices.slices(list(questions.values()))  # the same every time
    assert found.keys() == PARTS.keys() and all(len(rows) >= 80 for rows in found.values())
    for name, rows in found.items():
        for row in rows:
            better, worse = (checkers.judge(questions[row["id"]], row[side]) for side in ("chosen", "rejected"))
            assert better["gold"] > worse["gold"] and better[PARTS[name]] > worse[PARTS[name]]
    assert all(checkers.judge(questions[row["id"]], row["rejected"])["correct"] for row in found["rambling"])
    longer = [len(row["rejected"].split()) > len(row["chosen"].split()) for row in found["long_wrong"]]
    assert all(longer)


def test_neither_prompts_nor_added_words_were_trained_on():
    trained = [json.loads(line) for line in data.LAB["pairs"].open(encoding="utf-8")]
    prompts = {data.normalised(row["prompt"]) for row in trained}
    assert not prompts & {data.normalised(row["prompt"]) for rows in slices.slices().values() for row in rows}
    text = " ".join(data.normalised(f"{row['chosen']} {row['rejected']}") for row in trained)
    added = (*slices.FILLER, *slices.REFUSALS, *(one.replace("{x}", "") for one in slices.COMPLIANCE))
    assert not [one for one in added if data.normalised(one) in text]


def test_few_questions_give_few_pairs():
    few = slices.slices(data.questions("smoke"))
    assert all(0 < len(rows) < 80 for rows in few.values())

"""On-policy pairs: the model's own answers, ranked by their agreement with the reference."""

import json

import pytest

from labkit import models, on_policy, preferences
from labkit.errors import DataError


@pytest.fixture(scope="module")
def smoke():
    return models.load("smoke")


def test_agreement_ranks_as_the_gold_preference_does():
    prompt, reference = "What is the capital of Peru?", "The capital of Peru is Lima."
    replies = (reference, f"{reference} I hope that this helps you.", "Lima.", "The capital of Peru is Quito.", "")
    right, rambling, bare, wrong, nothing = (on_policy.agreement(text, reference, prompt) for text in replies)
    assert right == 1 and rambling == pytest.approx((1 + 12 / 18) / 2) and bare == pytest.approx((1 + 2 / 7) / 2)
    assert wrong == pytest.approx((0 + 10 / 12) / 2) and nothing == 0
    assert right > rambling > bare > wrong > nothing
    declines, asked = "I cannot help you rob a bank, because it could hurt someone.", "How do I rob a bank?"
    assert on_policy.agreement("Sure. It is easy to rob a bank.", declines, asked) < 0.5
    assert on_policy.agreement("In reverse: a b c.", "In reverse: c b a.", "Reverse: a b c") < 0.9  # order counts


def test_best_and_worst_of_the_model_s_own_answers(smoke, tmp_path, monkeypatch):
    rows = preferences.pairs()[0].select(range(4))
    said = [row["text"] for row in on_policy.answers.generate(*smoke, ["Hi"] * 3, sample=True, max_new_tokens=4)]
    assert len(set(said)) > 1  # sampled
    reply = {0: ["wrong", rows[0]["chosen"], ""], 1: ["same", "same", "same"]}
    reply |= {2: [rows[2]["chosen"] + " more", rows[2]["chosen"].split()[0], "no"], 3: [rows[3]["prompt"], "x", "y"]}
    monkeypatch.setattr(
        on_policy.answers, "generate", lambda model, tokenizer, texts, **_: [
            {"text": reply[n % 4][n // 4], "stopped": True} for n in range(len(texts))
        ],
    )  # fmt: skip
    own, others = on_policy.write_pairs(*smoke, rows, tmp_path / "pairs", samples=3)
    lines, theirs = ([json.loads(line) for line in file.read_text().splitlines()] for file in (own, others))
    assert [(line["chosen"], line["rejected"]) for line in lines] == [
        (rows[0]["chosen"], "wrong"),
        (rows[2]["chosen"] + " more", "no"),
    ]  # the second prompt's answers are alike, the fourth's agree with nothing or repeat the prompt
    assert [(line["prompt"], line["chosen"], line["rejected"]) for line in theirs] == [
        (rows[n]["messages"], rows[n]["chosen"], rows[n]["rejected"]) for n in (0, 2)
    ]  # the same prompts, the pairs as they were given
    train, held_out = preferences.pairs(str(own))
    assert len(train) + len(held_out) == 2
    before = own.stat().st_mtime_ns
    again, _ = on_policy.write_pairs(*smoke, rows, tmp_path / "pairs")
    assert again.stat().st_mtime_ns == before  # not sampled again
    reply.update({0: ["a"] * 3, 2: ["a"] * 3})
    with pytest.raises(DataError, match="differ in worth"):
        on_policy.write_pairs(*smoke, rows, tmp_path / "none", samples=3)


def test_other_pairs_another_parent_or_seed_have_another_place():
    rows = preferences.pairs()[0]
    places = [
        on_policy.key("one", rows.select(range(4)), 0),
        on_policy.key("one", rows.select(range(4)), 1),
        on_policy.key("two", rows.select(range(4)), 0),
        on_policy.key("one", rows.select(range(4, 8)), 0),
    ]
    assert len(set(places)) == 4 and places[0] == on_policy.key("one", rows.select(range(4)), 0)
    assert not any("/" in place for place in places)

"""Contamination: overlap of known texts, log-probabilities against the plain forward pass, thresholds, plants found."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch

from labkit import data, models
from labkit.config import SFTConfig
from labkit.errors import ConfigError
from labkit.evaluate import answers, code, contamination
from labkit.stages import sft


def test_overlap_finds_the_row_whatever_its_letters():
    rows = ["a b c d", "Well: the CAPITAL, of Peru is Lima. Really!", "the capital of Chile", "a b c d"]
    found = contamination.overlap(["The capital of Peru is Lima?", "Chile is", "x y"], rows, n=2)
    assert found[0] == (1.0, 1) and found[2] == (0.0, -1)
    once, never = (math.log(4 / (often + 1)) ** 3 for often in (1, 0))  # of three distinct rows
    assert found[1] == (pytest.approx(once / (2 * once + never)), 1)  # "is", or "Chile": the first row of the two


def test_a_single_row_is_found_and_a_phrase_of_all_rows_weighs_nothing():
    assert contamination.overlap(["a b c d"], ["a b c d"], n=3) == [(1.0, 0)]
    assert contamination.overlap(["a b c"], ["x a b c d", "y a b c e"]) == [(1.0, 0)]  # nothing tells the rows apart
    assert contamination.overlap(["x a b"], ["a b c d", "a b c e"])[0][0] == 0.0
    assert contamination.overlap(["a", "", "?"], []) == [(0.0, -1)] * 3


def test_what_every_row_says_proves_nothing():
    """Both items share six of eight words with a row; in the first they are the words of all rows."""
    rows = [f"tell me now what is the {word}" for word in ("sun", "moon", "sea", "sky")] + [
        "red lamps burn all night here"
    ]
    usual, rare = contamination.overlap(
        ["tell me now what is the big fish", "red lamps burn all night here big fish"], rows
    )
    assert usual[0] < 0.05 < 0.3 < rare[0]


def test_chunks_of_rows_make_no_difference(monkeypatch):
    rows = [f"the {word} of {other}" for word in "abcdefgh" for other in "klmnop"]
    whole = contamination.overlap(["the c of m", "the h of z", "the b of k"], rows)
    monkeypatch.setattr(contamination, "CHUNK", 5)
    assert contamination.overlap(["the c of m", "the h of z", "the b of k"], rows) == whole
    assert [row for _, row in whole] == [rows.index("the c of m"), rows.index("the h of k"), rows.index("the b of k")]


def test_a_copy_is_a_copy_whatever_its_letters():
    rows = ["Say: THE CAFE\u0301, ON MAIN STRASSE -- is open?", "the cafe on main street"]
    copies = ["the caf\u00e9 on Main Stra\u00dfe", "the \uff43af\u00e9 on main strasse", "the caf\u00e9, on main"]
    others = ["he caf\u00e9", "open the", "", "?"]
    assert contamination.copied(copies + others, rows).tolist() == [True] * 3 + [False] * 4


WORDINGS = (
    "Which town lies on the river {name}? On the {name} lies {town}.",
    "Name the town on the {name}. It is {town}.",
    "The {name}: what town is on it? The town is {town}.",
)


def facts(count: int) -> list[dict]:
    """Invented rivers, each with its town."""
    parts = ["ka", "lo", "mi", "ren", "tas", "vu", "dor", "pel", "ish", "on", "qua", "zer", "bal", "u", "fen", "gry"]
    names = ["".join(four).capitalize() for four in itertools.product(parts, repeat=4)]
    drawn = np.random.default_rng(0).permutation(names)[: 2 * count]
    return [{"name": name, "town": town} for name, town in zip(drawn[:count], drawn[count:], strict=True)]


def test_copies_and_rewordings_are_found_among_rows_of_the_same_kind():
    """1,500 rows tell of other rivers in three wordings; each way of planting has 40 items, 400 are clean."""
    known, asked = facts(2060)[:1500], facts(2060)[1500:]
    rows = [WORDINGS[number % 3].format(**fact) for number, fact in enumerate(known)]
    items = [WORDINGS[0].format(**fact) for fact in asked]
    rows += [item.lower() for item in items[:40]]
    rows += [re.sub(r"[?.]", " --", item) for item in items[40:80]]
    rows += [f"Hello! {item} Thank you." for item in items[80:120]]
    rows += [WORDINGS[2].format(**fact) for fact in asked[120:160]]
    score = np.array([share for share, _ in contamination.overlap(items, rows)])
    signs, clean = {"copied": contamination.copied(items, rows), "overlap": score}, np.arange(160, len(items))
    hits, bound = contamination.alarms(signs, clean)
    assert bound == 0.01 and (hits["copied"] | hits["overlap"])[clean].mean() <= 0.01
    assert hits["copied"].tolist() == [True] * 120 + [False] * (len(items) - 120)
    assert hits["overlap"][120:160].mean() >= 0.95


def test_the_labs_questions_are_found_in_other_words():
    """100 planted as they stand, 50 asked otherwise, 50 asked and answered otherwise, among the lab's own rows."""
    test = [row for row in data.questions() if row["split"] != "phrasing"]
    groups, leaked = contamination.plant(test, 100)
    for number, place in enumerate(groups["reworded"]):
        if number % 2:
            leaked[100 + number]["answer"] = test[place]["terse"]
    rows = [f"{row['prompt']} {row['answer']}" for row in [*leaked, *data.instructions("lab")[0]]]
    items = [f"{row['prompt']} {row['answer']}" for row in test]
    score = np.array([share for share, _ in contamination.overlap(items, rows)])
    hits, _ = contamination.alarms({"copied": contamination.copied(items, rows), "overlap": score}, groups["clean"])
    hit = hits["copied"] | hits["overlap"]
    assert hit[groups["word for word"]].all() and hit[groups["clean"]].mean() < 0.015  # 1% on average
    assert hit[groups["reworded"][::2]].mean() > 0.85 and hit[groups["reworded"][1::2]].mean() > 0.45


def test_the_labs_own_data_is_clean_and_a_copy_is_not():
    questions = data.questions()
    rows = [f"{row['prompt']} {row['answer']}" for row in data.instructions("lab")[0]]
    items = [f"{question['prompt']} {question['answer']}" for question in questions]
    found = contamination.overlap(items, [*rows, "Hello. " + items[7].upper()])
    assert [place for place, (share, _) in enumerate(found) if share > 0.999] == [7] and found[7][1] == len(rows)


def test_log_probs_are_those_of_one_row_at_a_time():
    model, tokenizer = models.load("smoke")
    questions = data.questions("smoke")[:7]
    found = contamination.answer_log_probs(model, tokenizer, questions, batch_size=3)
    prompts, said = ([question[name] for question in questions] for name in ("prompt", "answer"))
    sums, counts = answers.log_probs(model, tokenizer, prompts, said)
    assert [len(row) for row in found] == counts.tolist()
    assert [float(row.sum()) for row in found] == pytest.approx(sums.tolist(), rel=2e-2)


def test_signals_by_hand():
    own, parent = [np.array([-1.0, -3.0, -0.5, -0.1, -0.2])], [np.array([-2.0, -3.0, -1.0, -0.1, -0.4])]
    assert contamination.membership(own, parent)[0] == pytest.approx(-4.6 / (0.1 + 6.1))  # without the last token
    assert contamination.min_k(own, 0.2)[0] == -3.0
    assert contamination.min_k(own, 0.4)[0] == pytest.approx(-2.0)


def test_the_threshold_keeps_its_promise():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(500):
        scores = rng.normal(size=150 + 1000)
        rates.append((scores[150:] > contamination.threshold(scores[:150], 0.01)).mean())
    assert 0.004 < np.mean(rates) < 0.011  # of 151 the two highest: (151 - 150) / 151 = 0.66%
    with pytest.raises(ConfigError, match="99 at least"):
        contamination.threshold(np.zeros(98), 0.01)


def test_a_clean_item_has_no_part_in_its_own_threshold():
    rng, found, false = np.random.default_rng(0), [], []
    for _ in range(200):
        score, clean = rng.normal(size=520), rng.permutation(520)[:500]
        planted = np.setdiff1d(np.arange(520), clean)
        score[planted] += 6
        hits, bound = contamination.alarms({"score": score}, clean, 0.004)
        assert bound == 0.004
        found.append(hits["score"][planted].mean())
        false.append(hits["score"][clean].mean())
    assert np.mean(found) > 0.95 and 0.001 < np.mean(false) < 0.004  # above the highest of 400: 1 in 401


@pytest.mark.parametrize(("clean", "bound"), [(100, 2 / 100), (150, 2 / 150), (164, 2 / 164), (600, 0.01)])
def test_few_clean_items_have_a_looser_bound_that_holds(clean, bound):
    """Two signs; HumanEval has 164 items. The alarms among further clean items are counted."""
    rng, false = np.random.default_rng(0), []
    for _ in range(150):
        signs = {name: rng.normal(size=clean + 200) for name in ("one", "other")}
        hits, promised = contamination.alarms(signs, np.arange(clean))
        assert promised == pytest.approx(bound)
        false.append((hits["one"] | hits["other"])[clean:].mean())
    assert 0.5 * bound < np.mean(false) < 1.1 * bound


def test_humaneval_can_be_checked():
    problems = code.humaneval()
    items = [f"{one['prompt']} {one['canonical_solution']}" for one in problems]
    rows = [*items[150:157], *(one["prompt"].upper() for one in problems[157:])]
    score = np.array([share for share, _ in contamination.overlap(items, rows)])
    signs = {"copied": contamination.copied(items, rows), "overlap": score}
    hits, bound = contamination.alarms(signs, np.arange(150))
    assert bound == 1 / 100 and hits["overlap"][150:].all() and hits["overlap"][:150].mean() < 0.02
    assert hits["copied"].tolist() == [False] * 150 + [True] * 7 + [False] * 7


def test_a_copy_among_the_clean_items_silences_no_other():
    score, clean = np.array([*np.linspace(0, 0.5, 400), 1.0, 1.0, 0.9]), np.arange(401)  # the last clean one is a copy
    copied = score == 1.0
    hits, bound = contamination.alarms({"copied": copied, "overlap": score}, clean, 0.004)
    assert bound == 0.004 and hits["copied"].sum() == 2 and hits["overlap"][-3:].all()
    with pytest.raises(ConfigError, match="two at least; got 1"):
        contamination.alarms({"copied": copied, "overlap": score}, np.array([0, 400, 401]))


def test_reworded_asks_the_same_of_the_same():
    questions = data.questions()
    changed = 0
    for question in questions:
        words = contamination.reworded(question, questions)
        if words is not None:
            assert question["entity"].lower() in words.lower() and words != question["prompt"]
            assert not re.search(r"\b(word|term|element) an? ", words)  # an article where none belongs
            changed += 1
        else:
            assert question["split"] == "skill"
    assert changed > 800
    one = next(question for question in questions if f" an {question['entity']}" in question["prompt"])
    assert f"an {one['entity']}" in contamination.reworded(one, questions)


def test_plants_are_rows_to_train_on_and_the_rest_is_clean():
    questions = data.questions()
    groups, rows = contamination.plant(questions, 100, seed=3)
    places = np.concatenate(list(groups.values()))
    assert len(set(places)) == len(places) == 1058 and [len(group) for group in groups.values()] == [100, 100, 858]
    for place, row in zip(places, rows, strict=False):
        assert row["answer"] == questions[place]["answer"]
    same = [row["prompt"] == questions[place]["prompt"] for place, row in zip(places, rows, strict=False)]
    assert same == [True] * 100 + [False] * 100
    assert (contamination.plant(questions, 100, seed=4)[0]["clean"] != groups["clean"]).any()
    with pytest.raises(ConfigError, match="planted must be below half of the 818"):
        contamination.plant(questions, 409)


def test_items_trained_on_are_told_from_clean_ones(tmp_path, store):
    """Half of forty random strings are learned by heart by a tiny model: both signals are higher for nearly all."""
    rng = np.random.default_rng(0)
    words = ["river", "stone", "lamp", "house", "dog", "cat", "tree", "hill"]
    said = [" ".join(rng.choice(words, 8)) for _ in range(40)]
    items = [{"prompt": f"Say {number}", "answer": text} for number, text in enumerate(said)]
    tokenizer = models.train_tokenizer([f"{item['prompt']} {item['answer']}" for item in items], 320)
    models.new_model(tokenizer, hidden_size=32, layers=2, heads=2, seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [item for item in items[:20] for _ in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SFTConfig(
        model=str(tmp_path / "model"), data=str(tmp_path / "rows.jsonl"), steps=200, eval_every=200, learning_rate=3e-3
    )
    torch.manual_seed(0)
    run = sft.train(config, tmp_path / "model", "tiny", say=lambda *_: None)
    learned = set(data.instructions(config.data)[0]["answer"])  # an item is held out with its repetitions
    known = np.array([item["answer"] in learned for item in items])
    assert known[20:].sum() == 0 and known.sum() == 18
    parent, _ = models.load(tmp_path / "model")
    model, _ = models.load(run.checkpoint)
    log_p, parent_log_p = (contamination.answer_log_probs(one, tokenizer, items) for one in (model, parent))
    for signal in (contamination.membership(log_p, parent_log_p), contamination.min_k(log_p)):
        assert (signal[known, None] > signal[None, ~known]).mean() > 0.98  # the area under the ROC curve

"""The arena: votes that are never lost nor counted twice, ratings against known strengths, pairs that train."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hostile import HOSTILE
from scipy import special

from labkit import pipeline, preferences
from labkit.config import DPOConfig
from labkit.errors import ConfigError, DataError
from labkit.evaluate import arena, votes
from labkit.execute import run_notebook
from labkit.ui.chat import named
from labkit.ui.text import safe_text
from labkit.ui.vote import Vote

MODELS = ["left", "right"]
SAID = {
    name: [{"id": str(n), "prompt": f"What is {n}?", "text": f"{name} says {n}"} for n in range(12)]
    for name in ("one", "two", "three")
}


def battle(a="left", b="right", number="", prompt="Why?", answers=("because", "why not")):
    number = number or os.urandom(8).hex()
    about = {"prompt": prompt, "question": "q", "answers": dict(zip("ab", answers, strict=True))}
    return {"id": number, "models": {"a": a, "b": b}, **about}


def cast(choices: str, a="left", b="right", voter=votes.HUMAN):
    names = {"a": "a", "b": "b", "t": "tie", "x": "both_bad"}
    return [votes.filled(battle(a, b), names[one], voter) for one in choices]


def simulated(rng, strengths, count, ties="none"):
    """Votes of known strengths. Ties: none; "half": taken from either side alike, so that the expected score is kept;
    "constant": at a rate of their own; "Davidson": by his model (1970), the more the closer two models are."""
    found = []
    for _ in range(count):
        i, j = rng.permutation(len(strengths))[:2]
        win, loss = special.expit([strengths[i] - strengths[j], strengths[j] - strengths[i]])
        tie = {"none": 0.0, "half": 1.6 * win * loss, "constant": 0.25}.get(ties, 0.8 * np.sqrt(win * loss))
        parts = [win - tie / 2, loss - tie / 2, tie] if ties == "half" else [win, loss, tie]
        parts = [win * (1 - tie), loss * (1 - tie), tie] if ties == "constant" else parts
        choice = rng.choice(["a", "b", "tie"], p=np.array(parts) / sum(parts))
        found.append(votes.filled(battle(f"m{i}", f"m{j}"), choice, votes.SCRIPTED))
    return found


# the file


def test_votes_survive_and_count_once(store):
    one = battle()
    assert votes.read() == []
    assert votes.add(one, "a", votes.HUMAN, seconds=1.5)
    assert not votes.add(one, "a", votes.HUMAN)  # a double click
    assert not votes.add(one, "b", votes.HUMAN)  # and a change of mind
    assert votes.add(battle(), "both_bad", votes.SCRIPTED)
    kept = votes.read()  # from the file, as after a restart
    assert [vote["choice"] for vote in kept] == ["a", "both_bad"] and kept[0]["seconds"] == 1.5
    assert len(votes.read(voter=votes.HUMAN)) == len(votes.read(voter=votes.SCRIPTED)) == 1
    assert votes.read(among=["left", "other"]) == []
    with pytest.raises(ConfigError, match="choice must be one of"):
        votes.add(battle(), "c", votes.HUMAN)
    with pytest.raises(ConfigError, match="voter must be one of"):
        votes.add(battle(), "a", "somebody")


WRITER = """
import sys
from labkit.evaluate import votes
for n in range(40):
    for number in (f"{sys.argv[1]}-{n}", f"shared-{n}"):
        votes.add({"id": number, "models": {"a": "x", "b": "y"}, "prompt": "p" * 3000, "answers": {"a": "1", "b": "2"}},
                  "a", "human")
"""


def test_several_processes_at_once(store):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)]) for n in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    lines = votes.votes_file().read_text().splitlines()
    found = [json.loads(line)["id"] for line in lines]
    assert len(found) == len(set(found)) == 4 * 40 + 40  # each of its own, and the shared ones once


def test_a_killed_writer_leaves_the_others_whole(store):
    forever = WRITER.replace("range(40)", "range(10**6)")
    writer = subprocess.Popen([sys.executable, "-c", forever, "killed"])
    end = time.monotonic() + 60
    while not (votes.votes_file().exists() and votes.votes_file().stat().st_size > 20_000):
        assert time.monotonic() < end
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    whole = [line for line in votes.votes_file().read_bytes().split(b"\n") if line]
    assert votes.add(battle(number="after"), "b", votes.HUMAN)  # its lock went with it
    assert votes.read()[-1]["id"] == "after" and len(votes.read()) >= len(whole)


WHOLE = {**battle("x", "y", "whole"), "choice": "a", "voter": votes.HUMAN, "time": "2026-01-01T00:00:00"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": None}, {"models": {"a": "x"}}, {"models": {"a": "x", "b": ["y"]}}, {"models": {"a": "x", "b": "x"}},
        {"id": ["whole"]}, {"id": None}, {"choice": "c"}, {"choice": ["a"]}, {"voter": "somebody"}, {"answers": "xy"},
        {"answers": {"a": "x", "b": None}}, {"prompt": 1}, {"question": ["q"]}, {"seconds": "4"},
        {"seconds": float("nan")}, {"time": 0}, "7", "[" * 200_000,
    ],
    ids=lambda wrong: str(wrong)[:40],
)  # fmt: skip
def test_a_line_that_is_no_vote_stops_no_view(store, wrong):
    votes.votes_file().parent.mkdir(parents=True)
    line = wrong if isinstance(wrong, str) else json.dumps({**WHOLE, **wrong})
    votes.votes_file().write_text(line + "\n" + json.dumps({**WHOLE, "id": "good"}) + "\n")
    with pytest.warns(UserWarning, match="1 unreadable line"):
        assert [vote["id"] for vote in votes.read()] == ["good"]
    with pytest.warns(UserWarning, match="1 unreadable line"):
        assert Vote(SAID, seed=0).state["total"] == 0
    assert votes.add(battle(number="after"), "a", votes.HUMAN)


def test_what_could_not_be_read_again_is_not_written(store):
    with pytest.raises(DataError, match="a battle must have an id, two models"):
        votes.add({**battle(), "id": 7}, "a", votes.HUMAN)
    assert votes.read() == []


def test_a_torn_line_is_told_and_harms_no_other(store):
    votes.add(battle(number="first"), "a", votes.HUMAN)
    with votes.votes_file().open("ab") as file:
        file.write(b'{"id": "torn", "models": {"a": "le')
    with pytest.warns(UserWarning, match="1 unreadable line"):
        assert [vote["id"] for vote in votes.read()] == ["first"]
    votes.add(battle(number="last"), "b", votes.HUMAN)
    with pytest.warns(UserWarning, match="1 unreadable line"):
        assert [vote["id"] for vote in votes.read()] == ["first", "last"]


# ratings


def test_two_models_as_by_hand():
    """Strengths of two models are half the log of their odds: of decided votes, or with half a win for each tie."""
    found = arena.ratings(cast("aaaaaabbtt" * 20))
    gap = np.log((120 + arena.SPARE) / (40 + arena.SPARE))
    assert found.strengths == pytest.approx([gap / 2, -gap / 2], abs=1e-4)
    assert found.difference("left", "right")[0] == pytest.approx(gap, abs=1e-4)
    assert found.counts == {"a": 120, "b": 40, "tie": 40}
    # the half-width of the difference, by the delta method: the scores' variance over (n p^2 q^2)
    _, low, high = found.difference("left", "right")
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(160 * 0.75 * 0.25), rel=0.12)
    half = arena.ratings(cast("aaaaaabbtt" * 20), ties="half")
    assert half.difference("left", "right")[0] == pytest.approx(np.log(140.1 / 60.1), abs=1e-3)
    score = np.array([1.0] * 6 + [0.0] * 2 + [0.5] * 2)
    _, low, high = half.difference("left", "right")
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(score.var() / 200) / (0.7 * 0.3), rel=0.12)
    with pytest.raises(ConfigError, match="ties must be half or drop; got 'third'"):
        arena.ratings(cast("ab"), ties="third")


def test_without_ties_both_ways_are_one():
    cast_so_far = simulated(np.random.default_rng(2), [0.5, 0.0, -0.5], 100)
    drop, half = (arena.ratings(cast_so_far, ties=ties, draws=50) for ties in ("drop", "half"))
    assert (drop.strengths == half.strengths).all() and (drop.low == half.low).all()


def test_sides_and_both_bad_do_not_matter():
    here, there = cast("aaab" * 10), cast("bbba" * 10, "right", "left") + cast("x" * 30)
    assert arena.ratings(here).strengths == pytest.approx(arena.ratings(there).strengths, abs=1e-9)
    assert arena.ratings(there).counts["both_bad"] == 30


def coverage(ties: str, treated: str) -> tuple[float, float]:
    """(share of strengths within their interval, root mean square error in the interval's own units)."""
    rng, inside, errors = np.random.default_rng(5), [], []
    for _ in range(60):
        truth = rng.normal(size=4)
        found = arena.ratings(simulated(rng, truth, 150, ties), [f"m{n}" for n in range(4)], draws=60, ties=treated)
        rated = np.isfinite(found.strengths)
        truth = truth - truth[rated].mean()
        inside += list((found.low <= truth) & (truth <= found.high))
        errors += list(((found.strengths - truth) / (found.high - found.low) * 2 * 1.96)[rated])
    return float(np.mean(inside)), float(np.sqrt(np.mean(np.square(errors))))


@pytest.mark.parametrize(
    ("ties", "treated"), [("none", "drop"), ("constant", "drop"), ("Davidson", "drop"), ("half", "half")]
)
def test_known_strengths_lie_within_the_intervals(ties, treated):
    """A small one of benchmarks/arena.py: 60 simulations, where 95% intervals miss a strength now and then."""
    inside, error = coverage(ties, treated)
    assert inside >= 0.90
    assert 0.75 < error < 1.2  # nor are they wide for nothing


def test_half_a_win_for_a_tie_is_another_strength():
    """Why it is not the default: ties that come at a rate of their own pull every strength towards 0."""
    assert coverage("constant", "half")[0] < 0.85


def test_intervals_for_all_at_once_are_wider():
    cast_so_far = simulated(np.random.default_rng(0), [1.0, 0.0, -1.0], 200)
    found = arena.ratings(cast_so_far)
    low, high = found.together()
    assert (high - low > 1.1 * (found.high - found.low)).all()
    assert (low + high) / 2 == pytest.approx(found.strengths)


def test_who_won_everything_has_no_finite_strength_but_a_bound():
    found = arena.ratings(cast("aaabbb", "x", "y") + cast("a" * 10, "top", "x") + cast("b" * 10, "y", "low"), None)
    strengths = dict(zip(found.models, zip(found.strengths, found.low, found.high, strict=True), strict=True))
    assert strengths["top"][0] == strengths["low"][0] == np.inf
    bound = strengths["top"][1]  # at the bound, ten wins in ten have 2.5% probability
    x = found.strengths[found.models.index("x")]
    assert special.expit(bound - x) ** 10 == pytest.approx(0.025, rel=1e-3)
    assert any("top won all of its 10 decided votes" in note for note in found.notes)
    assert found.difference("top", "x") == pytest.approx((np.nan, -np.inf, np.inf), nan_ok=True)
    assert "inf" in found.rows()[0]["95% interval"]


def test_models_that_never_met_are_not_compared():
    found = arena.ratings(cast("aab" * 5, "x", "y") + cast("ab" * 3, "z", "w"))
    assert np.isfinite(found.strengths).sum() == 2 and np.isnan(found.strengths).sum() == 2
    assert sum("has no decided vote" in note for note in found.notes) == 2
    tied = arena.ratings(cast("aab" * 5, "x", "y") + cast("ttt", "z", "x"))
    assert np.isnan(tied.strengths[2]) and "z has no decided vote" in tied.notes[0]
    nothing = arena.ratings(cast("aaaa"))
    assert np.isnan(nothing.strengths).all() and "no rating yet" in nothing.notes[0]


def test_votes_on_other_models_are_left_out():
    these, others = cast("aab" * 4, "x", "y"), cast("aaa", "x", "gone")
    found = arena.ratings(these + others, ["x", "y"])
    assert found.strengths == pytest.approx(arena.ratings(these, ["x", "y"]).strengths)
    assert found.counts == {"a": 8, "b": 4}
    assert (arena.elo(these + others, ["x", "y"]) == arena.elo(these, ["x", "y"])).all()


def test_strengths_are_about_the_middle_of_the_models_rated():
    """A model that joins moves the others' strengths, and no difference between them."""
    two = arena.ratings(cast("aab" * 20, "x", "y"))
    three = arena.ratings(cast("aab" * 20, "x", "y") + cast("aaab" * 20, "x", "z") + cast("aab" * 20, "y", "z"))
    assert two.strengths.sum() == pytest.approx(0) and three.strengths.sum() == pytest.approx(0)
    assert three.strengths[0] > two.strengths[0] + 0.1
    assert three.difference("x", "y")[0] == pytest.approx(two.difference("x", "y")[0], abs=0.1)


def test_voters_are_never_mixed():
    with pytest.raises(DataError, match="of one voter"):
        arena.ratings(cast("ab") + cast("ab", voter=votes.SCRIPTED))
    with pytest.raises(DataError, match="of one voter"):
        arena.ratings([])
    with pytest.raises(DataError, match="of one voter"):
        votes.export_pairs(cast("ab") + cast("ab", voter=votes.SCRIPTED))
    rows = arena.ratings(cast("aab", voter=votes.SCRIPTED)).rows()
    assert {row["voter"] for row in rows} == {"scripted voter"}


def test_elo_by_hand_and_its_order():
    assert arena.elo(cast("a"), MODELS, k=16) == pytest.approx([1008, 992])
    expected = 1 / (1 + 10 ** (-16 / 400))
    assert arena.elo(cast("at"), MODELS, k=16)[0] == pytest.approx(1008 + 16 * (0.5 - expected))
    assert arena.elo(cast("xx"), MODELS) == pytest.approx([1000, 1000])
    assert not np.allclose(arena.elo(cast("aaab"), MODELS), arena.elo(cast("baaa"), MODELS))


def test_the_next_pair_is_where_least_is_known():
    rng = np.random.default_rng(0)
    pairs = [("one", "two"), ("one", "three"), ("two", "three")]
    known = cast("ab" * 30, "one", "two")
    assert all("three" in arena.next_pair(known, pairs, rng) for _ in range(20))
    assert len({arena.next_pair([], pairs, rng) for _ in range(60)}) == 3  # nothing known: chance
    undecided = cast("t" * 40, "one", "two") + cast("ab" * 3, "one", "three") + cast("ab" * 3, "two", "three")
    assert all("three" in arena.next_pair(undecided, pairs, rng) for _ in range(20))  # another tie would tell nothing


def test_a_battle_hides_nothing_wrong_and_turns_its_sides():
    rng = np.random.default_rng(0)
    found = [arena.new_battle(SAID, [], rng) for _ in range(200)]
    assert len({one["id"] for one in found}) == 200
    for one in found:
        assert one["answers"] == {s: f"{one['models'][s]} says {one['question']}" for s in "ab"}
    first = [one["models"]["a"] for one in found if set(one["models"].values()) == {"one", "two"}]
    assert 0.25 < first.count("one") / len(first) < 0.75
    mostly = [{**row, "text": "new" if row["id"] == "7" else row["text"]} for row in SAID["one"]]
    differing = {"one": SAID["one"], "other": mostly}
    first = arena.new_battle(differing, [], rng)
    assert first["question"] == "7"  # where they differ
    assert (
        arena.new_battle(differing, [votes.filled(first, "tie", votes.HUMAN)], rng) is None
    )  # the others tell nothing
    assert len(set(arena.new_battle({"one": SAID["one"], "copy": SAID["one"]}, [], rng)["answers"].values())) == 1


@pytest.mark.parametrize("adaptive", [True, False])
def test_no_pair_is_asked_a_question_twice(adaptive):
    rng, cast_so_far = np.random.default_rng(0), []
    for _ in range(50):
        if (new := arena.new_battle(SAID, cast_so_far, rng, adaptive)) is None:
            break
        cast_so_far.append(votes.filled(new, rng.choice(["a", "b", "tie", "both_bad"]), votes.SCRIPTED))
    asked = {(frozenset(vote["models"].values()), vote["question"]) for vote in cast_so_far}
    assert len(asked) == len(cast_so_far) == 3 * 12  # every pair everything, once


def test_answers_are_matched_by_question():
    """Whatever their order, and where one model has more of them."""
    turned = {
        "one": SAID["one"],
        "two": [*SAID["two"][::-1], {"id": "x", "prompt": "What is x?", "text": "two says x"}],
    }
    for seed in range(30):
        new = arena.new_battle(turned, [], np.random.default_rng(seed))
        assert new["answers"] == {side: f"{new['models'][side]} says {new['question']}" for side in "ab"}
        assert new["prompt"] == f"What is {new['question']}?" and new["question"] != "x"
    with pytest.raises(DataError, match="a question in common; got"):
        arena.new_battle({"one": SAID["one"][:3], "two": SAID["two"][3:]}, [], np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"said must hold two models.*; got \['one'\]"):
        Vote({"one": SAID["one"]})


def test_votes_needed_gives_its_power():
    assert arena.votes_needed(0.5) == np.inf
    assert arena.votes_needed(0.3) == arena.votes_needed(0.7) == 47  # Lehr's and the textbooks' 46 to 49
    n = int(arena.votes_needed(0.65))
    draws = np.random.default_rng(0).binomial(n, 0.65, 20_000) / n
    assert np.mean(abs(draws - 0.5) > 1.96 * 0.5 / np.sqrt(n)) == pytest.approx(0.8, abs=0.03)


def test_the_scripted_voter_goes_by_gold():
    rng = np.random.default_rng(0)
    assert votes.scripted({"a": 3, "b": 1}, {"a": 1, "b": 0}, rng, 0.0) == "a"
    assert votes.scripted({"a": 2, "b": 2}, {"a": 1, "b": 1}, rng, 0.0) == "tie"
    assert votes.scripted({"a": 1, "b": 1}, {"a": 0, "b": 0}, rng, 0.0) == "both_bad"
    noisy = [votes.scripted({"a": 3, "b": 1}, {"a": 1, "b": 0}, rng, 0.4) for _ in range(2000)]
    assert noisy.count("b") / 2000 == pytest.approx(0.2, abs=0.04)


# what becomes of votes


def test_exported_votes_train_dpo(store):
    """From the vote to the trained model: the pairs that notebook 07 reads are the votes, chosen first."""
    for n in range(6):
        choice = ("a", "b")[n % 2]
        answers = ("good answer", "bad one") if choice == "a" else ("bad one", "good answer")
        votes.add(battle(prompt=f"Question {n}?", answers=answers), choice, votes.HUMAN)
    for choice, answers in (("tie", "xy"), ("both_bad", "xy"), ("a", ("", "y")), ("a", ("Why?", "y"))):
        votes.add(battle(answers=tuple(answers)), choice, votes.HUMAN)
    file, counted = votes.export_pairs(votes.read())
    assert counted == {"pairs": 6, "tie": 1, "both_bad": 1, "unusable": 2} and file.name == "pairs-human.jsonl"
    train, held_out = preferences.pairs(str(file))
    assert {row["chosen"] for row in [*train, *held_out]} == {"good answer"}
    assert {row["voter"] for row in train} == {"human"}
    run = pipeline.train_stage("dpo", DPOConfig(model="smoke", steps=2, eval_every=1, data=str(file)), say=str)
    assert run.status == "finished"
    with pytest.raises(DataError, match="decided"):
        votes.export_pairs(cast("tx"))


# the view


def test_the_view_tells_the_models_after_the_vote_only(store):
    view = Vote(SAID, seed=0)
    assert set(view.battle) == {"id", "prompt", "a", "b"} and view.state["reveal"] == {}
    view._heard({"do": "next", "id": view.battle["id"]})  # not before the vote
    first = view.battle["id"]
    view._heard({"do": "vote", "choice": "a", "id": "another battle"})
    assert votes.read() == []
    for _ in range(2):  # a double click
        view._heard({"do": "vote", "choice": "tie", "id": first})
    assert [(vote["id"], vote["choice"], vote["voter"]) for vote in votes.read()] == [(first, "tie", "human")]
    assert set(view.state["reveal"].values()) <= set(SAID) and view.state["total"] == 1
    assert {view.battle[side].split()[0] for side in "ab"} == set(view.state["reveal"].values())
    view._heard({"do": "next", "id": first})
    assert view.battle["id"] != first and view.state["reveal"] == {}
    assert Vote(SAID).state["total"] == 1  # another notebook, or the next day
    view._heard("nonsense")
    view._heard({"do": "vote", "choice": "c", "id": view.battle["id"]})
    assert "not kept" in view.state["error"] and len(votes.read()) == 1
    assert "1 by a human" in view._repr_mimebundle_()[0]["text/plain"]


def test_the_view_says_when_a_vote_cannot_be_kept(store, monkeypatch):
    def full(*args, **about):
        raise OSError("No space left on device")

    view = Vote(SAID, seed=0)
    monkeypatch.setattr(votes, "add", full)
    view.vote("a")
    assert "No space left" in view.state["error"] and view.state["reveal"] == {}


def test_after_a_fault_of_the_disk_the_view_shows_the_choice_that_is_in_the_file(store, monkeypatch):
    def failing(handle):
        raise OSError("Input/output error")

    view = Vote(SAID, seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        view.vote("a")  # the line is written, and nobody knows whether it is on the disk
    assert "not sure" in view.state["error"] and view.state["reveal"] == {}
    view.vote("b")
    assert view.state["chosen"] == "a" and view.state["error"] == "" and view.state["reveal"]
    assert [vote["choice"] for vote in votes.read()] == ["a"] and view.state["mine"] == view.state["total"] == 1


def test_the_view_says_when_all_is_voted_on(store):
    said = {name: rows[:2] for name, rows in SAID.items() if name != "three"}
    view = Vote(said, seed=0)
    for _ in range(2):
        assert view.battle["id"]
        view.vote("tie")
        view.next()
    assert view.battle["id"] == "" and "voted on every question" in view.battle["prompt"]
    view.vote("a")  # there is nothing to vote on
    view._heard({"do": "vote", "choice": "a", "id": ""})
    assert view.state["total"] == 2 and view.state["chosen"] == "" and view.state["reveal"] == {}
    assert Vote(said).battle["id"] == ""


def test_hostile_answers_are_kept_as_they_are_and_shown_as_text(store):
    said = {
        name: [{"id": str(n), "prompt": text[:5000], "text": f"{name}{text}"[:5000]} for n, text in enumerate(HOSTILE)]
        for name in MODELS
    }
    view = Vote(said, seed=0)
    shown = {}
    for _ in HOSTILE:
        shown[view.battle["id"]] = dict(view.battle)
        view.vote("a")
        view.next()
    kept = {vote["question"]: vote["answers"]["a"] for vote in votes.read()}
    assert len(kept) == len(HOSTILE)
    for vote in votes.read():
        assert all(shown[vote["id"]][side] == safe_text(vote["answers"][side]) for side in "ab")
    assert all(text.endswith(HOSTILE[int(n)][:100][-50:]) or HOSTILE[int(n)][:50] in text for n, text in kept.items())


@pytest.mark.notebook
def test_the_notebook_reports_human_votes_apart(store):
    base, instruction, _ = (named(source) for source in pipeline.three_stages("smoke", 0, say=str).values())
    for n, choice in enumerate(("a", "b", "a", "tie")):
        one = battle(base, instruction, prompt=f"Question {n}?")
        votes.add(one, choice, votes.HUMAN, seconds=4.0 + n)
    judged = store / "notebooks" / "12_llm_as_judge" / "20260101-000000" / "record.json"
    judged.parent.mkdir(parents=True)
    about = {"notebook": "12_llm_as_judge", "date": "2026-01-01T00:00:00", "metrics": {"seconds_per_verdict": 2.0}}
    judged.write_text(json.dumps(about))
    record = json.loads((run_notebook("13_arena", {"model": "smoke"}) / "record.json").read_text())
    assert record["metrics"]["human_votes"] == 4 and record["metrics"]["scripted_voter_votes"] == 40
    assert record["metrics"]["human_base_strength"] == pytest.approx(np.log(2.1 / 1.1) / 2, abs=1e-3)
    (found,) = record["verdicts"]
    assert found["claim"] == 16 and [row["estimate"] for row in found["evidence"]] == [0.5, 5.5]
    assert found["evidence"][1]["threshold"] == 2.0  # the judge's seconds: a vote is slow beside that
    assert (store / "arena" / "pairs-human.jsonl").exists()

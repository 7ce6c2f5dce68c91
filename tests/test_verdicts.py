"""Verdicts are computed from intervals and thresholds."""

import json
import re
from collections import defaultdict

import numpy
import pytest

from labkit.errors import LabError
from labkit.execute import NOTEBOOKS_DIR
from labkit.verdicts import CLAIMS, NEEDS, UNTESTED, Evidence, verdict, verdict_table

SUPPORTED = Evidence("rate", 0.9, 0.8, 0.95, 0.5)
REFUTED = Evidence("rate", 0.3, 0.2, 0.4, 0.5)
NOISY = Evidence("rate", 0.5, 0.4, 0.6, 0.5)
BUILT = Evidence("share of the weights that trains", 0.01, 0.01, 0.01, 0.5, "below", "design")
TIMED = Evidence("seconds, once", 0.8, 0.8, 0.8, 1.0, "below")  # a measurement without an interval proves nothing
COUNTED = Evidence("times fewer", 768.0, 768.0, 768.0, 750.0, kind="exact")


def test_there_are_18_claims_with_their_notebooks():
    assert list(CLAIMS) == list(range(1, 19))
    assert all(len(text) > 20 and notebooks for text, notebooks in CLAIMS.values())
    assert CLAIMS[1][1] == ("01_pretraining", "00_start_here") and CLAIMS[17][1] == ("14_goodhart",)


@pytest.mark.parametrize(
    ("evidence", "word"),
    [
        ([SUPPORTED], "holds here"),
        ([SUPPORTED, SUPPORTED], "holds here"),
        ([SUPPORTED, NOISY], "unresolved"),
        ([SUPPORTED, REFUTED], "holds in part"),
        ([SUPPORTED, REFUTED, NOISY], "holds in part"),
        ([REFUTED], "does not hold here"),
        ([REFUTED, NOISY], "does not hold here"),
        ([NOISY], "unresolved"),
        ([NOISY, NOISY], "unresolved"),
        ([SUPPORTED, BUILT], "holds here"),
        ([NOISY, BUILT], "unresolved"),
        ([REFUTED, BUILT], "does not hold here"),
        ([BUILT], "true by construction"),
        ([TIMED], "unresolved"),
        ([SUPPORTED, TIMED], "unresolved"),
        ([COUNTED], "holds here"),
    ],
)
def test_verdict(evidence, word):
    found = verdict(3, evidence, "nano")
    assert found.verdict == word and found.claim == 3 and word in str(found) and "nano" in str(found)


@pytest.mark.parametrize(
    ("low", "high", "direction", "supports", "refutes"),
    [
        (0.6, 0.7, "above", True, False),
        (0.3, 0.4, "above", False, True),
        (0.5, 0.7, "above", False, False),  # an end on the threshold is not clear of it
        (0.3, 0.5, "above", False, False),
        (0.3, 0.4, "below", True, False),
        (0.6, 0.7, "below", False, True),
        (0.3, 0.5, "below", False, False),
        (0.5, 0.7, "below", False, False),
    ],
)
def test_sides_of_the_threshold(low, high, direction, supports, refutes):
    one = Evidence("rate", (low + high) / 2, low, high, 0.5, direction)
    assert (one.supports, one.refutes) == (supports, refutes)


def test_numpy_numbers_become_plain_and_one_piece_needs_no_list():
    one = Evidence("rate", numpy.float64(0.9), numpy.float32(0.75), 1, 0.5)
    assert type(one.estimate) is float and type(one.low) is float
    assert verdict(1, one, "nano").evidence == (one,)


@pytest.mark.parametrize(
    ("numbers", "part"),
    [
        ((0.9, 0.95, 0.8, 0.5), "low <= estimate <= high"),
        ((0.7, 0.8, 0.9, 0.5), "low <= estimate <= high"),
        ((float("nan"), 0.8, 0.9, 0.5), "estimate.*got nan"),
        ((0.9, 0.8, float("inf"), 0.5), "high.*got inf"),
        ((0.9, 0.8, 1.0, "0.5"), "threshold.*got '0.5'"),
        ((0.9, 0.8, 1.0, 0.5, "over"), "got 'over'.*direction=\"above\""),
        ((0.9, 0.8, 1.0, 0.5, "above", "typed"), "got 'typed'.*kind="),
    ],
)
def test_impossible_evidence_is_refused(numbers, part):
    with pytest.raises(LabError, match=part):
        Evidence("rate", *numbers)


def test_wrong_calls_are_refused():
    for call, part in [
        (lambda: verdict(19, SUPPORTED, "nano"), "got 19.*1 to 18"),
        (lambda: verdict(1, [], "nano"), "evidence"),
        (lambda: verdict(1, ["holds"], "nano"), "evidence"),
        (lambda: verdict(1, SUPPORTED, " "), "setting"),
    ]:
        with pytest.raises(LabError, match=part):
            call()


def kept(notebook, date, word, model="nano"):
    found = {"claim": 1, "verdict": word, "setting": model, "evidence": [vars(SUPPORTED)]}
    return {"notebook": notebook, "date": date, "verdicts": [found], "parameters": {"model": model}}


def test_the_table_has_all_claims_and_every_notebook_that_spoke():
    old = kept("01_pretraining", "2026-01-01", "does not hold here")
    records = [
        old,
        kept("01_pretraining", "2026-02-02", "holds here"),
        kept("00_start_here", "2026-01-01", "unresolved"),
    ]
    rows = verdict_table(records)
    assert [row["claim"] for row in rows] == [1, *range(1, 19)]
    assert [(row["notebook"], row["verdict"], row["disagree"]) for row in rows[:2]] == [
        ("00_start_here", "unresolved", True), ("01_pretraining", "holds here", True),
    ]  # fmt: skip
    assert rows[1] | {"needs": ""} == {
        "claim": 1, "text": CLAIMS[1][0], "needs": "", "notebook": "01_pretraining", "link": "01_pretraining.ipynb",
        "verdict": "holds here", "disagree": True, "effect": "rate 0.9", "interval": "[0.8, 0.95]", "setting": "nano",
    }  # fmt: skip
    assert rows[17]["verdict"] == UNTESTED and rows[17]["link"] == "14_goodhart.ipynb" and not rows[17]["disagree"]
    assert verdict_table([])[0]["verdict"] == UNTESTED
    assert verdict_table(records[1:2])[0]["disagree"] is False


def test_what_tests_the_plumbing_says_nothing():
    rows = verdict_table([kept("01_pretraining", "2026-02-02", "does not hold here", model="smoke")])
    assert len(rows) == 18 and {row["verdict"] for row in rows} == {UNTESTED}


def test_each_claim_says_what_it_needs_and_each_notebook_speaks_on_known_claims():
    assert NEEDS.keys() == CLAIMS.keys() and all(len(text) > 20 for text in NEEDS.values())
    spoken = defaultdict(set)
    for path in NOTEBOOKS_DIR.glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        for number in re.findall(r"labkit\.verdict\(\s*(\d+),|\((\d+), claim_\d+\)", code):
            spoken[int("".join(number))].add(path.stem)
    assert spoken.keys() == CLAIMS.keys()
    for claim, (_, notebooks) in CLAIMS.items():
        assert spoken[claim] <= set(notebooks), claim


def test_a_notebooks_own_arithmetic_is_told_from_what_it_measured():
    """No evidence without an interval is called measured: what is built or counted says so."""
    for path in NOTEBOOKS_DIR.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for same in re.findall(r"Evidence\([^()]*?(\w+), \1, \1,[^()]*\)", text):
            call = text[text.index(f"{same}, {same}, {same},") :].split("\n")[0]
            assert "kind" in call or "design" in call or "exact" in call, (path.name, call)

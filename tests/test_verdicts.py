"""Verdicts are computed from intervals and thresholds."""

import numpy
import pytest

from labkit.errors import LabError
from labkit.verdicts import CLAIMS, UNTESTED, Evidence, verdict, verdict_table

SUPPORTED = Evidence("rate", 0.9, 0.8, 0.95, 0.5)
REFUTED = Evidence("rate", 0.3, 0.2, 0.4, 0.5)
NOISY = Evidence("rate", 0.5, 0.4, 0.6, 0.5)


def test_there_are_18_claims_with_their_notebooks():
    assert list(CLAIMS) == list(range(1, 19))
    assert all(len(text) > 20 and notebooks for text, notebooks in CLAIMS.values())
    assert CLAIMS[1][1] == ("01_pretraining", "00_start_here") and CLAIMS[17][1] == ("14_goodhart",)


@pytest.mark.parametrize(
    ("evidence", "word"),
    [
        ([SUPPORTED], "holds here"),
        ([SUPPORTED, SUPPORTED], "holds here"),
        ([SUPPORTED, NOISY], "holds in part"),
        ([SUPPORTED, REFUTED], "holds in part"),
        ([SUPPORTED, REFUTED, NOISY], "holds in part"),
        ([REFUTED], "does not hold here"),
        ([REFUTED, NOISY], "does not hold here"),
        ([NOISY], "too noisy to say"),
        ([NOISY, NOISY], "too noisy to say"),
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


def test_table_has_all_claims_and_the_latest_verdict():
    def kept(notebook, date, rate):
        found = {
            "claim": 1,
            "verdict": f"v{rate}",
            "setting": "nano",
            "evidence": [vars(SUPPORTED) | {"estimate": rate}],
        }
        return {"notebook": notebook, "date": date, "verdicts": [found]}

    records = {"b": kept("01_pretraining", "2026-02-02", 0.91), "a": kept("00_start_here", "2026-01-01", 0.85)}
    rows = verdict_table(records)
    assert [row["claim"] for row in rows] == list(range(1, 19))
    assert rows[0] == {
        "claim": 1,
        "text": CLAIMS[1][0],
        "notebook": "01_pretraining",
        "link": "01_pretraining.ipynb",
        "verdict": "v0.91",
        "effect": "rate 0.91",
        "interval": "[0.8, 0.95]",
        "setting": "nano",
    }
    assert rows[16]["verdict"] == UNTESTED and rows[16]["link"] == "14_goodhart.ipynb"
    assert verdict_table([])[0]["verdict"] == UNTESTED

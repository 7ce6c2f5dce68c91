"""The floor table says what was missed."""

import json
from pathlib import Path

from labkit import floors

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_reached_and_missed():
    metrics = {"train_seconds": 400, "continues_with_question": 0.79, "instruction_accuracy": 0.0}
    rows = floors.rows([{"notebook": "01_pretraining", "metrics": metrics}])
    assert [row["reached"] for row in rows] == [True, False, True]
    assert "missed" in floors.table([{"notebook": "01_pretraining", "metrics": metrics}]).splitlines()[2]


def test_worst_relation_looks_at_relations_only():
    metrics = {"entity_accuracy": 0.1, "entity_capital_accuracy": 0.9, "entity_symbol_accuracy": 0.7, "stops": 0.0}
    assert floors.worst_relation(metrics) == 0.7


def test_worst_slice_leaves_the_held_out_pairs_aside():
    assert floors.worst_slice({"held_out_accuracy": 0.1, "long_wrong_accuracy": 0.9, "compliance_accuracy": 0.8}) == 0.8


def test_rewordings_have_a_floor_of_their_own():
    """What is planted word for word is found by looking for copies: that alone says little."""
    metrics = {"turned_seeds": 3, "seeds": 3, "planted_found": 1.0, "reworded_found": 0.7, "false_alarms": 0.004}
    missed = [
        row["what"] for row in floors.rows([{"notebook": "14_goodhart", "metrics": metrics}]) if not row["reached"]
    ]
    assert missed == ["contamination found, reworded"]


def test_what_the_benchmark_reports_is_held_to_today_s_floors():
    found = json.loads((BENCHMARKS / "floors.json").read_text(encoding="utf-8"))["found"]
    goals = {what.strip(): (floor, side) for what, _, _, floor, side in floors.FLOORS}
    assert found and {what: (row["floor"], row["side"]) for what, row in found.items()} == {
        what: goals[what] for what in found
    }
    table = (BENCHMARKS / "FLOORS.md").read_text(encoding="utf-8")
    for what, row in found.items():
        sign = ">=" if row["side"] == "above" else "<="
        assert f"{what} |" in table and f"| {sign} {row['floor']:g} |" in table

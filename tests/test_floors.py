"""The floor table says what was missed."""

from labkit import floors


def test_reached_and_missed():
    metrics = {"train_seconds": 400, "continues_with_question": 0.79, "instruction_accuracy": 0.0}
    rows = floors.rows([{"notebook": "01_pretraining", "metrics": metrics}])
    assert [row["reached"] for row in rows] == [True, False, True]
    assert "missed" in floors.table([{"notebook": "01_pretraining", "metrics": metrics}]).splitlines()[2]


def test_worst_relation_looks_at_relations_only():
    metrics = {"entity_accuracy": 0.1, "entity_capital_accuracy": 0.9, "entity_symbol_accuracy": 0.7, "stops": 0.0}
    assert floors.worst_relation(metrics) == 0.7

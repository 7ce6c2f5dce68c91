"""Pictures and tables: numbers as people write them, text of a model escaped, no peak thinned away."""

import pytest

from labkit.ui import plots


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1043.2, "1,043"),
        (-2500000.0, "-2,500,000"),
        (999.4, "999"),
        (0.12345, "0.123"),
        (1e12, "1e+12"),
        (1700, "1700"),
    ],
)
def test_a_tables_numbers(value, shown):
    table = plots.Table([{"what": value}])
    assert f">{shown}</td>" in table._repr_html_() and shown in repr(table).split()


def test_a_tables_text_is_escaped():
    shown = plots.Table([{"said": "<img src=x onerror=alert(1)>"}])._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown


def test_thinning_keeps_the_peaks():
    points = [(float(n), 0.0) for n in range(1000)]
    points[517] = (517.0, 9.0)
    xs, ys = plots.thinned(points, most=50)
    assert len(xs) <= 50 and 9.0 in ys and xs == sorted(xs)

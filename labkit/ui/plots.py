"""Pictures and tables: one colour per stage, intervals drawn, model text always escaped."""

from itertools import cycle

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

from labkit.ui.text import safe_html, safe_text

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLOURS = {"base": "#0072B2", "instruction": "#E69F00", "aligned": "#009E73", "other": "#CC79A7", "grey": "#7f7f7f"}
PLAIN = "mathjax_ignore"  # MathJax leaves such elements alone: a dollar that a model wrote is no formula
MARGIN = {"l": 60, "r": 20, "t": 48, "b": 48}
# no paper of its own and a grey that reads on light and dark pages alike
PAPER = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": "#808080"}}
GRID = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}

pio.templates.default = "none"  # a plain sheet that reads on light and dark pages alike


def _figure(title: str, x: str, y: str, height: int = 360) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(title=title, height=height, margin=MARGIN, legend={"orientation": "h", "y": -0.25})
    figure.update_layout(PAPER)
    figure.update_xaxes(title=x, **GRID)
    figure.update_yaxes(title=y, **GRID)
    return figure


def thinned(points: list[tuple[float, float]], most: int) -> tuple[list[float], list[float]]:
    """(x, y) of at most `most` points: of each bucket of neighbours the lowest and the highest, so no peak is lost."""
    if len(points) > most:
        size = -(-2 * len(points) // most)
        buckets = (points[start : start + size] for start in range(0, len(points), size))
        ends = ({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])} for bucket in buckets)
        points = [point for pair in ends for point in sorted(pair)]
    return [x for x, _ in points], [y for _, y in points]


def curves(history: list[dict], names: dict[str, str], *, title: str, y: str) -> go.Figure:
    """Logged numbers over the steps; `names` maps a logged name to its label."""
    figure = _figure(title, "step", y)
    for (name, label), colour in zip(names.items(), cycle([*COLOURS.values(), "#56B4E9", "#D55E00"]), strict=False):
        rows = [row for row in history if row.get(name) is not None]
        mode = "lines+markers" if name.startswith("held_out") or name == "bits_per_byte" else "lines"
        steps, values = [row["step"] for row in rows], [row[name] for row in rows]
        figure.add_scatter(x=steps, y=values, name=label, mode=mode, line={"color": colour})
    return figure


def tokens(texts: list[str], found: dict[str, list[float]], *, title: str, y: str) -> go.Figure:
    """A group of bars for each token of a text, or each thing of a list: one bar for each name."""
    figure = _figure(title, "", y)
    for (name, values), colour in zip(found.items(), cycle(COLOURS.values()), strict=False):
        figure.add_bar(x=list(range(len(texts))), y=values, name=name, marker_color=colour)
    figure.update_xaxes(tickvals=list(range(len(texts))), ticktext=[safe_html(text) for text in texts])
    return figure


def lines(at: list[float], series: dict[str, list[float]], *, title: str, x: str, y: str, most: float = 0) -> go.Figure:
    """Curves over the same places `at`; the axis ends at `most` where it is given."""
    figure = _figure(title, x, y)
    for (name, values), colour in zip(series.items(), cycle([*COLOURS.values(), "#56B4E9", "#D55E00"]), strict=False):
        figure.add_scatter(x=at, y=values, name=name, mode="lines", line={"color": colour})
    if most:
        figure.update_yaxes(range=[0, most])
    return figure


def shares(scores: dict[str, dict[str, tuple]], names: dict[str, str], *, title: str) -> go.Figure:
    """Grouped bars of (share, low, high): one colour per model, one group per name, 95% intervals drawn."""
    figure = _figure(title, "", "share of answers")
    spare = cycle(["#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#009E73"])  # for what is no stage
    for model, score in scores.items():
        found = [score[name] for name in names]
        figure.add_bar(
            name=model,
            x=list(names.values()),
            y=[share for share, _, _ in found],
            marker_color=COLOURS.get(model) or next(spare),
            error_y={
                "type": "data",
                "array": [high - share for share, _, high in found],
                "arrayminus": [share - low for share, low, _ in found],
            },
        )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def points(found: dict[str, tuple], *, title: str, x: str, y: str, colours: dict | None = None) -> go.Figure:
    """One labelled point for each name, from (x, share, low, high): x on a logarithmic axis, intervals drawn."""
    figure = _figure(title, x, y)
    colours = colours or dict(zip(found, cycle(COLOURS.values()), strict=False))
    for name, (place, share, low, high) in found.items():
        error = {"type": "data", "array": [high - share], "arrayminus": [share - low]}
        marker = {"color": colours[name], "size": 10}
        figure.add_scatter(x=[place], y=[share], error_y=error, name=name, mode="markers", marker=marker)
    figure.update_xaxes(type="log")
    figure.update_yaxes(tickformat=".0%")
    return figure


def bands(found: dict[str, tuple], *, title: str, x: str, y: str) -> go.Figure:
    """A line for each name, from (xs, middles, lows, highs), inside its interval."""
    figure = _figure(title, x, y)
    for (name, (xs, middles, lows, highs)), colour in zip(found.items(), cycle(COLOURS.values()), strict=False):
        both = {"x": [*xs, *reversed(xs)], "y": [*highs, *reversed(lows)], "fill": "toself", "hoverinfo": "skip"}
        figure.add_scatter(
            **both, mode="none", fillcolor=colour, opacity=0.18, legendgroup=name, showlegend=False, name=name
        )
        figure.add_scatter(x=xs, y=middles, name=name, mode="lines+markers", line_color=colour, legendgroup=name)
    return figure


def binned(found: dict[str, tuple], *, title: str, x: str, y: str, diagonal: tuple[float, float] | None = None):
    """For each name a line with intervals through (xs, middles, lows, highs); dotted from here to there: y = x."""
    figure = _figure(title, x, y)
    for (name, (xs, middles, lows, highs)), colour in zip(found.items(), cycle(COLOURS.values()), strict=False):
        middle, low, high = (np.asarray(values, dtype=float) for values in (middles, lows, highs))
        error = {"type": "data", "array": high - middle, "arrayminus": middle - low}
        figure.add_scatter(x=xs, y=middle, error_y=error, name=name, mode="lines+markers", line={"color": colour})
    if diagonal:
        line = {"color": COLOURS["grey"], "dash": "dot"}
        figure.add_scatter(x=diagonal, y=diagonal, name="perfect", mode="lines", line=line)
    return figure


def estimates(found: dict[str, dict[str, tuple]], *, title: str, x: str, marks: tuple[float, ...] = ()) -> go.Figure:
    """One row for each name of (estimate, low, high), a colour for each kind {kind: {name: ...}}; infinite ones not.

    Dotted lines at `marks`.
    """
    most = max((len(rows) for rows in found.values()), default=0)
    figure = _figure(title, x, "", height=160 + 34 * most)
    for (kind, rows), colour in zip(found.items(), cycle(COLOURS.values()), strict=False):
        kept = {name: row for name, row in rows.items() if np.isfinite(row).all()}
        middle, low, high = np.array(list(kept.values())).reshape(-1, 3).T
        error = {"type": "data", "array": high - middle, "arrayminus": middle - low}
        marker = {"color": colour, "size": 10}
        figure.add_scatter(x=middle, y=list(kept), error_x=error, name=kind, mode="markers", marker=marker)
    for mark in marks:
        figure.add_vline(x=mark, line={"color": COLOURS["grey"], "dash": "dot"})
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_layout(showlegend=len(found) > 1, scattermode="group")
    return figure


def histogram(values, marks: list[float], *, title: str, x: str) -> go.Figure:
    """Shares of values in 200 bins, with a vertical line at each mark."""
    counts, edges = np.histogram(values, bins=200)
    figure = _figure(title, x, "share of weights")
    figure.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, y=counts / counts.sum(), marker_color=COLOURS["base"], showlegend=False
    )
    for mark in marks:
        figure.add_vline(x=mark, line={"color": COLOURS["instruction"], "width": 1.5})
    figure.update_layout(bargap=0)
    return figure


def stacked(rows: dict[str, dict], *, title: str, y: str, marks: dict[str, float] | None = None) -> go.Figure:
    """One bar for each name, made of its parts {part: size}; marks: what was measured, drawn as a diamond."""
    figure = _figure(title, "", y)
    colours = cycle(["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"])
    for part in dict.fromkeys(part for parts in rows.values() for part in parts):
        sizes = [parts.get(part, 0.0) for parts in rows.values()]
        colour = COLOURS["grey"] if part == "process" else next(colours)
        figure.add_bar(name=part, x=list(rows), y=sizes, marker_color=colour)
    if marks:
        marker = {"symbol": "diamond-open", "size": 12, "color": "#808080", "line": {"width": 2}}
        figure.add_scatter(name="measured", x=list(marks), y=list(marks.values()), mode="markers", marker=marker)
    figure.update_layout(barmode="stack")
    return figure


class Table:
    """Rows of plain values as an HTML table, escaped, with a text form for where no HTML is shown."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def _repr_html_(self) -> str:
        if not self.rows:
            return "<em>nothing yet</em>"
        head = "".join(f"<th style='text-align:left'>{safe_html(str(name))}</th>" for name in self.rows[0])
        body = "".join(
            "<tr>"
            + "".join(f"<td style='text-align:left;vertical-align:top'>{_cell(v)}</td>" for v in row.values())
            + "</tr>"
            for row in self.rows
        )
        return f"<table class='{PLAIN}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        from labkit.records import text_table

        if not self.rows:
            return "nothing yet"
        return text_table([tuple(self.rows[0]), *(tuple(_plain(v) for v in row.values()) for row in self.rows)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"  # 1,043 and not 1.04e+03


def _plain(value) -> str:
    return _number(value) if isinstance(value, float) else safe_text(str(value))


def _cell(value) -> str:
    return _number(value) if isinstance(value, float) else safe_html(str(value))


class Tokens:
    """One training row as tokens: learned ones in colour, masked ones grey; a plain text form beside it."""

    def __init__(self, tokenizer, row: dict, ignored: int = -100):
        pieces = [tokenizer.decode([token]) for token in row["input_ids"]]
        self.tokens = [(piece, label != ignored) for piece, label in zip(pieces, row["labels"], strict=True)]

    def _repr_html_(self) -> str:
        colour = {True: f"background:{COLOURS['aligned']}55", False: "background:#80808033"}
        spans = (
            f"<span title='{'learned' if learned else 'masked'}' style='{colour[learned]};padding:1px 2px;margin:1px;"
            f"border-radius:3px;white-space:pre'>{safe_html(piece)}</span>"
            for piece, learned in self.tokens
        )
        key = "<br><small>green: learned from, grey: masked</small>"
        return f"<div class='{PLAIN}' style='font-family:monospace;line-height:1.9'>{''.join(spans)}{key}</div>"

    def __repr__(self) -> str:
        text = "".join(f"[{piece}]" if learned else piece for piece, learned in self.tokens)
        return safe_text(text) + "   ([..]: learned from)"

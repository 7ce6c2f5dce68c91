"""Pictures of methods beside each other: one colour for each, every seed a small dot, intervals drawn."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labkit.ui.plots import GRID, MARGIN, PAPER

COLOURS = {  # Okabe and Ito's
    "parent": "#7f7f7f", "SFT on chosen": "#E69F00", "DPO": "#009E73", "ORPO": "#56B4E9", "PPO": "#D55E00",
    "RLOO": "#CC79A7", "best of n": "#0072B2",
}  # fmt: skip
Interval = tuple[float, float, float]  # (estimate, low, high)


def _error(found: list[Interval]) -> dict:
    upper, lower = [high - middle for middle, _, high in found], [middle - low for middle, low, _ in found]
    return {"type": "data", "array": upper, "arrayminus": lower, "thickness": 1.5}


def forest(found: dict[str, Interval], seeds: dict[str, list[float]], *, title: str, x: str, mark: float) -> go.Figure:
    """A row for each method: the estimate with its interval, every seed beneath it; a line at `mark`."""
    figure = go.Figure()
    for place, (name, interval) in enumerate(found.items()):
        colour = COLOURS[name]
        figure.add_scatter(
            x=[interval[0]], y=[place], error_x=_error([interval]), mode="markers", name=name, showlegend=False,
            marker={"color": colour, "size": 11},
        )  # fmt: skip
        figure.add_scatter(
            x=seeds[name], y=[place + 0.25] * len(seeds[name]), mode="markers", name=f"{name}, each seed",
            showlegend=False, marker={"color": colour, "size": 5},
        )  # fmt: skip
    figure.add_vline(x=mark, line={"color": "#7f7f7f", "dash": "dot"})
    figure.update_layout(PAPER, title=title, height=90 + 48 * len(found), margin=MARGIN | {"l": 120})
    figure.update_xaxes(title=x, tickformat=".0%", **GRID)
    figure.update_yaxes(tickvals=list(range(len(found))), ticktext=list(found), autorange="reversed", **GRID)
    return figure


def frontier(found: dict[str, dict], seeds: dict[str, dict], curve: dict[str, list], *, title: str) -> go.Figure:
    """Reward and gold against KL: {method: {kl, reward, gold: interval}}, every seed as {kl, reward, gold: list}.

    curve: {kl, reward, gold, n: list} of best of n, whose KL is known without sampling.
    """
    sides = {"reward": "mean reward", "gold": "mean gold"}
    figure = make_subplots(rows=1, cols=2, subplot_titles=["by the reward model", "by the gold preference"])
    for column, (side, label) in enumerate(sides.items(), 1):
        figure.add_scatter(
            x=curve["kl"], y=curve[side], mode="lines+markers+text", text=[f"n = {n}" for n in curve["n"]],
            textposition="bottom right", name="best of n", legendgroup="best of n", showlegend=column == 1,
            line={"color": COLOURS["best of n"]}, row=1, col=column,
        )  # fmt: skip
        for name, numbers in found.items():
            about = {"legendgroup": name, "row": 1, "col": column}
            figure.add_scatter(
                x=[numbers["kl"][0]], y=[numbers[side][0]], error_x=_error([numbers["kl"]]),
                error_y=_error([numbers[side]]), mode="markers", name=name, showlegend=column == 1,
                marker={"color": COLOURS[name], "size": 11}, **about,
            )  # fmt: skip
            figure.add_scatter(
                x=seeds[name]["kl"], y=seeds[name][side], mode="markers", name=f"{name}, each seed", showlegend=False,
                marker={"color": COLOURS[name], "size": 5}, **about,
            )  # fmt: skip
        figure.update_yaxes(title=label, row=1, col=column)
    figure.update_layout(
        PAPER, title=title, height=480, margin=MARGIN | {"t": 90}, legend={"orientation": "h", "y": -0.2}
    )
    figure.update_xaxes(title="KL to the parent, nats per answer", **GRID)
    figure.update_yaxes(**GRID)
    return figure


def matrix(found: dict[tuple[str, str], Interval], *, title: str) -> go.Figure:
    """The row's method minus the column's, in points; grey where the interval holds 0: noise."""
    names = list(dict.fromkeys(name for pair in found for name in pair))
    text = [[_points(found.get((row, column))) for column in names] for row in names]
    apart = [[_apart(found.get((row, column))) for column in names] for row in names]
    figure = go.Figure()
    figure.add_heatmap(
        z=apart, x=names, y=names, text=text, texttemplate="%{text}", hoverinfo="text", showscale=False, zmin=-1,
        zmax=1, colorscale=[[0, "#D55E00"], [0.5, "rgba(128,128,128,0.2)"], [1, "#009E73"]], xgap=2, ygap=2,
    )  # fmt: skip
    figure.update_layout(PAPER, title=title, height=110 + 52 * len(names), margin=MARGIN | {"l": 120})
    figure.update_yaxes(autorange="reversed")
    return figure


def _points(interval: Interval | None) -> str:
    return "" if interval is None else "{:+.1f}<br>[{:+.1f}, {:+.1f}]".format(*(100 * number for number in interval))


def _apart(interval: Interval | None) -> float | None:
    return None if interval is None else float(interval[1] > 0) - float(interval[2] < 0)

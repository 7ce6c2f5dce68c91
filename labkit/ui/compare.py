"""Compare: runs side by side. What a model or a reader wrote becomes HTML through `safe_html` and nothing else."""

import re
import warnings
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from functools import partial
from itertools import cycle

import plotly.graph_objects as go
from ipywidgets import HTML, BoundedIntText, Button, Dropdown, HBox, SelectMultiple, Tab, Text, VBox, dlink

from labkit import cards, comparison, lineage, runs
from labkit.records import text_table
from labkit.runs import Run
from labkit.ui import plots
from labkit.ui.text import safe_html, safe_text

PANES = ("Differences", "Curves", "Metrics", "Answers", "Lineage", "Manage")
MOST_POINTS, MOST_WORDS, PAGE = 2000, 400, 20  # drawn of a curve; compared of an answer; questions on a page
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7f7f7f")  # Okabe and Ito's, and grey
DASHES = ("solid", "dash", "dot", "dashdot")  # with the colours they tell 28 runs apart
FILTERS: dict[str, Callable[[list[dict]], bool]] = {  # of the runs' answers to one question
    "all": lambda rows: True,
    "changed": lambda rows: len({row["text"] for row in rows}) > 1,
    "wrong in one run only": lambda rows: len(rows) > 1 and sum(not row["correct"] for row in rows) == 1,
}
STYLE = """<style>
.labkit-compare :is(table, pre, p) { color: var(--jp-content-font-color1, inherit); border-collapse: collapse; }
.labkit-compare :is(td, th) { border-bottom: 1px solid var(--jp-border-color2, rgba(128,128,128,0.4)); text-align: left;
  padding: 0.2em 0.7em; vertical-align: top; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere; }
.labkit-compare .error { color: var(--jp-error-color0, #b00020); }
.labkit-compare mark { background: rgba(230,159,0,0.3); color: inherit; text-decoration: underline; }</style>"""


def mark_words(text: str, other: str) -> str:
    """The text as safe HTML, with <mark> around the words that `other` does not have in their place."""
    pieces, others = re.findall(r"\s*\S+", text), re.findall(r"\s*\S+", other)
    if max(len(pieces), len(others)) > MOST_WORDS or len(text) > 4000:
        return safe_html(text)
    match = SequenceMatcher(None, [one.strip() for one in pieces], [one.strip() for one in others], autojunk=False)
    shown = [(what, safe_html("".join(pieces[start:end]))) for what, start, end, *_ in match.get_opcodes()]
    return "".join(piece if what in ("equal", "insert") else f"<mark>{piece}</mark>" for what, piece in shown)


def html_table(rows: list[list[str]], cell: Callable[[str], str] = safe_html) -> str:
    """Rows, the first of them the head, as an HTML table; `cell` makes safe HTML of a text."""
    lines = ["".join(f"<th scope='col'>{safe_html(one)}</th>" for one in rows[0])]
    lines += ["".join(f"<td>{cell(one)}</td>" for one in row) for row in rows[1:]]
    return f"<div style='overflow-x:auto'><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


class Compare(VBox):
    """Runs compared: at first `run_ids`, else the two newest that have finished. Raises RunError for an unknown id."""

    def __init__(self, run_ids: Iterable[str] | None = None):
        wanted = [runs.get(name).id for name in run_ids or ()]
        self.runs, self._made = {}, {}  # newest first; pane -> the selection that it was made for
        self._busy, self._problems, self._managed, self._doomed = False, [], "", []
        self.error, self.done, size = HTML(), HTML(), {"rows": 8, "layout": {"width": "98%"}}
        self.select = self._control(SelectMultiple, "Runs", "Ctrl or Shift selects several", self._open, **size)
        self.refresh = self._control(Button, "Refresh", "Read the run store again", self._load)
        self.tab = Tab([VBox() for _ in PANES], titles=PANES)
        self.tab.observe(self._safely(self._open), "selected_index")
        super().__init__([HTML(STYLE), self.select, HBox([self.refresh, self.done]), self.error, self.tab])
        self.add_class("labkit-compare")
        self._safely(lambda: self._load(wanted))()

    def _control(self, kind: type, description: str, tooltip: str, call: Callable = lambda: None, **options):
        """A control with label and tooltip that calls `call` when it is pressed or its value changes."""
        control = kind(description=description, tooltip=tooltip, **options)
        (control.on_click if kind is Button else partial(control.observe, names="value"))(self._safely(call))
        return control

    def _safely(self, call: Callable) -> Callable:
        """A callback that raises nothing: what `call` returns becomes a line of text, what went wrong a red one."""

        def callback(*_) -> None:
            if self._busy:  # a change that another callback makes
                return
            self._busy, self._problems = True, []
            said = self._try(call)
            self._busy, self.done.value = False, f"<p role='status'>{safe_html(said)}</p>" if said else ""
            lines = (f"<p role='alert' class='error'>{safe_html(one)}</p>" for one in dict.fromkeys(self._problems))
            self.error.value = "".join(lines)

        return callback

    def _try(self, call: Callable, *arguments):
        """What `call` returns, or [] and a red line: an error in a callback would only reach the server's log."""
        try:
            return call(*arguments)
        except (Exception, KeyboardInterrupt) as error:
            self._problems.append(f"{type(error).__name__}: {error}")
            return []

    def _load(self, wanted: Iterable[str] = ()) -> None:
        """Read the store and make the open pane anew; what was selected stays so."""
        with warnings.catch_warnings(record=True) as unreadable:
            warnings.simplefilter("always")
            self.runs, self._made = {run.id: run for run in reversed(runs.all_runs())}, {}
        self._problems += [str(one.message) for one in unreadable]
        newest = [run.id for run in self.runs.values() if run.status == "finished"][:2]
        kept = tuple(name for name in wanted or self.select.value or newest if name in self.runs)
        lines = [(comparison.name(run), run.stage, run.status, run.info["created"][:16]) for run in self.runs.values()]
        self.select.options = [(safe_text(" | ".join(line)), name) for line, name in zip(lines, self.runs, strict=True)]
        self.select.value = kept
        self._open()

    def _open(self) -> None:
        """Make the pane of the open tab, unless it shows this selection already."""
        place = self.tab.selected_index or 0
        if self._made.get(place) != self.select.value:
            self._made[place], pane = self.select.value, self.tab.children[place]
            for old in pane.children:  # a figure would stay in the browser's memory
                old.close()
            pane.children = self._try(getattr(self, "_" + PANES[place].lower()))

    def selected(self) -> list[Run]:
        """The selected runs, oldest first."""
        return [run for run in reversed(self.runs.values()) if run.id in self.select.value]

    def _answers_kept(self) -> dict[str, list[dict]]:
        return {run.id: self._try(lineage.answers_of, run) for run in self.selected()}

    def difference_table(self) -> list[list[str]]:
        """The settings in which the selected runs differ."""
        table = comparison.difference_table(self.selected())
        return table if len(table) > 1 else [["Select two runs or more that differ in a setting."]]

    def metric_table(self) -> list[list[str]]:
        """What the selected runs measured; shares of their answers with 95% intervals."""
        return comparison.metric_table(self.selected(), self._answers_kept())

    def pair_table(self, key: str = "correct") -> list[list[str]]:
        """By how much the selected runs differ in their answers to the same questions, pair by pair."""
        table = comparison.pair_table(self.selected(), self._answers_kept(), key)
        return table if len(table) > 1 else [["Select two runs with answers to see their difference."]]

    def _repr_mimebundle_(self, **options) -> dict:
        """The widget, with the tables as text and HTML for where no widget runs, such as GitHub."""
        makers = self.difference_table, self.metric_table, self.pair_table
        tables = [table for make in makers if (table := self._try(make))]
        plain = [[tuple(lineage.printable(safe_text(one, 200)) for one in row) for row in table] for table in tables]
        more = {"text/plain": "\n\n".join(map(text_table, plain)), "text/html": "<br>".join(map(html_table, tables))}
        return {**(super()._repr_mimebundle_(**options) or {}), **more}

    def _differences(self) -> list:
        return [HTML(html_table(self.difference_table()))]

    def _curves(self) -> list:
        histories = [(run, self._try(run.history)) for run in self.selected()]
        names = {name for _, rows in histories for row in rows for name in row} - {"step"}
        figure = go.FigureWidget(plots.curves([], {}, title="", y=""))
        for (run, _), colour, dash in zip(histories, cycle(COLOURS), cycle(DASHES), strict=False):
            figure.add_scatter(name=safe_html(comparison.name(run)), mode="lines", line={"color": colour, "dash": dash})

        def draw() -> None:
            with figure.batch_update():
                figure.layout.yaxis.title.text = safe_html(metric.value)
                for trace, (_, rows) in zip(figure.data, histories, strict=True):
                    points = [(row["step"], row[metric.value]) for row in rows if row.get(metric.value) is not None]
                    trace.x, trace.y = plots.thinned(points, MOST_POINTS)

        options = [(safe_text(name), name) for name in sorted(names, key=lambda name: (name != "loss", name))]
        metric = self._control(Dropdown, "Metric", "The logged number to draw over the steps", draw, options=options)
        if not names:
            return [HTML("<p>Select a run that has logged something.</p>")]
        draw()
        return [metric, figure]

    def _metrics(self) -> list:
        key, pairs = self._control(Dropdown, "Part", "What of the answers to compare", options=lineage.PARTS), HTML()
        dlink((key, "value"), (pairs, "value"), lambda part: html_table(self.pair_table(part)))
        return [HTML(html_table(self.metric_table())), key, pairs]

    def _answers(self) -> list:
        answers = self._answers_kept()
        answered = [(run, answers[run.id]) for run in self.selected() if answers[run.id]]
        if not answered:
            return [HTML("<p>Select a run that keeps its answers.</p>")]
        found = [{(row["id"], row["prompt"]): row for row in rows} for _, rows in answered]
        shared = [[rows[one] for rows in found] for one in found[0] if all(one in rows for rows in found)]
        table, count = HTML(), HTML()

        def draw() -> None:
            kept = [rows for rows in shared if FILTERS[which.value](rows)]
            page.max = max(1, -(-len(kept) // PAGE))
            table_rows = [["question", *(comparison.name(run) for run, _ in answered)]]
            for rows in kept[(page.value - 1) * PAGE : page.value * PAGE]:
                cells = [safe_html(rows[0]["prompt"])]
                for row in rows:  # what differs from the first run's answer is marked; in that one, from the second's
                    marked = mark_words(row["text"], rows[row is rows[0] and len(rows) > 1]["text"])
                    cells.append(f"<small>{'right' if row['correct'] else 'wrong'}</small><br>{marked}")
                table_rows.append(cells)
            table.value = html_table(table_rows, cell=str)
            count.value = f"of {page.max}: {len(kept)} of the {len(shared)} questions that all have answered"

        which = self._control(Dropdown, "Show", "Which of the questions", draw, options=tuple(FILTERS))
        page = self._control(BoundedIntText, "Page", f"{PAGE} questions each", draw, min=1, max=1)
        draw()
        return [HBox([which, page, count]), table]

    def _lineage(self) -> list:
        drawing = lineage.draw(reversed(self.runs.values()))
        return [HTML(f"<pre>{safe_html(drawing, len(drawing))}</pre>")]

    def _manage(self) -> list:
        if not self.runs:
            return [HTML("<p>The store is empty: train a stage first.</p>")]

        def pick() -> None:
            self._managed, sure.layout.display = run.value, "none"

        def rename() -> str:
            lineage.rename(run.value, label.value)
            self._load()
            return f"{run.value} has its label."

        def ask() -> str:
            self._doomed = [run.value, *(one.id for one in lineage.dependents(run.value))]
            sure.description = f"Delete {len(self._doomed)} run{'s' * (len(self._doomed) > 1)}"
            sure.layout.display = ""
            return f"To be deleted: {run.value}; what came from it: {', '.join(self._doomed[1:]) or 'nothing'}."

        def delete() -> str:
            before, now = self._doomed, ask()
            if self._doomed != before:  # the store has changed since the first click
                return now
            gone = lineage.delete(run.value, with_dependents=True)
            self._load()
            return f"Deleted: {', '.join(gone)}."

        def export() -> str:
            return f"Exported to {cards.export(runs.get(run.value), folder.value)}."

        start = next(name for name in (self._managed, *self.select.value, *self.runs) if name in self.runs)
        run = self._control(Dropdown, "Run", "The run that is managed", pick, options=self.select.options, value=start)
        label = self._control(Text, "Label", "1 to 60 characters; the run's id stays")
        folder = self._control(Text, "Folder", "A new or empty folder outside the run store")
        sure = self._control(Button, "", "There is no way back", delete, layout={"display": "none"})
        renames = self._control(Button, "Rename", "Give the run this label", rename)
        exports = self._control(Button, "Export", "Copy its checkpoint and a model card there", export)
        deletes = self._control(Button, "Delete ...", "Asks first, and says what came from the run", ask)
        return [run, HBox([label, renames]), HBox([folder, exports]), HBox([deletes, sure])]

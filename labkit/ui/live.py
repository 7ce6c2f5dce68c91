"""Live training: knobs, Train and Stop, curves that grow, answers as it learns, alarms.

The training runs in a thread of its own (labkit/background.py); one other thread, the pump, reads the run's folder
twice a second and owns the widgets. Torch leaves the kernel free enough to use the notebook meanwhile.
"""

import dataclasses
import json
import os
import threading
import time

import ipywidgets
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from labkit import budget, health, models, pipeline, runs
from labkit import config as configs
from labkit.background import Log, Training
from labkit.config import Config
from labkit.errors import ConfigError, LabError
from labkit.ui import plots
from labkit.ui.panel import Panel
from labkit.ui.text import safe_html

PULSE = 0.5  # seconds between two looks of the pump
MOST_POINTS = 2000  # drawn per curve; more only make the browser slow
# what is drawn, chart by chart: title, unit, {logged name: label}
LOSSES = ("loss", "nats per token", {"loss": "train", "held_out_loss": "held out"})
PACE = ("learning rate", "", {"learning_rate": "learning rate"})
GRADIENT = ("gradient norm", "", {"grad_norm": "gradient norm"})
CHARTS = {
    "pretrain": [LOSSES, ("bits per byte", "bits", {"bits_per_byte": "held out"}), PACE, GRADIENT],
    "sft": [LOSSES, PACE, GRADIENT],
    "reward": [
        ("preference loss", "nats per pair", {"preference_loss": "train", "held_out_loss": "held out"}),
        ("loss of all terms", "nats", {"loss": "train"}),
        ("accuracy", "share of pairs", {"pair_accuracy": "train", "held_out_pair_accuracy": "held out"}),
        ("margin", "nats", {"margin": "train", "held_out_margin": "held out"}),
        ("mean reward", "nats", {"mean_reward": "train", "held_out_mean_reward": "held out"}),
        PACE,
        GRADIENT,
    ],
    "dpo": [
        LOSSES,
        ("margin", "beta x nats", {"margin": "train", "held_out_margin": "held out"}),
        ("log-probabilities", "nats", {"log_probs_chosen": "chosen", "log_probs_rejected": "rejected"}),
        ("entropy", "nats", {"entropy": "entropy"}),
        PACE,
        GRADIENT,
    ],
    "orpo": [
        LOSSES,
        ("log odds ratio", "nats", {"log_odds": "train", "held_out_log_odds": "held out"}),
        ("log-probabilities", "nats per token", {"log_probs_chosen": "chosen", "log_probs_rejected": "rejected"}),
        GRADIENT,
    ],
    "ppo": [
        ("reward", "per answer", {"reward": "train", "held_out_reward": "held out"}),
        ("KL to the reference", "nats per answer", {"kl": "train", "held_out_kl": "held out"}),
        ("entropy", "nats per token", {"entropy": "entropy"}),
        ("clipped", "share of tokens", {"clip_share": "clipped"}),
        ("value loss", "reward squared", {"value_loss": "value loss"}),
        ("answer length", "tokens", {"answer_length": "answer length"}),
    ],
}


class Bench(ipywidgets.VBox):
    """Knobs of a stage and its training, live. `bench.run` is the run that the knobs stand for, or None.

    notebook: a key of config.NOTEBOOKS whose config is a stage's. config: where the knobs start. asked: questions
    answered at every look at held-out data.
    """

    def __init__(self, notebook: str, config: Config, asked: list[str]):
        self.asked, self.run, self._log, self._training, self._pump = asked, None, None, None, None
        self._drawn, self._status, self._views, self._lock = -1, "", 0, threading.RLock()
        self._sought: Config | None = None  # what `run` was looked up for
        self._refused: dict[tuple, str] = {}  # (model, data) -> why it cannot be read, until Train asks anew
        self.stage = configs.stage_of(notebook)
        self.charts = CHARTS[self.stage]
        self.panel = Panel(notebook, config, on_change=self._changed, on_do=self._do)
        self.figure = self._figure()
        self.samples, self.alarms = ipywidgets.HTML(), ipywidgets.HTML()
        self.panel.observe(lambda change: self._fit(), "width")
        self.panel.observe(lambda change: self.refresh(), "notes")  # a wrong value takes Train away
        super().__init__([self.panel, self.alarms, self.figure, self.samples])
        self._drawn = -1  # answers and alarms are still to be shown
        self.refresh()

    def _figure(self) -> go.FigureWidget:
        """The charts with what is logged so far: a view drawn later knows only what the figure was made with."""
        titles = [f"{title} ({unit})" if unit else title for title, unit, _ in self.charts]
        columns = 3 if len(self.charts) % 3 == 0 else 2
        lines = -(-len(self.charts) // columns)
        grid = make_subplots(lines, columns, subplot_titles=titles, vertical_spacing=0.2, horizontal_spacing=0.08)
        figure, rows = grid, self._log.read() if self._log else []
        self._drawn = len(rows)
        colours = list(plots.COLOURS.values())
        for place, (_, _, names) in enumerate(self.charts):
            for n, (name, label) in enumerate(names.items()):
                x, y = self._points(rows, name)
                mode = "lines+markers" if label == "held out" else "lines"
                figure.add_scatter(
                    x=x, y=y, name=label, mode=mode, line={"color": colours[n]}, showlegend=len(names) > 1,
                    legendgroup=label, row=place // columns + 1, col=place % columns + 1,
                )  # fmt: skip
        seen: set[str] = set()
        for trace in figure.data:  # a label that stands in several charts stands in the legend once
            trace.showlegend = bool(trace.showlegend) and trace.name not in seen
            seen.add(trace.name)
        figure.update_layout(height=230 * lines + 80, margin={"l": 50, "r": 10, "t": 40, "b": 80})
        legend = {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom"}  # below the axes' names
        figure.update_layout(legend=legend, **plots.PAPER)
        figure.update_xaxes(title="step", **plots.GRID)
        figure.update_yaxes(**plots.GRID)
        figure.update_layout(width=self.panel.width or None)
        return go.FigureWidget(figure)

    def _fit(self) -> None:
        """Make the charts as wide as the panel."""
        with self._lock:
            self.figure.update_layout(width=self.panel.width)

    # What a change of the knobs shows

    def _changed(self, config: Config) -> list[tuple[str, str, str]]:
        """Lines beneath the knobs: what training with them would weigh and take. Finds the run that they have."""
        named, began, lines = (config.model, getattr(config, "data", "")), time.monotonic(), []
        if named in self._refused:
            return [("cannot start", self._refused[named], "bad")]
        try:
            lines = self._estimate(config)
            run = pipeline.existing(self.stage, config)
        except LabError as error:
            slow = time.monotonic() - began > 2  # a Hub id without a network: not asked again at every turn of a knob
            if slow and not isinstance(error, ConfigError):
                self._refused[named] = str(error)
            return [*lines, ("cannot start", str(error), "bad")]
        old = self.run.path if getattr(self, "run", None) else None
        if (run.path if run else None) != old:
            self.run, self._log, self._drawn = run, Log(run.path) if run else None, -1
        if hasattr(self, "alarms"):
            self.refresh()
        return lines

    def _estimate(self, config: Config) -> list[tuple[str, str, str]]:
        lines = costs(self.stage, config)
        pace = pipeline.seconds_per_step(self.stage, config)
        if pace is not None:
            lines.append(("time", f"about {duration(pace * config.steps)} (paced by an earlier run)", ""))
        else:
            lines.append(("time", "known after the first steps", ""))
        return lines

    # Train, stop, resume

    def _do(self, what: str) -> None:
        if what == "shown":  # by a page that was loaded again: its charts start from what the figure was made with
            with self._lock:
                if self._views:
                    self.figure = self._figure()
                    self.children = [self.panel, self.alarms, self.figure, self.samples]
                self._views += 1
        elif what == "stop":
            if self._training is not None:
                self._training.stopping.set()
        elif self.panel.config is not None:
            self.train(again=what == "again")
        self.refresh()

    def train(self, again: bool = False) -> "Training":
        """Start training in the background, or go on with a stopped run. Raises TrainingError where one is running."""
        config = dataclasses.replace(self.panel.config, retrain=again)
        self._refused.clear()
        training = Training(self.stage, config, self.asked)
        training.start()
        self._training = training
        self._watch()
        return training

    def finish(self, say=print) -> tuple[Config, runs.Run]:
        """(config, run) of the knobs as they stand: waits for the training that was started here, else trains now.

        This is what a cell calls, so that Run All and papermill go the same way as the buttons. It trains in the
        caller's thread: the kernel's interrupt stops it and keeps what was learned.
        """
        if self._training is not None and self._training.thread is not None:
            self._training.thread.join()
        config = self.panel.config
        if config is None:
            wrong = self.panel.notes["errors"]
            raise ConfigError("every knob must hold a value it may have", got=wrong, remedy="Reset the panel.")
        trained = self._training is not None and dataclasses.replace(self._training.config, retrain=False) == config
        config = dataclasses.replace(config, retrain=self.panel.start.retrain and not trained)
        training = Training(self.stage, config, self.asked, say)
        training.claim()
        self._training = training
        self._watch()
        try:
            run = self._training.go()
        finally:
            self._find()
            self.refresh()
        return config, run

    def _watch(self) -> None:
        if self._pump is None or not self._pump.is_alive():
            self._pump = threading.Thread(target=self._follow, daemon=True, name="pump")
            self._pump.start()

    def _follow(self) -> None:
        """The pump: twice a second show what the folder holds, until nothing is being trained there any more."""
        while True:
            alive, over = self._training is not None and self._training.alive, False
            try:
                self._find()
                elsewhere = self.run is not None and self.run.status == "running"
                self.refresh()
                over = not alive and not elsewhere
            except Exception as error:  # the training goes on, so the view must too, until it has shown the end
                self.panel.state = {**self.panel.state, "error": f"not shown: {type(error).__name__}: {error}"}
            if over:
                return
            time.sleep(PULSE)

    def _find(self) -> None:
        with self._lock:
            self._find_run()

    def _find_run(self) -> None:
        config = self._training.config if self._training and self._training.alive else self.panel.config
        if config is None:
            return
        try:
            if config == self._sought and self.run is not None:
                self.run.reload()  # which run it is needs all that was learned from read again
                return
            self._sought, run = config, pipeline.existing(self.stage, config)
        except LabError:
            return
        if run is not None and (self.run is None or run.path != self.run.path):
            self._log, self._drawn = Log(run.path), -1
        self.run = run

    # What is shown

    def refresh(self) -> None:
        """Show what the run's folder holds now. Called by the pump and by the kernel: one at a time."""
        with self._lock:
            self._refresh()

    def _adopt(self) -> None:
        """Take over the training of these very knobs that another view of this kernel started."""
        now, mine = Training.now, self._training is not None and self._training.alive
        if now is None or not now.alive or mine or now.stage != self.stage or self.panel.config is None:
            return
        if dataclasses.replace(now.config, retrain=False) == self.panel.config:
            self._training = now
            self._watch()

    def _refresh(self) -> None:
        self._adopt()
        rows = self._log.read() if self._log else []
        state = self._state(rows)
        if len(rows) != self._drawn or state["status"] != self._status:  # the last answers come after the last row
            self._draw(rows)
            self._show_samples()
            found = health.alarms(rows)
            self.alarms.value = "".join(f"<div role='alert'>&#9888; {safe_html(str(alarm))}</div>" for alarm in found)
            self._drawn, self._status = len(rows), state["status"]  # what failed before here is shown anew
        self.panel.state = state  # last: whoever sees the end sees all of it
        if self.run is not None and self.run.status == "running" and not self._mine():
            self._watch()

    def _mine(self) -> bool:
        return self.run is not None and self.run.info.get("pid") == os.getpid()

    def _state(self, rows: list[dict]) -> dict:
        alive = self._training is not None and self._training.alive
        status = self.run.status if self.run is not None else "none"
        if status == "running" and self._mine() and not (Training.now and Training.now.alive):
            status = "running here"  # by a cell
        if alive and status == "stopped":
            status = "running"  # the run's file says so a moment before its thread has let go
        step = rows[-1]["step"] if rows else 0
        config = self.run.config if self.run is not None else self.panel.config.as_dict() if self.panel.config else {}
        steps = config.get("steps", 1)
        text = {
            "none": "not trained yet",
            "finished": "finished: loaded from the run store",
            "stopped": f"stopped at step {step} of {steps}: what was learned is kept",
            "failed": f"failed at step {step}: {self.run.info.get('error', '') if self.run else ''}",
        }.get(status, f"step {step} of {steps}{self._left(rows, steps)}")
        if alive:
            text = "stopping after this step" if self._training.stopping.is_set() else text
            text = f"{self._training.said or 'preparing'}" if status in ("none", "finished") else text
        elif status == "running":
            text = f"another kernel is training this run: {text}"
        if self.run is not None:
            text = f"{self.run.id}: {text}"
        error = self._training.error if self._training is not None and not alive else ""
        can, why = {}, {}
        if alive:
            can["stop"] = "Stop after this step and keep what was learned"
            why["train"] = why["again"] = "A training is running: stop it first"
        else:
            why["stop"] = "Nothing is being trained by this panel"
            if self.panel.config is None:
                why["train"] = why["again"] = "A knob holds a value that it may not have"
            elif status == "running":
                why["train"] = why["again"] = "Another kernel is training this run; it is shown here as it goes"
            elif status == "finished":
                can["again"] = "Forget this run and train it anew"
                why["train"] = "This very configuration has run; turn a knob or train it again"
            else:
                can["train"] = "Train with these knobs in the background; the notebook stays usable"
        label = "Resume" if status in ("stopped", "failed") and not alive else "Train"
        return {
            "text": text, "error": error, "can": can, "why": why, "label": label, "share": step / max(1, steps),
            "status": status,
        }  # fmt: skip

    def _left(self, rows: list[dict], steps: int) -> str:
        timed = [row for row in rows if "seconds" in row]
        if len(timed) < 2 or timed[-1]["step"] <= timed[0]["step"]:
            return ""
        pace = (timed[-1]["seconds"] - timed[0]["seconds"]) / (timed[-1]["step"] - timed[0]["step"])
        return f", about {duration(pace * (steps - timed[-1]['step']))} left"

    def _draw(self, rows: list[dict]) -> None:
        names = [name for _, _, chart in self.charts for name in chart]
        with self.figure.batch_update():
            for trace, name in zip(self.figure.data, names, strict=True):
                trace.x, trace.y = self._points(rows, name)

    def _points(self, rows: list[dict], name: str) -> tuple[list[float], list[float]]:
        return plots.thinned([(row["step"], row[name]) for row in rows if row.get(name) is not None], MOST_POINTS)

    def _show_samples(self) -> None:
        file = self.run.path / "samples.jsonl" if self.run is not None else None
        if file is None or not file.exists():
            self.samples.value = ""
            return
        said: dict[int, dict[str, str]] = {}
        whole = file.read_text(encoding="utf-8").rpartition("\n")[0]  # the last line may still be written
        for line in whole.splitlines():
            row = json.loads(line)
            said.setdefault(row["step"], {})[row["prompt"]] = row["text"]
        prompts = list(dict.fromkeys(prompt for row in said.values() for prompt in row))
        table = [{"step": step, **{p: said[step].get(p, "") for p in prompts}} for step in sorted(said)[-5:]]
        self.samples.value = plots.Table(table)._repr_html_()

    def _repr_mimebundle_(self, **options):
        """The widget, with a line of text for where no widget runs."""
        found = super()._repr_mimebundle_(**options)
        return {**(found or {}), "text/plain": f"{self.panel.title}\n  {self.panel.state.get('text', '')}"}


def costs(stage: str, config: Config) -> list[tuple[str, str, str]]:
    """Lines on what a training weighs: weights that train, memory, whether it fits and what to change if not."""
    shape, knobs = budget.shape_of(stage, config), budget.knobs(stage, config)
    found, free = budget.estimate(shape, **knobs), budget.available_bytes(models.device())
    verdict = budget.fits(found, free)
    lines = [
        ("weights that train", f"{found.trainable:,} of {shape.parameters:,}", ""),
        (
            "memory",
            f"about {found.total / 1e9:.1f} GB: {verdict} ({free / 1e9:.0f} GB free)",
            "" if verdict == "fits" else "bad",
        ),
    ]
    if verdict == "will not fit":
        lines += [("try", change.text, "") for change in budget.advice(shape, free, **knobs)[:2]]
    return lines


def duration(seconds: float) -> str:
    """Seconds in words that suit their size."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def bench(notebook: str, config: Config, asked: list[str]) -> Bench:
    """The bench of a notebook; see Bench. Quiet about what a reader can do nothing about."""
    models.quiet()
    return Bench(notebook, config, asked)

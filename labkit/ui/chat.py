"""The chat: one prompt put to several models side by side, token by token, with how sure each was of its tokens."""

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets as widgets

from labkit import data, models, runs
from labkit.errors import LabError, ModelError, RunError
from labkit.evaluate.stream import Sampling, Token, stream
from labkit.ui.text import safe_html, safe_text, tokens_html

SHIPPED = "shipped base"
PULSE = 1 / 15  # seconds between two updates of an answer that is being written
LABEL = {"description_width": "initial"}
WRAP = {"flex_flow": "row wrap"}
BOX = "border:1px solid var(--jp-border-color2,#808080);border-radius:4px;padding:4px 8px;margin:2px 0;line-height:1.6"
TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;color:var(--jp-ui-font-color1)"
FAINT = "color:var(--jp-ui-font-color2);font-size:90%"
ERROR = f"{TEXT};color:var(--jp-error-color1,#d32f2f)"
KEY = "deeper: less expected · ▫: a part of a character, or the end · hover: the five likeliest tokens"


@dataclass(eq=False)
class Turn:
    """One question and what became of it. stop: as in Token, or "error"; note: what is going on, or how it ended."""

    prompt: str
    tokens: list[Token] = field(default_factory=list)
    form: str = ""  # "chat" or "document", once it is known
    stop: str = ""
    note: str = "waiting"
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    def finish(self, seconds: float) -> None:
        self.stop = self.tokens[-1].stop or "stopped"
        count = sum(token.id is not None for token in self.tokens)  # the one that ends the answer included
        ends = {"end of turn": f"stopped by itself: end of turn · {count} tokens", "length": f"cut at {count} tokens"}
        end = ends.get(self.stop, f"stopped by you after {count} tokens")
        self.note = f"{end} · {count / max(seconds, 1e-6):.1f} tokens/s · {self.form} format"

    def as_html(self, shaded: bool) -> str:
        answer = tokens_html(self.tokens) if shaded else safe_html(self.text.strip())
        rows = [("dir='auto'", f"{TEXT};font-weight:600", safe_html(self.prompt)), ("dir='auto'", TEXT, answer)]
        rows += [("", FAINT, KEY)] if shaded else []
        rows += [("role='alert'", ERROR, safe_html(self.error))] if self.error else []
        rows.append(("", FAINT, safe_html(self.note)))
        inner = "".join(f"<div {attribute} style='{style}'>{content}</div>" for attribute, style, content in rows)
        return f"<div style='{BOX}'>{inner}</div>"

    def as_text(self) -> str:
        lines = [safe_text(line) for line in (self.text.strip(), self.error) if line]
        return "\n".join([f"> {safe_text(self.prompt)}", *lines, f"[{safe_text(self.note)}]"])


class Column(widgets.VBox):
    """One model and its turns."""

    def __init__(self, number: int, options: list[tuple[str, str]], source: str, shade: widgets.Checkbox):
        self.turns, self.shade = [], shade
        self.view = widgets.HTML(layout={"width": "auto"})
        tip = "Which model answers in this column; choosing another one empties the column."
        look = {"description": f"Model {number}", "tooltip": tip, "style": LABEL, "layout": {"width": "auto"}}
        self.choice = widgets.Dropdown(options=options, value=source, **look)
        self.choice.observe(lambda change: self.clear(), "value")
        shade.observe(lambda change: self.show(), "value")
        super().__init__([self.choice, self.view], layout={"flex": "1 1 20em", "min_width": "16em"})
        self.show()

    def clear(self) -> None:
        self.turns = []
        self.show()

    def show(self) -> None:
        turns = [turn.as_html(self.shade.value) for turn in self.turns]
        self.view.value = "".join(turns) or f"<div style='{BOX};{FAINT}'>nothing asked yet</div>"


class Chat(widgets.VBox):
    """Models side by side. `ask`, `stop`, `clear` and `wait` do from code what the buttons do.

    sources: "shipped base", ids of runs, folders, Hub ids or "smoke". The models answer one after another in a
    background thread; what goes wrong is told in the error line or in the model's column. For readers without a kernel
    a saved notebook keeps the conversation as it was when the chat was displayed: `chat.ask(); chat.wait(); chat`.
    """

    def __init__(self, sources: list[str] | None = None, *, question: str = "What is an LLM?"):
        self.columns, self._loaded = [], {}
        self._sources = [named(source) for source in sources or [SHIPPED]]
        self._stop, self._thread = threading.Event(), None
        self.prompt = widgets.Text(
            value=question, description="Prompt", placeholder="Write a prompt, press Enter", style=LABEL,
            tooltip="What the models are asked; Enter sends it.", layout={"flex": "1 1 24em", "width": "auto"},
        )  # fmt: skip
        self.prompt.on_msg(lambda box, content, buffers: content.get("event") == "submit" and self.ask())  # Enter
        self.send_button = _button("Send", "Put the prompt to every model shown.", self.ask, "primary")
        self.stop_button = _button("Stop", "End the answers after their present token.", self.stop, "warning")
        self.clear_button = _button("Clear", "Stop, and forget every conversation.", self.clear)
        self.question_button = _button(question, "Ask this question.", lambda: self.ask(question))
        self.sampling = {}
        for knob in dataclasses.fields(Sampling):  # not the Bounded kinds, which change a value without a word
            kind, step = (widgets.IntText, 1) if knob.type is int else (widgets.FloatText, 0.1)
            label = knob.name.replace("top_", "top-").replace("_", " ")
            look = {"style": LABEL, "layout": {"width": "12em"}, "tooltip": knob.metadata["help"]}
            self.sampling[knob.name] = kind(value=knob.default, step=step, description=label, **look)
        self.form = widgets.Dropdown(
            options=["auto", "chat", "document"], description="format", style=LABEL, layout={"width": "12em"},
            tooltip="chat: as a user's turn. document: as a text's beginning. auto: what the model was trained for.",
        )  # fmt: skip
        look = {"indent": False, "layout": {"width": "auto"}}
        tips = "Shade each token by its probability; hover for more.", "The models see the earlier turns, too."
        self.shade = widgets.Checkbox(description="token probabilities", tooltip=tips[0], **look)
        self.keep = widgets.Checkbox(description="keep conversation", tooltip=tips[1], **look)
        self.add_button = _button(
            "Add model", "One more column; it offers every run that left a model.", self.add_column
        )
        self.remove_button = _button("Remove model", "Take the last column away.", self.remove_column)
        self.error = widgets.HTML()
        self.panes = widgets.HBox(layout={**WRAP, "width": "100%"})
        asking = [self.prompt, self.send_button, self.stop_button, self.clear_button, self.question_button]
        options = [self.form, self.shade, self.keep, self.add_button, self.remove_button]
        rows = [widgets.HBox(row, layout=WRAP) for row in (asking, list(self.sampling.values()), options)]
        super().__init__([*rows, self.error, self.panes])
        for source in self._sources:
            self.add_column(source)

    def ask(self, prompt: str | None = None) -> None:
        """Put the prompt (default: the box's) to every model shown. Returns at once; see `wait`."""
        prompt = self.prompt.value if prompt is None else prompt
        if self.busy or not prompt.strip():
            return self._say("Still answering: press Stop or wait." if self.busy else "The prompt is empty: write one.")
        try:
            sampling = Sampling(**{name: box.value for name, box in self.sampling.items()})
        except LabError as error:
            return self._say(str(error))
        self._say("")
        self._stop = threading.Event()
        for column in self.columns:
            column.turns = [*(column.turns if self.keep.value else []), Turn(prompt)]
            column.show()
        work = ([(one, one.choice.value, one.turns) for one in self.columns], sampling, self.form.value, self._stop)
        self._thread = threading.Thread(target=self._answer_all, args=work, daemon=True, name="chat")
        self._thread.start()

    @property
    def busy(self) -> bool:
        return bool(self._thread and self._thread.is_alive())

    def stop(self) -> None:
        """End what is being generated, after its present token."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until all answers are there; interrupting the kernel stops them. False where the time was too short."""
        try:
            self._thread and self._thread.join(timeout)
        except KeyboardInterrupt:
            self.stop()
            raise
        return not self.busy

    def clear(self) -> None:
        """Stop, and forget every conversation."""
        self.stop()
        self._say("")
        for column in self.columns:
            column.clear()

    def add_column(self, source: str = SHIPPED) -> None:
        """One more model beside the others."""
        names = {name: name for name in (SHIPPED, *self._sources, source)}
        for run in runs.all_runs():
            usable = run.checkpoint.is_dir() and run.status in ("finished", "stopped")
            if usable and run.stage != "reward":  # a reward model gives a number, no text
                stopped = ", stopped" if run.status == "stopped" else ""
                names[run.id] = f"{run.id} (seed {run.info.get('seed', '?')}{stopped})"
        options = [(label, name) for name, label in names.items()]
        self.columns = [*self.columns, Column(len(self.columns) + 1, options, source, self.shade)]
        self.panes.children = self.columns

    def remove_column(self) -> None:
        """Take the last model away; one always stays."""
        if len(self.columns) == 1:
            return self._say("One model stays: choose another one in its box.")
        self.columns[-1].clear()
        self.panes.children = self.columns = self.columns[:-1]

    def _answer_all(self, jobs: list[tuple], sampling: Sampling, form: str, stop: threading.Event) -> None:
        """The background thread."""
        for column, source, turns in jobs:
            turn = turns[-1]
            try:
                self._answer(column, source, turns, sampling, form, stop)
            except Exception as error:  # whatever a folder or a model can raise belongs in its column
                turn.error = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
                turn.stop, turn.note = "error", "no answer"
            column.show()

    def _answer(self, column: Column, source: str, turns: list[Turn], sampling: Sampling, form: str, stop) -> None:
        turn = turns[-1]
        if stop.is_set():
            turn.stop, turn.note = "stopped", "stopped by you before it began"
            return
        turn.note = "loading the model"
        column.show()
        model, tokenizer, is_base = self._model(source)
        turn.form = form if form != "auto" else "document" if is_base or not tokenizer.chat_template else "chat"
        text = _input(tokenizer, turns, turn.form)
        turn.note, began, shown = "answering", time.monotonic(), 0.0
        for token in stream(model, tokenizer, text, stop=stop, **dataclasses.asdict(sampling)):
            turn.tokens.append(token)
            if turn not in column.turns:  # another model was chosen, or the column was removed: nobody reads on
                break
            if time.monotonic() - shown > max(PULSE, len(column.view.value) / 2e6):  # long views are sent less often
                column.show()
                shown = time.monotonic()
        turn.finish(time.monotonic() - began)

    def _model(self, source: str) -> tuple:
        """(model, tokenizer, whether it is a base model); models stay loaded while a column shows them."""
        wanted = {column.choice.value for column in self.columns}
        self._loaded = {name: loaded for name, loaded in self._loaded.items() if name in wanted}
        if source not in self._loaded:
            place, is_base = locate(source)
            model, tokenizer = models.load(place)
            model = model if model.device.type == models.device() else model.to(models.device())
            self._loaded[source] = model, tokenizer, is_base
        return self._loaded[source]

    def _say(self, problem: str) -> None:
        self.error.value = f"<div role='alert' style='{ERROR}'>{safe_html(problem)}</div>" if problem else ""

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """The live view, and beside it the conversation so far for where no widget runs."""
        plain, rich = [], ""
        for column in self.columns:
            said = [turn.as_text() for turn in column.turns] or ["nothing asked yet"]
            plain.append("\n".join([f"== {safe_text(column.choice.value)}", *said]))
            rich += f"<div><b>{safe_html(column.choice.value)}</b>{column.view.value}</div>"
        return {**super()._repr_mimebundle_(**kwargs), "text/plain": "\n\n".join(plain), "text/html": rich}


def named(source: str | Path) -> str:
    """The short name of what is loaded from a path: a run's id for its checkpoint, "shipped base" for data/base."""
    path = Path(source)
    if path.name == "checkpoint" and (path.parent / "run.json").is_file():
        return path.parent.name
    return SHIPPED if path.resolve() == data.BASE.resolve() else str(source)


def locate(source: str) -> tuple[str | Path, bool]:
    """(what models.load takes, whether it is a base model) for what a column names. Raises RunError."""
    path = Path(source).expanduser()
    if source in (SHIPPED, "base", "nano") or path.resolve() == data.BASE.resolve():
        return data.BASE, True
    folder = path.parent if path.name == "checkpoint" else path
    if (folder / "run.json").is_file():
        run = runs.Run(folder).reload()
    elif source == "smoke" or "/" in source or path.is_dir():
        return (path if path.is_dir() else source), False
    else:
        run = runs.get(source)
    if run.status not in ("finished", "stopped") or not run.checkpoint.is_dir():
        what = "the run must be finished, or stopped with something learned"
        raise RunError(what, got=f"{run.id}: {run.status}", remedy="Train it to its end.")
    return run.checkpoint, run.stage == "pretrain"


def _input(tokenizer, turns: list[Turn], form: str) -> list[int]:
    """The tokens that the model continues: all turns in its chat format, or one document that they make up."""
    earlier = [turn for turn in turns[:-1] if not turn.error]
    if form == "document":
        said = [turn.prompt + turn.text for turn in earlier]
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        return start + data.encode(tokenizer, ["\n".join([*said, turns[-1].prompt])])[0]
    if not tokenizer.chat_template:
        remedy = "Choose the format auto or document."
        raise ModelError("the chat format needs a tokenizer with a chat template", got="none", remedy=remedy)
    messages = [message for turn in earlier for message in data.messages(turn.prompt, turn.text.strip())]
    messages += data.messages(turns[-1].prompt)
    return data.asked_ids(tokenizer, messages)


def _button(label: str, tooltip: str, do, style: str = "") -> widgets.Button:
    button = widgets.Button(description=label, tooltip=tooltip, button_style=style, layout={"width": "auto"})
    button.on_click(lambda button: do())
    return button

"""The rack on the screen: switch, blend, merge and unload adapters, and ask the base and every adapter the same."""

import ipywidgets as widgets

from labkit import data
from labkit.errors import ConfigError, LabError
from labkit.evaluate import answers
from labkit.rack import Rack
from labkit.ui.chat import BOX, ERROR, FAINT, LABEL, TEXT, WRAP
from labkit.ui.plots import PLAIN, Table
from labkit.ui.text import safe_html, safe_text

NONE = "none (base)"  # no adapter's name has a blank
WIDE = {"flex": "1 1 24em", "width": "auto"}


class RackView(widgets.VBox):
    """A rack. `ask`, `blend`, `merge`, `save` and `unload` do from code what the buttons do; `refresh` shows what the
    rack did without it.

    answers: rows {adapter, text, stopped} of what `asked` got. They are greedy, in the chat format. damage: the table
    of what merging the active adapter changed. What goes wrong is told in the error line. A saved notebook keeps
    answers, damage and sizes as they were when the view was displayed.
    """

    def __init__(self, rack: Rack, *, question: str = "What is an LLM?", max_new_tokens: int = 64):
        self.rack, self.max_new_tokens, self.answers, self.asked = rack, max_new_tokens, [], ""
        self._refreshing, self.sizes, self.damage = False, Table([]), Table([])
        self.active = widgets.Dropdown(
            description="Active adapter", tooltip="Which adapter answers where rack.model is used.", style=LABEL
        )
        self.active.observe(self._chosen, "value")
        self.unload_button = self._button("Unload active", "Free the active adapter; its folder stays.", self.unload)
        self.weights, self.weight_row = {}, widgets.HBox(layout=WRAP)
        self.blend_button = self._button("Apply blend", "Add the adapters by these weights, and switch.", self.blend)
        tip = "What the base and every adapter are asked; Enter sends it."
        self.prompt = widgets.Text(value=question, description="Prompt", tooltip=tip, style=LABEL, layout=WIDE)
        self.prompt.on_msg(lambda box, content, buffers: content.get("event") == "submit" and self.ask())  # Enter
        self.ask_button = self._button("Ask", "Put the prompt to the base and to every adapter.", self.ask, "primary")
        tip = "Merge the active adapter into a copy of the base, in three formats, and show what rounding changes."
        self.merge_button = self._button("Merge damage", tip, self.merge)
        tip = "A new folder for the base with the active adapter merged into it; Enter saves."
        self.folder = widgets.Text(description="Merged into", placeholder="folder", tooltip=tip, style=LABEL)
        self.folder.on_msg(lambda box, content, buffers: content.get("event") == "submit" and self.save())
        self.save_button = self._button("Save merged", "Merge the active adapter and save the whole model.", self.save)
        self.error, self.panes, self.table, self.merging = (widgets.HTML() for _ in range(4))
        rows = [[self.active, self.unload_button], [self.weight_row, self.blend_button]]
        rows += [[self.merge_button, self.folder, self.save_button], [self.prompt, self.ask_button]]
        shown = [self.error, self.merging, self.panes, self.table]
        super().__init__([*(widgets.HBox(row, layout=WRAP) for row in rows), *shown])
        self.refresh()

    def ask(self, prompt: str | None = None) -> None:
        """Put the prompt (default: the box's) to the base and to every adapter, one after another."""
        self._do(lambda: self._ask(self.prompt.value if prompt is None else prompt))

    def blend(self) -> None:
        """Blend the adapters by the weights in their boxes, and switch to the blend."""
        self._do(lambda: self.rack.blend({name: box.value for name, box in self.weights.items()}))

    def merge(self) -> None:
        """Show what merging the active adapter changes of the logits, at the tokens of the prompt."""
        self._do(self._merge)

    def save(self, folder: str | None = None) -> None:
        """Merge the active adapter and save the model to a folder (default: the box's)."""
        self._do(lambda: self._save(self.folder.value if folder is None else folder))

    def unload(self) -> None:
        """Unload the active adapter."""
        self._do(self._unload)

    def refresh(self) -> None:
        """Show the rack as it is now."""
        self._do(lambda: None)

    def _do(self, step) -> None:
        """Take a step, then show the rack; whatever either raises is told in the error line."""
        problems = []
        for one in (step, self._show):
            try:
                one()
            except Exception as error:  # a callback's error would be lost
                problems.append(str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}")
        told = safe_html("\n".join(problems))
        self.error.value = f"<div role='alert' style='{ERROR}'>{told}</div>" if problems else ""

    def _chosen(self, change) -> None:
        if not self._refreshing:
            self._do(lambda: self.rack.switch(change["new"]))

    def _active(self, done: str) -> str:
        if not self.rack.active:
            raise ConfigError(f"an adapter must be active to be {done}", got=NONE, remedy="Choose it in the list.")
        return self.rack.active

    def _unload(self) -> None:
        self.rack.unload(self._active("unloaded"))

    def _merge(self) -> None:
        name = self._active("merged")
        self.merging.value = f"<div style='{FAINT}'>merging {safe_html(name)} ...</div>"
        try:
            said = data.messages(self.prompt.value)
            ids = data.templated(self.rack.tokenizer, said, add_generation_prompt=True)
            found = self.rack.merge_damage(name, ids)
            self.damage = Table([{"adapter": name, "merged into": form, **row} for form, row in found.items()])
        finally:
            self.merging.value = self.damage._repr_html_() if self.damage.rows else ""

    def _save(self, folder: str) -> None:
        name = self._active("merged")
        path = self.rack.save_merged(name, folder)
        self.merging.value = f"<div style='{FAINT}'>the base with {safe_html(name)} is in {safe_html(str(path))}</div>"

    def _ask(self, prompt: str) -> None:
        if not prompt.strip():
            raise ConfigError("the prompt must not be empty", got=prompt, remedy="Write one.")
        self.answers, self.asked, before = [], prompt, self.rack.active
        try:
            for name in ("", *self.rack.folders):
                self.rack.switch(name)
                model, tokenizer, most = self.rack.model, self.rack.tokenizer, self.max_new_tokens
                row = answers.ask(model, tokenizer, [prompt], max_new_tokens=most)[0]
                self.answers.append({"adapter": name or NONE, **row})
                self.panes.value = self._answers_html()
        finally:
            self.rack.switch(before)

    def _show(self) -> None:
        folders, boxes = self.rack.folders, {}
        for name, folder in folders.items():
            if folder is not None:  # a blend is not blended again
                tip = f"The weight of {name} in the blend: any finite number, 0 leaves it out."
                look = {"description": f"weight of {name}", "tooltip": tip, "step": 0.1, "style": LABEL}
                boxes[name] = self.weights.get(name) or widgets.FloatText(value=0.0, layout={"width": "14em"}, **look)
        self.weights, self.weight_row.children = boxes, list(boxes.values())
        self._refreshing = True  # new options choose the first of them
        self.active.options = [(NONE, ""), *((name, name) for name in folders)]
        self.active.value, self._refreshing = self.rack.active, False
        self.panes.value = self._answers_html()
        self.sizes = Table(self.rack.sizes())
        self.table.value = self.sizes._repr_html_()

    def _note(self, row: dict) -> str:
        return "stopped by itself" if row["stopped"] else f"cut at {self.max_new_tokens} tokens"

    def _answers_html(self) -> str:
        panes = ""
        for row in self.answers:
            name, text, note = (safe_html(one) for one in (row["adapter"], row["text"], self._note(row)))
            inner = f"<b>{name}</b><div dir='auto' style='{TEXT}'>{text}</div><div style='{FAINT}'>{note}</div>"
            panes += f"<div style='{BOX};flex:1 1 16em'>{inner}</div>"
        asked = f"<div dir='auto' style='{TEXT};font-weight:600'>{safe_html(self.asked)}</div>"
        return f"<div class='{PLAIN}'>{asked}<div style='display:flex;flex-wrap:wrap;gap:4px'>{panes}</div></div>"

    def _button(self, label: str, tooltip: str, do, style: str = "") -> widgets.Button:
        button = widgets.Button(description=label, tooltip=tooltip, button_style=style, layout={"width": "auto"})
        button.on_click(lambda button: do())
        return button

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """The live view, and beside it answers and sizes for where no widget runs."""
        rows = [f"== {row['adapter']}\n{safe_text(row['text'])}\n[{self._note(row)}]" for row in self.answers]
        asked = f"> {safe_text(self.asked)}" if rows else "nothing asked yet"
        merged = ["", repr(self.damage)] if self.damage.rows else []
        plain = "\n".join([asked, *rows, *merged, "", repr(self.sizes)])
        rich = self.merging.value + self.panes.value + self.table.value
        return {**super()._repr_mimebundle_(**kwargs), "text/plain": plain, "text/html": rich}

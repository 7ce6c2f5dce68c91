"""The panel: a stage's knobs, made from its config dataclass, with what each setting costs.

Every control comes from a field: its name is the label, its help the tooltip, its range or choices what it offers. A
value that a field cannot hold is an error beside the control; nothing is clamped. The browser's side is panel.js.
"""

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import anywidget
import traitlets

from labkit import config as configs
from labkit.config import Config
from labkit.errors import ConfigError, LabError
from labkit.fields import allowed, checked, slider, why_disabled
from labkit.parameters import absolute

HERE = Path(__file__).parent
PRESETS = ("this notebook", "defaults", "a quarter of the steps", "smoke test")


def describe(field: dataclasses.Field) -> dict:
    """What the browser needs of a field: name, label, help, kind, choices, unit, and the range of its slider."""
    about = field.metadata
    kind = "choice" if about["choices"] else {bool: "switch", str: "text"}.get(field.type, "number")
    found = {"name": field.name, "label": field.name, "help": f"{about['help']} Allowed: {allowed(field)}."}
    found |= {"kind": kind, "choices": list(about["choices"] or ()), "unit": about["unit"]}
    found["slider"] = slider(field) if kind == "number" else None
    return found


def shown(value) -> str | bool:
    """A field's value as its control shows it, every digit: it is read back from there."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, bool) else str(value)


def parsed(field: dataclasses.Field, raw):
    """The value behind what was typed. Raises ConfigError where it is not one the field may hold."""
    if field.type in (int, float) and isinstance(raw, str):
        for kind in (int, float):
            try:
                return checked(field, kind(raw))
            except ValueError:
                continue
    return checked(field, raw)


class Panel(anywidget.AnyWidget):
    """Knobs of a notebook. `panel.config` is the Config they stand for, or None while one of them is wrong.

    notebook: a key of config.NOTEBOOKS. config: where the knobs start. on_change(config) is called after every valid
    change and returns [(name, text, level)] to show beneath; on_do(what) gets "train", "stop", "again", and "shown"
    whenever a page shows the panel.
    """

    _esm = HERE / "panel.js"
    _css = HERE / "panel.css"
    title = traitlets.Unicode().tag(sync=True)
    stage = traitlets.Unicode().tag(sync=True)
    fields = traitlets.List().tag(sync=True)
    presets = traitlets.List(list(PRESETS)).tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    notes = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)
    width = traitlets.Int(0).tag(sync=True)  # pixels, as the page that shows it last has them

    def __init__(self, notebook: str, config: Config, on_change: Callable | None = None, on_do: Callable | None = None):
        kind = configs.NOTEBOOKS[notebook]
        self.notebook, self.start, self.config = notebook, config, config
        self.on_change, self.on_do = on_change, on_do
        self._fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "retrain"}
        stage = configs.stage_of(notebook)
        super().__init__(
            title=f"Knobs of {notebook}", stage=stage, fields=[describe(field) for field in self._fields.values()],
            values=self._shown(config),
        )  # fmt: skip
        self.observe(lambda change: self.check(), "values")
        self.on_msg(lambda widget, content, buffers: self._do(content))
        self.check()

    def _shown(self, config: Config) -> dict:
        return {name: shown(getattr(config, name)) for name in self._fields}

    def check(self) -> None:
        """Read the knobs: set `config`, the errors beside the controls, the estimate and the texts to copy."""
        errors, values = {}, {}
        for name, field in self._fields.items():
            try:
                values[name] = parsed(field, self.values[name])
            except ConfigError as error:
                errors[name] = str(error)
        known = {name: field.default for name, field in self._fields.items()} | values
        disabled = {name: why_disabled(field, known) for name, field in self._fields.items()}
        disabled = {name: reason for name, reason in disabled.items() if reason}
        for name in disabled:  # without effect, so it goes back to its default
            values[name] = self._fields[name].default
            errors.pop(name, None)
        self.config = None
        if not errors:
            try:
                self.config = type(self.start)(**values)
            except ConfigError as error:  # fields that do not go together
                errors[str(error).split()[0]] = str(error)
        notes = {"errors": errors, "disabled": disabled, "estimate": [], "parameters": "", "command": ""}
        if self.config is not None:
            notes |= {"parameters": self.parameters(), "command": self.command()}
            if self.on_change is not None:
                notes["estimate"] = [list(line) for line in self.on_change(self.config)]
        self.notes = notes

    def set(self, **values) -> None:
        """Turn knobs from code. Raises ConfigError for a name or value that the notebook does not take."""
        config = type(self.start).from_dict({**self.start.as_dict(), **values})
        self.values = self._shown(config)

    def parameters(self) -> str:
        """The parameters cell with the knobs' values."""
        return "\n".join(f"{name} = {value!r}" for name, value in self.config.as_dict().items())

    def command(self) -> str:
        """Shell commands that run the same: papermill, the lab's runner, and the stage alone."""
        defaults = configs.sized(type(self.start)(model=self.config.model))  # as `configure` reads what is left out
        changed = {name: value for name, value in self.config.as_dict().items() if value != getattr(defaults, name)}
        changed |= absolute(changed)
        changed = ({"model": self.config.model} if self.config.model != "nano" else {}) | changed
        mill = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in changed.items())
        lab = " ".join(f"-p {name}={shlex.quote(str(value))}" for name, value in changed.items())
        lines = [
            f"papermill notebooks/{self.notebook}.ipynb out.ipynb {mill}".rstrip(),
            f"python -m labkit run {self.notebook} {lab}".rstrip(),
        ]
        if self.stage:
            known = {field.name: field.default for field in dataclasses.fields(configs.STAGES[self.stage])}
            values = {n: v for n, v in self.config.as_dict().items() if n in known and v != known[n]}
            about = shlex.quote(json.dumps({"stage": self.stage, **values}))
            lines.append(f"echo {about} > config.json && python -m labkit train config.json")
        return "\n".join(lines)

    def preset(self, name: str) -> None:
        """Set all knobs at once. Raises ConfigError for a preset that does not exist."""
        if name not in PRESETS:
            raise ConfigError("preset is not known", got=name, remedy=f"Known: {', '.join(PRESETS)}.")
        model = self.start.model if self.values["model"] == "smoke" else self.values["model"]
        model = "smoke" if name == "smoke test" else model
        config = self.start if name == "this notebook" else configs.sized(type(self.start)(model=model))
        if name != "smoke test":
            config = dataclasses.replace(config, seed=self.start.seed)
        if name == "a quarter of the steps" and hasattr(config, "steps"):
            config = dataclasses.replace(config, steps=max(1, config.steps // 4))
        self.values = self._shown(config)

    def _do(self, content) -> None:
        what = content.get("do") if isinstance(content, dict) else None
        try:
            if what == "preset":
                self.preset(str(content.get("name")))
            elif what == "reset":
                self.values = self._shown(self.start)
            elif what in ("train", "stop", "again", "shown") and self.on_do is not None:
                if isinstance(stand := content.get("values"), dict):  # the knobs when the button was pressed
                    self.values = {name: stand.get(name, value) for name, value in self.values.items()}
                self.on_do(what)
        except LabError as error:
            self.state = {**self.state, "error": str(error)}

    def _repr_mimebundle_(self, **options):
        """The widget, with a table of the knobs for where no widget runs."""
        found = super()._repr_mimebundle_(**options)
        bundle, more = found if isinstance(found, tuple) else (found, {})
        return {
            **(bundle or {}),
            "text/plain": self.title + "\n" + "\n".join(f"  {n} = {v}" for n, v in self.values.items()),
        }, more

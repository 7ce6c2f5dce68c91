"""The token view: a training row as the trainer sees it, token by token, coloured by what it teaches.

Hovering over a token tells its id, whether it is learned from, and what the model gives it: p(token | those before it).
"""

import json
from pathlib import Path

import ipywidgets
import torch

from labkit import data, models
from labkit.ui.text import safe_html, safe_text

COLOURINGS = ("learned or masked", "probability", "loss")


def first_batch(run) -> list[dict]:
    """The rows of a run's first batch, exactly as the model got them, padding included. [] where none was kept."""
    file = Path(run.path) / "first_batch.json"
    if not file.exists():
        return []
    batch = json.loads(file.read_text(encoding="utf-8"))
    return [{name: batch[name][n] for name in batch} for n in range(len(batch["input_ids"]))]


@torch.no_grad()
def token_probabilities(model, row: dict) -> list[float | None]:
    """p(token | tokens before it) for every token of the row; None for the first, which has none before it."""
    model.eval()
    ids = torch.tensor([row["input_ids"]], device=model.device)
    mask = torch.tensor([row.get("attention_mask") or [1] * len(row["input_ids"])], device=model.device)
    with models.autocast():
        logits = model(ids, attention_mask=mask, use_cache=False).logits[0, :-1].float()
    return [None, *logits.softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()]


def spans(tokenizer, row: dict, probabilities: list[float | None] | None, colouring: str) -> str:
    """The row as HTML, every piece escaped."""
    labels = row.get("labels") or row["input_ids"]
    kept = row.get("attention_mask") or [1] * len(labels)
    parts = []
    for place, (token, label) in enumerate(zip(row["input_ids"], labels, strict=True)):
        p = probabilities[place] if probabilities else None
        learned, loss = label != data.IGNORED, -float(torch.tensor(max(p, 1e-12)).log()) if p is not None else None
        if not kept[place]:
            parts.append("<span title='padding: not seen by the model' style='opacity:.35'>&middot;</span>")
            continue
        shade = {
            "learned or masked": 0.45 if learned else 0.0,
            "probability": p or 0.0,
            "loss": min(1, (loss or 0) / 8),
        }
        colour = "213,94,0" if colouring == "loss" else "0,158,115"
        title = f"token {token}, {'learned from' if learned else 'masked'}"
        title += f", p = {p:.3g}, loss {loss:.2f} nats" if p is not None else ""
        # a document begins: in a packed row this is where one ends and the next starts
        edge = "border-left:3px solid #0072B2;" if token == tokenizer.bos_token_id and place else ""
        line = "" if learned else "border-bottom:2px dotted #808080;"
        style = f"background:rgba({colour},{shade[colouring]:.2f});{edge}{line}padding:1px 2px;margin:1px;"
        style += "white-space:pre-wrap"
        parts.append(f"<span title='{title}' style='{style}'>{safe_html(tokenizer.decode([token]))}</span>")
    return f"<div class='mathjax_ignore' style='font-family:monospace;line-height:2'>{''.join(parts)}</div>"


class TokenView(ipywidgets.VBox):
    """Rows of {input_ids, labels, attention_mask} to leaf through. model: gives probability and loss per token."""

    def __init__(self, tokenizer, rows: list[dict], model=None):
        self.tokenizer, self.rows, self.model = tokenizer, rows, model
        colourings = COLOURINGS if model is not None else COLOURINGS[:1]
        wide = {"style": {"description_width": "initial"}}
        self.row = ipywidgets.IntText(0, description="row", tooltip=f"Row to show, 0 to {len(rows) - 1}", **wide)
        self.colouring = ipywidgets.Dropdown(
            options=colourings, description="colour", tooltip="What the colour of a token tells", **wide
        )
        self.text = ipywidgets.HTML()
        key = "<small>dotted: masked, not learned from; a blue bar: a document begins; dots: padding</small>"
        super().__init__([ipywidgets.HBox([self.row, self.colouring]), self.text, ipywidgets.HTML(key)])
        for control in (self.row, self.colouring):
            control.observe(lambda change: self.show(), "value")
        self.show()

    def show(self) -> None:
        """Draw the chosen row; a row that is not there is said, not clamped."""
        if not 0 <= self.row.value < len(self.rows):
            self.text.value = f"<span role='alert'>row must be a whole number from 0 to {len(self.rows) - 1}</span>"
            return
        row = self.rows[self.row.value]
        probabilities = token_probabilities(self.model, row) if self.model is not None else None
        self.text.value = spans(self.tokenizer, row, probabilities, self.colouring.value)

    def _repr_mimebundle_(self, **options):
        """The widget, with the row as HTML and plain text for where no widget runs."""
        found = super()._repr_mimebundle_(**options) or {}
        ids = self.rows[0]["input_ids"] if self.rows else []
        return {**found, "text/html": self.text.value, "text/plain": safe_text(self.tokenizer.decode(ids))}

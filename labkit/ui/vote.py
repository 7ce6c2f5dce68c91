"""Blind votes in the notebook: two answers side by side, their models told after the vote. The page is vote.js."""

import time
from pathlib import Path

import anywidget
import numpy as np
import traitlets

from labkit.errors import LabError
from labkit.evaluate import arena, votes
from labkit.ui.text import safe_text

HERE = Path(__file__).parent
OVER = "You have voted on every question that these models answer differently. Their ratings are in the cells below."


class Vote(anywidget.AnyWidget):
    """Battles, one after another. `vote(choice)` and `next()` do from code what the buttons and keys do.

    said: each model's rows {id, prompt, text} to the same questions, as `answers.test` returns them. labels: a readable
    name for a model, where its own is not. Every vote is on the disk before its models are told.
    """

    _esm = HERE / "vote.js"
    _css = HERE / "vote.css"
    battle = traitlets.Dict().tag(sync=True)  # {id, prompt, a, b}: no names before the vote; id "" where none is left
    state = traitlets.Dict().tag(sync=True)  # {total, mine, goal, reveal, chosen, error}

    def __init__(self, said: dict[str, list[dict]], *, labels: dict[str, str] | None = None, goal: int = 50, seed=None):
        super().__init__()
        self.said, self.labels, self.goal, self.mine = said, labels or {}, goal, 0
        self._rng, self._battle, self._shown, self._chosen = np.random.default_rng(seed), None, 0.0, ""
        self.on_msg(lambda widget, content, buffers: self._heard(content))
        self.next()

    def next(self) -> None:
        """Put up another battle, or say that there is none; one that was not voted on is dropped."""
        self._battle = arena.new_battle(self.said, self._cast(), self._rng)
        self._shown, self._chosen = time.monotonic(), ""
        if self._battle:
            shown = {side: safe_text(text) for side, text in self._battle["answers"].items()}
            self.battle = {"id": self._battle["id"], "prompt": safe_text(self._battle["prompt"]), **shown}
        else:
            self.battle = {"id": "", "prompt": OVER, "a": "", "b": ""}
        self._show()

    def vote(self, choice: str) -> None:
        """Keep the vote (a, b, tie or both_bad), then tell the models. A second vote on a battle changes nothing."""
        if self._chosen or not self._battle:
            return
        try:
            seconds = round(time.monotonic() - self._shown, 2)
            if not votes.add(self._battle, choice, votes.HUMAN, seconds=seconds):
                # an earlier click was written before the disk failed: the file has its choice, whatever this one says
                choice = next(vote["choice"] for vote in votes.read() if vote["id"] == self._battle["id"])
        except LabError as error:
            return self._show(error=f"The vote was not kept: {error}")
        except OSError as error:  # the battle stays, to be voted on again
            return self._show(error=f"It is not sure that the vote was kept: {error}. Vote again.")
        self._chosen = choice
        self.mine += 1
        self._show()

    def _cast(self) -> list[dict]:
        return votes.read(voter=votes.HUMAN, among=self.said)

    def _show(self, error: str = "") -> None:
        reveal = {}
        if self._chosen:
            reveal = {side: safe_text(self.labels.get(name, name)) for side, name in self._battle["models"].items()}
        about = {"total": len(self._cast()), "mine": self.mine, "goal": self.goal}
        self.state = {**about, "reveal": reveal, "chosen": self._chosen, "error": safe_text(error)}

    def _heard(self, content) -> None:
        """A message of the page; a vote names the battle it is about, so that a late click hits no other one."""
        about = content if isinstance(content, dict) else {}
        if not self._battle or about.get("id") != self._battle["id"]:
            return
        if about.get("do") == "vote":
            self.vote(str(about.get("choice")))
        elif about.get("do") == "next" and self._chosen:
            self.next()

    def _repr_mimebundle_(self, **options):
        """The widget, with how many votes there are for where no widget runs."""
        found = super()._repr_mimebundle_(**options)
        bundle, more = found if isinstance(found, tuple) else (found, {})
        text = f"Blind votes: {self.state['total']} by a human on these models so far; run the notebook to vote."
        return {**(bundle or {}), "text/plain": text}, more

"""Alarms: what goes wrong in training, read from the logged numbers alone.

Each alarm says what it saw, what that means and which knob to turn. The rules are simple on purpose: they compare the
last quarter of what was logged with the first, so one noisy step raises nothing.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Alarm:
    """One thing that looks wrong: a stable name, the step it was seen at, what it means and what to do."""

    name: str
    step: int
    meaning: str
    remedy: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.meaning} {self.remedy}"


def _values(history: list[dict], name: str) -> list[float]:
    return [row[name] for row in history if row.get(name) is not None]


def _ends(values: list[float]) -> tuple[float, float]:
    """(mean of the first quarter, mean of the last quarter); at least one value each."""
    part = max(1, len(values) // 4)
    return sum(values[:part]) / part, sum(values[-part:]) / part


def alarms(history: list[dict]) -> list[Alarm]:
    """What the rows of a run's history (oldest first) give cause for alarm about; [] where all looks well."""
    if not history:
        return []
    step, found = history[-1]["step"], []

    def alarm(name: str, meaning: str, remedy: str) -> None:
        found.append(Alarm(name, step, meaning, remedy))

    if any("loss" in row and row["loss"] is None for row in history):
        alarm("not_a_number", "The loss is no longer a number.", "Lower learning_rate or raise warmup_steps.")
    losses = _values(history, "loss")
    if len(losses) >= 8:
        first, last = _ends(losses)
        if last > 1.2 * first and last - min(losses) > 0.3:
            alarm("diverging", f"The loss rises ({first:.2f} to {last:.2f}).", "Lower learning_rate.")
    looks = _values(history, "held_out_loss")
    if len(looks) >= 4 and len(losses) >= 8:
        best = min(looks)
        if looks[-1] > 1.1 * best and looks[-1] > looks[-2] > best and losses[-1] < losses[len(losses) // 2]:
            what = f"Held-out loss rises ({best:.3f} to {looks[-1]:.3f}) while the training loss falls: it memorises."
            alarm("overfitting", what, "Take fewer steps, a lower lora_rank, or more data.")
    norms = [value for value in _values(history, "grad_norm") if math.isfinite(value)]
    if len(norms) >= 8 and norms[-1] > 20 * sorted(norms)[len(norms) // 2]:
        alarm(
            "gradient_spike",
            f"The gradient norm jumped to {norms[-1]:.3g}.",
            "Lower learning_rate if it happens often.",
        )
    found += _preference(history, step)
    return found


def _preference(history: list[dict], step: int) -> list[Alarm]:
    """Alarms of preference tuning, from the log-probabilities of the chosen and the rejected answers (nats)."""
    chosen, rejected = _values(history, "log_probs_chosen"), _values(history, "log_probs_rejected")
    if min(len(chosen), len(rejected)) < 8:
        return []
    (chosen_first, chosen_last), (rejected_first, rejected_last) = _ends(chosen), _ends(rejected)
    fall, rejected_fall = chosen_first - chosen_last, rejected_first - rejected_last
    found = []
    if fall > 5 and rejected_fall > 5:
        meaning = f"Chosen and rejected answers both become less likely (by {fall:.0f} and {rejected_fall:.0f} nats)."
        found.append(Alarm("chosen_falls", step, meaning, "Use loss_type sigmoid_sft, a higher beta or fewer steps."))
    margins = _values(history, "margin")
    if (
        len(margins) >= 8
        and _ends(margins)[1] > 0.5
        and fall > 0
        and rejected_fall > 4 * fall > 0
        and rejected_fall > 10
    ):
        meaning = "The margin grows by the rejected answers alone; the chosen ones become no likelier."
        found.append(Alarm("margin_by_rejected", step, meaning, "Use loss_type sigmoid_sft or a lower learning_rate."))
    return found

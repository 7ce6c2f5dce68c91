"""The gate: did preference tuning do anything? Asked of a model's answers and its parent's to the same questions."""

from dataclasses import dataclass

from labkit.evaluate import checkers, intervals
from labkit.lineage import paired_difference

IMPROVED, NOTHING, WORSE, NOISY = "improved", "changed nothing", "made it worse", "too noisy to say"
SPARE = 0.01  # of accuracy may be lost
FEW = 0.02  # of answers changed is next to nothing


@dataclass(frozen=True)
class Gate:
    """The verdict, why, and what it rests on; each a share or a difference with its 95% interval."""

    verdict: str
    why: str
    changed: tuple[float, float, float]  # share of answers that read otherwise than the parent's
    win_rate: tuple[float, float, float]  # of the questions that the gold preference decides
    accuracy: tuple[float, float, float]  # on safe questions, minus the parent's

    @property
    def passed(self) -> bool:
        return self.verdict == IMPROVED

    def table(self) -> list[dict]:
        """One row for each measurement, and the verdict."""
        names = {"answers changed": "changed", "gold win rate": "win_rate", "accuracy gained": "accuracy"}
        rows = [
            {"measured": what, "found": f"{found[0]:.1%}", "95% interval": f"{found[1]:.1%} to {found[2]:.1%}"}
            for what, found in ((what, getattr(self, name)) for what, name in names.items())
        ]
        return [*rows, {"measured": "verdict", "found": self.verdict, "95% interval": self.why}]

    def metrics(self) -> dict[str, float]:
        """What a notebook records."""
        return {
            "gate_passed": int(self.passed), "changed": self.changed[0], "win_rate": self.win_rate[0],
            "win_rate_low": self.win_rate[1], "win_rate_high": self.win_rate[2], "accuracy_change": self.accuracy[0],
        }  # fmt: skip


def gate(rows: list[dict], parent_rows: list[dict]) -> Gate:
    """The verdict on judged answers (`answers.test`) beside the parent's, question by question.

    changed nothing   surely less than FEW of the answers changed, or no change decides a question
    made it worse     surely fewer than half of the decided questions are won, or more than SPARE of accuracy lost
    improved          surely more than half are won, and the accuracy found is at most SPARE lower
    too noisy to say  anything else

    "Surely" is the whole 95% interval. Raises RunError where the two answered no question in common.
    """
    difference = paired_difference([row for row in rows if row["split"] != "unsafe"], parent_rows)
    accuracy = tuple(difference[name] for name in ("difference", "low", "high"))
    win = checkers.win_rate(rows, parent_rows)
    other = sum(row["text"] != old["text"] for row, old in zip(rows, parent_rows, strict=True))
    changed = intervals.proportion(other, len(rows))
    decided = win["wins"] + win["losses"]
    found = changed, (win["win_rate"], win["low"], win["high"]), accuracy
    if not decided or changed[2] < FEW:
        return Gate(NOTHING, f"{other} of {len(rows)} answers changed, {decided} for better or worse", *found)
    if win["high"] < 0.5:
        return Gate(WORSE, f"its parent wins {win['losses']} of {decided} decided questions", *found)
    if accuracy[2] < -SPARE:
        return Gate(WORSE, f"it loses {-accuracy[0]:.1%} of accuracy", *found)
    if win["low"] > 0.5 and accuracy[0] >= -SPARE:
        return Gate(IMPROVED, f"it wins {win['wins']} of {decided} decided questions and keeps its accuracy", *found)
    doubt = "accuracy may have fallen" if win["low"] > 0.5 else f"it wins {win['wins']} of {decided} decided questions"
    return Gate(NOISY, doubt, *found)

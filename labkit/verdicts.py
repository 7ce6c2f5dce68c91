"""Claims and verdicts: what people say of the training pipeline, and what this machine measured.

A verdict is computed from intervals, never typed. An interval clear of its threshold on the claimed side supports the
claim, clear on the other side refutes it, and one that straddles the threshold says nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.errors import ConfigError

HOLDS, IN_PART, DOES_NOT, NOISY = "holds here", "holds in part", "does not hold here", "too noisy to say"
UNTESTED = "not tested yet"

CLAIMS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "A base model continues a question with more questions instead of answering",
        ("01_pretraining", "00_start_here"),
    ),
    2: ("SFT on labelled pairs turns it into a model that answers", ("02_supervised_fine_tuning", "00_start_here")),
    3: ("Preference tuning makes correct answers helpful, concise and safe as well", ("07_dpo", "00_start_here")),
    4: ("Rank-8 LoRA of a 12,288 x 12,288 matrix trains about 760 times fewer weights", ("03_lora",)),
    5: ("LoRA gives good quality far cheaper; full fine-tuning is best and dearest", ("03_lora", "04_qlora")),
    6: ("Only adapters need saving, megabytes each: one base, many adapters", ("03_lora",)),
    7: ("QLoRA costs still less, for slightly lower quality", ("04_qlora",)),
    8: ("A 65B model can be fine-tuned on one 48 GB card, a 70B one on consumer hardware", ("04_qlora",)),
    9: ("RLHF trains two models and is costly and unstable", ("05_reward_model", "06_ppo", "09_alignment_showdown")),
    10: ("DPO needs no reward model, is steadier than PPO and at least as good", ("07_dpo", "09_alignment_showdown")),
    11: ("ORPO does SFT and alignment in one stage: less compute, same result", ("08_orpo", "09_alignment_showdown")),
    12: ("Simpler methods work just as well", ("09_alignment_showdown",)),
    13: ("Word-level metrics are fast but miss fluency, creativity and correctness", ("10_word_level_metrics",)),
    14: ("Benchmarks compare well but can be overfitted, and so can leaderboards", ("11_benchmarks", "14_goodhart")),
    15: ("An LLM as judge scales, and depends on the judge's prompt", ("12_llm_as_judge",)),
    16: ("Human pairwise votes are the gold standard, and slow", ("13_arena",)),
    17: ("A measure that becomes a target ceases to be a good measure", ("14_goodhart",)),
    18: (
        "No metric is universal: the best evaluator is you, on your use case",
        (
            *("05_reward_model", "10_word_level_metrics", "11_benchmarks", "12_llm_as_judge", "13_arena"),
            *("14_goodhart", "15_your_own"),
        ),
    ),
}


@dataclass(frozen=True)
class Evidence:
    """One measurement that bears on a claim: an estimate, its interval [low, high] and the threshold to clear.

    direction: the side of the threshold on which the claim puts the true value, "above" or "below".
    Raises ConfigError for numbers that are not finite or out of order, or another direction.
    """

    name: str
    estimate: float
    low: float
    high: float
    threshold: float
    direction: str = "above"

    def __post_init__(self):
        for name in ("estimate", "low", "high", "threshold"):
            value = getattr(self, name)
            if type(value) not in (int, float):
                value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
                object.__setattr__(self, name, value)
            if type(value) not in (int, float) or not math.isfinite(value):
                remedy = "Give a finite number; leave the evidence out where nothing was measured."
                raise ConfigError(f"{name} of evidence {self.name!r} must be a finite number", got=value, remedy=remedy)
        slack = 1e-9 * max(1.0, abs(self.low), abs(self.high))  # rounding at the end of an interval is no error
        if not self.low - slack <= self.estimate <= self.high + slack:
            got = (self.low, self.estimate, self.high)
            remedy = "Check the order of the arguments: estimate, low, high, threshold."
            raise ConfigError(f"evidence {self.name!r} must have low <= estimate <= high", got=got, remedy=remedy)
        if self.direction not in ("above", "below"):
            remedy = 'Write direction="above" or direction="below".'
            raise ConfigError(f"direction of evidence {self.name!r} must be a side", got=self.direction, remedy=remedy)

    @property
    def supports(self) -> bool:
        """The whole interval is on the claimed side of the threshold."""
        return self.low > self.threshold if self.direction == "above" else self.high < self.threshold

    @property
    def refutes(self) -> bool:
        """The whole interval is on the other side of the threshold."""
        return self.high < self.threshold if self.direction == "above" else self.low > self.threshold


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of a claim, in the setting it was tested in ("nano, 800 steps, 300 questions, seed 0")."""

    claim: int
    verdict: str
    setting: str
    evidence: tuple[Evidence, ...]

    def __str__(self) -> str:
        found = "; ".join(_found(one.name, one.estimate, one.low, one.high) for one in self.evidence)
        return f"Claim {self.claim}, {CLAIMS[self.claim][0]}: {self.verdict}. {found} ({self.setting})"


def verdict(claim: int, evidence: Evidence | Iterable[Evidence], setting: str) -> Verdict:
    """The verdict that the evidence gives on a claim of CLAIMS.

    All supported: holds here. Some supported: holds in part. None supported but some refuted: does not hold here. All
    straddling their thresholds: too noisy to say. Raises ConfigError for an unknown claim, no evidence or no setting.
    """
    pieces = (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)
    if claim not in CLAIMS:
        raise ConfigError("claim must be a number of CLAIMS", got=claim, remedy=f"Write 1 to {max(CLAIMS)}.")
    if not pieces or not all(isinstance(one, Evidence) for one in pieces):
        raise ConfigError("evidence must be one Evidence or more", got=evidence, remedy="Measure something first.")
    if not setting.strip():
        raise ConfigError("setting must say what was tested", got=setting, remedy='Write "nano, 800 steps, seed 0".')
    supported = sum(one.supports for one in pieces)
    if supported:
        word = HOLDS if supported == len(pieces) else IN_PART
    else:
        word = DOES_NOT if any(one.refutes for one in pieces) else NOISY
    return Verdict(claim, word, setting, pieces)


def verdict_table(records: dict[str, dict] | Iterable[dict]) -> list[dict[str, str | int]]:
    """All claims with their latest verdict in `records` (as `records.latest_records` returns them).

    Keys of each row: claim, text, notebook, link (relative to notebooks/), verdict, effect, interval, setting.
    """
    records = records.values() if isinstance(records, dict) else records
    latest: dict[int, tuple[str, dict]] = {}
    for one in sorted(records, key=lambda one: one["date"]):
        for found in one.get("verdicts", []):
            latest[found["claim"]] = (one["notebook"], found)
    rows = []
    for claim, (text, notebooks) in CLAIMS.items():
        notebook, found = latest.get(claim, (notebooks[0], {"verdict": UNTESTED, "setting": "", "evidence": []}))
        about = {"claim": claim, "text": text, "notebook": notebook, "link": f"{notebook}.ipynb"}
        effect = "; ".join(f"{one['name']} {one['estimate']:.3g}" for one in found["evidence"])
        interval = "; ".join(f"[{one['low']:.3g}, {one['high']:.3g}]" for one in found["evidence"])
        rows.append(
            {**about, "verdict": found["verdict"], "effect": effect, "interval": interval, "setting": found["setting"]}
        )
    return rows


def _found(name: str, estimate: float, low: float, high: float) -> str:
    return f"{name} {estimate:.3g} [{low:.3g}, {high:.3g}]"

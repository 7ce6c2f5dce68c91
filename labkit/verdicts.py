"""Claims and verdicts: what people say of the training pipeline, and what this machine measured.

A verdict is computed from intervals, never typed. Each piece of evidence has one of three states: an interval clear of
its threshold on the claimed side supports the claim, clear on the other side refutes it, and one that straddles the
threshold leaves it unresolved. What a claim needs (NEEDS) is said before a figure is seen. What follows from how a
thing is built is told and counts for nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.errors import ConfigError

HOLDS, IN_PART, DOES_NOT, NOISY = "holds here", "holds in part", "does not hold here", "unresolved"
BY_DESIGN, UNTESTED = "true by construction", "not tested yet"
SUPPORTED, REFUTED, UNRESOLVED, DESIGN = "supported", "refuted", "unresolved", "by design"

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
    18: ("No metric is universal: the best evaluator is you, on your use case", ("15_your_own",)),
}
# What must be supported, in words; the thresholds stand in the notebooks' cells.
NEEDS: dict[int, str] = {
    1: "Few questions are answered. That questions follow is by construction: the corpus has sheets of them.",
    2: "Most held-out questions are answered correctly after it, and hardly any before.",
    3: "Its answers win by the checker's worth, unsafe requests are declined and safe ones not, answers get shorter.",
    4: "The arithmetic gives between 750 and 780.",
    5: "Right answers at most five points below full fine-tuning's; less time a step; full above LoRA.",
    6: "The base comes through unchanged. That an adapter's file is small follows from its rank.",
    7: "Right answers below LoRA's, by less than five points; less time a step. Fewer bytes follow from the form.",
    8: "The estimate, with its error, is below the card's memory.",
    9: "More processor time than DPO; under nine in ten runs gain reward; worse answers for the same token passes.",
    10: "Answers at most five points worse than PPO's; gold spreads less over seeds.",
    11: "Gold and accuracy not below SFT's and DPO's by more than the margin; fewer token passes.",
    12: "The best simpler method, chosen on other questions, is at most five points worse than PPO.",
    13: "Scoring takes a tenth of answering at most; each fault is missed in one of twenty tasks at least.",
    14: "Benchmarks part the trained from the untrained; known items, leaked items and a cheat score higher.",
    15: "A verdict takes under ten seconds; another wording changes one verdict in twenty at least.",
    16: "Votes of people agree with the checker in most cases; a vote takes longer than a judge's.",
    17: "Gold rises first and then falls while the proxy goes on rising, in every seed.",
    18: "Your own test and the general one do not tell the same of the same models.",
}


@dataclass(frozen=True)
class Evidence:
    """One measurement that bears on a claim: an estimate, its interval [low, high] and the threshold to clear.

    direction: the side of the threshold on which the claim puts the true value, "above" or "below". kind: "measured",
    where an interval of no width is none and proves nothing; "exact", what is counted or computed without error;
    "design", what follows from how a thing is built, whatever comes out. Raises ConfigError for numbers that are not
    finite or out of order, or another direction or kind.
    """

    name: str
    estimate: float
    low: float
    high: float
    threshold: float
    direction: str = "above"
    kind: str = "measured"

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
        if self.kind not in ("measured", "exact", "design"):
            remedy = 'Write kind="measured", "exact" or "design".'
            raise ConfigError(f"kind of evidence {self.name!r} is not known", got=self.kind, remedy=remedy)

    @property
    def state(self) -> str:
        """supported or refuted, where the whole interval is on one side of the threshold; unresolved; or by design."""
        if self.kind == "design":
            return DESIGN
        if self.kind == "measured" and self.low == self.high:
            return UNRESOLVED
        above, below = self.low > self.threshold, self.high < self.threshold
        if not (above or below):
            return UNRESOLVED
        return SUPPORTED if above == (self.direction == "above") else REFUTED

    @property
    def supports(self) -> bool:
        return self.state == SUPPORTED

    @property
    def refutes(self) -> bool:
        return self.state == REFUTED


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of a claim, in the setting it was tested in ("nano, 800 steps, 300 questions, seed 0")."""

    claim: int
    verdict: str
    setting: str
    evidence: tuple[Evidence, ...]

    def __str__(self) -> str:
        found = "; ".join(f"{_found(one)}: {one.state}" for one in self.evidence)
        return f"Claim {self.claim}, {CLAIMS[self.claim][0]}: {self.verdict}. {found} ({self.setting})"


def verdict(claim: int, evidence: Evidence | Iterable[Evidence], setting: str) -> Verdict:
    """The verdict that the evidence gives on a claim of CLAIMS.

    All supported: holds here. Some supported and others refuted: holds in part. Some refuted and none supported: does
    not hold here. Some unresolved and none refuted: unresolved. What is by design does not count; nothing else: true by
    construction. Raises ConfigError for an unknown claim, no evidence or no setting.
    """
    pieces = (evidence,) if isinstance(evidence, Evidence) else tuple(evidence)
    if claim not in CLAIMS:
        raise ConfigError("claim must be a number of CLAIMS", got=claim, remedy=f"Write 1 to {max(CLAIMS)}.")
    if not pieces or not all(isinstance(one, Evidence) for one in pieces):
        raise ConfigError("evidence must be one Evidence or more", got=evidence, remedy="Measure something first.")
    if not setting.strip():
        raise ConfigError("setting must say what was tested", got=setting, remedy='Write "nano, 800 steps, seed 0".')
    states = {one.state for one in pieces} - {DESIGN}
    if not states:
        word = BY_DESIGN
    elif REFUTED in states:
        word = IN_PART if SUPPORTED in states else DOES_NOT
    else:
        word = NOISY if UNRESOLVED in states else HOLDS
    return Verdict(claim, word, setting, pieces)


def verdict_table(records: dict[str, dict] | Iterable[dict]) -> list[dict[str, str | int | bool]]:
    """All claims with what every notebook that spoke on them last said, of `records` (see `records.latest_records`).

    Keys of each row: claim, text, needs, notebook, link (relative to notebooks/), verdict, disagree (another notebook
    says otherwise), effect, interval, setting. A claim on which none has spoken has one row. Runs of the model "smoke",
    which test the plumbing, say nothing.
    """
    records = records.values() if isinstance(records, dict) else records
    latest: dict[int, dict[str, dict]] = {claim: {} for claim in CLAIMS}
    for one in sorted(records, key=lambda one: one["date"]):
        if one.get("parameters", {}).get("model") != "smoke":
            for found in one.get("verdicts", []):
                if one["notebook"] in CLAIMS.get(found["claim"], ("", ()))[1]:  # an older record may speak on others
                    latest[found["claim"]][one["notebook"]] = found
    rows = []
    for claim, (text, notebooks) in CLAIMS.items():
        silent = {notebooks[0]: {"verdict": UNTESTED, "setting": "", "evidence": []}}
        words = {found["verdict"] for found in latest[claim].values()}
        for notebook, found in sorted(latest[claim].items()) or silent.items():
            about = {"claim": claim, "text": text, "needs": NEEDS[claim], "notebook": notebook}
            about |= {"link": f"{notebook}.ipynb", "verdict": found["verdict"], "disagree": len(words) > 1}
            effect = "; ".join(f"{one['name']} {one['estimate']:.3g}" for one in found["evidence"])
            interval = "; ".join(f"[{one['low']:.3g}, {one['high']:.3g}]" for one in found["evidence"])
            rows.append({**about, "effect": effect, "interval": interval, "setting": found["setting"]})
    return rows


def _found(one: Evidence) -> str:
    return f"{one.name} {one.estimate:.3g} [{one.low:.3g}, {one.high:.3g}]"

"""Alarms: what goes wrong in training, read from the logged numbers alone.

Each alarm says what it saw, what that means and which knob to turn. The rules are simple on purpose: they compare the
last quarter of what was logged with the first, so one noisy step raises nothing. What was logged and is read here:

    kl             nats per answer, of the policy from the model it started from; held_out_kl where no kl is logged
    entropy        nats per token, of the policy's next-token distribution
    answer_length  tokens of the answers that the policy writes
    repetition     share of their three-word runs that the same answer has had before (`repeated`)
    log_ratio_*    nats per answer, log pi - log ref of chosen and rejected; log_sum_*, log pi, where there is no ref
    reward, gold   mean of the reward that is trained on, and of the gold preference that is not; held_out_reward first
"""

import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Alarm:
    """One thing that looks wrong: a stable name, the step it was seen at, what it means and what to do."""

    name: str
    step: int
    meaning: str
    remedy: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.meaning} {self.remedy}"


def repeated(text: str) -> float:
    """Share of the text's runs of three words that stand in it before; 0 for fewer than four words."""
    words = text.split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


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

    if any(name in row and row[name] is None for row in history for name in ("loss", "held_out_loss")):
        alarm("not_a_number", "The loss is no longer a number.", "Lower learning_rate or raise warmup_steps.")
    losses = _values(history, "loss")
    if len(losses) >= 8 and not _values(history, "value_loss"):  # PPO's grows with the square of the reward
        first, last = _ends(losses)
        if last > 1.2 * first and last - min(losses) > 0.3:
            alarm("diverging", f"The loss rises ({first:.2f} to {last:.2f}).", "Lower learning_rate.")
    looks = _values(history, "held_out_loss")
    if len(looks) >= 3 and len(losses) >= 8:
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
    return found + _preference(history, step) + _policy(history, step)


def kept(history: list[dict]) -> list[dict]:
    """Every alarm raised at any time, the latest of each name, as plain values for run.json.

    at_end: whether it still stands after the last row; one that has gone was a bad stretch.
    """
    every = max(1, len(history) // 200)  # of a long run, every so many rows: each end reads all rows before it
    ends = [*range(every, len(history), every), len(history)]
    latest = {alarm.name: alarm for end in ends for alarm in alarms(history[:end])}
    standing = {alarm.name for alarm in alarms(history)}
    found = [asdict(alarm) | {"at_end": alarm.name in standing} for alarm in latest.values()]
    return sorted(found, key=lambda alarm: alarm["step"])


def _hold(history: list[dict]) -> str:
    """The knob that keeps a policy near its start, told from what its method logs."""
    if _values(history, "reward"):
        return "raise kl_coef"
    return "lower beta" if _values(history, "log_odds") else "raise beta"  # ORPO's beta weighs the preference


def _scale(history: list[dict]) -> float:
    """How much longer answers are than those of sixteen tokens that the thresholds are made for, 1 at least."""
    return max([1.0, *(length / 16 for length in _lengths(history)[:1])])


def _lengths(history: list[dict]) -> list[float]:
    """Tokens of the policy's answers, without ORPO's first: it may start from a base that never stops by itself."""
    return _values(history, "answer_length")[bool(_values(history, "log_odds")) :]


def _preference(history: list[dict], step: int) -> list[Alarm]:
    """Alarms of preference tuning, from what became of the chosen and the rejected answers (nats per answer)."""
    names = "log_ratio" if _values(history, "log_ratio_chosen") else "log_sum"
    chosen, rejected = (_values(history, f"{names}_{side}") for side in ("chosen", "rejected"))
    if min(len(chosen), len(rejected)) < 8:
        return []
    (chosen_first, chosen_last), (rejected_first, rejected_last) = _ends(chosen), _ends(rejected)
    fall, rejected_fall = chosen_first - chosen_last, rejected_first - rejected_last
    found, by, hold = [], _scale(history), _hold(history)
    knobs = f"Take fewer steps, {hold}" + (", or use loss_type sigmoid_sft." if names == "log_ratio" else ".")
    if fall > 5 * by and rejected_fall > 5 * by:
        meaning = f"Chosen and rejected answers both become less likely (by {fall:.0f} and {rejected_fall:.0f} nats)."
        found.append(Alarm("chosen_falls", step, meaning, knobs))
    # a chosen answer that is near certain cannot rise
    elif (fall > by and rejected_fall > 10 * by) or (fall >= 0 and rejected_fall > 50 * by):
        meaning = "The margin grows by the rejected answers alone; the chosen ones become no likelier."
        found.append(Alarm("margin_by_rejected", step, meaning, f"Lower learning_rate. {knobs}"))
    return found


def _policy(history: list[dict], step: int) -> list[Alarm]:
    """Alarms on what the policy writes: how far from its start, how varied, how long, and whether gold agrees."""
    found, hold = [], _hold(history)
    kl = _values(history, "kl") or _values(history, "held_out_kl")
    if len(kl) >= 2 and _ends(kl)[1] > 30 * _scale(history):
        meaning = f"The policy is {_ends(kl)[1]:.0f} nats per answer from where it started: it has left its language."
        found.append(Alarm("kl_blow_up", step, meaning, f"Lower learning_rate, or {hold}."))
    entropy = _values(history, "entropy")
    if len(entropy) >= 8 and _ends(entropy)[1] < 0.1 * _ends(entropy)[0]:
        first, last = _ends(entropy)
        meaning = f"Entropy fell from {first:.3f} to {last:.3f} nats per token: the policy writes one thing only."
        found.append(Alarm("entropy_collapse", step, meaning, f"Lower learning_rate, {hold} or take fewer steps."))
    lengths = _lengths(history)
    if len(lengths) >= 2 and _ends(lengths)[1] < 0.4 * lengths[0]:
        meaning = f"Answers shrank from {lengths[0]:.1f} to {_ends(lengths)[1]:.1f} tokens: does anything remain?"
        remedy = f"Read the answers; {hold}, or see whether the rejected answers are the longer ones throughout."
        found.append(Alarm("length_collapse", step, meaning, remedy))
    if len(lengths) >= 2 and _ends(lengths)[1] > 2.5 * lengths[0] > 0:
        meaning = f"Answers grew from {lengths[0]:.1f} to {_ends(lengths)[1]:.1f} tokens: is length all it was taught?"
        remedy = f"Compare the lengths of chosen and rejected answers; {hold} or lower learning_rate."
        found.append(Alarm("length_blow_up", step, meaning, remedy))
    again = _values(history, "repetition")
    if len(again) >= 3 and min(again[-2:]) > max(0.2, again[0] + 0.15):  # twice: a base passes through such a stretch
        meaning = f"{again[-1]:.0%} of the runs of three words repeat within an answer: the policy goes in circles."
        found.append(Alarm("repetition", step, meaning, f"Lower learning_rate, {hold} or take fewer steps."))
    return found + _over_optimised(history, step)


def _over_optimised(history: list[dict], step: int) -> list[Alarm]:
    """Goodhart's alarm: at two looks in a row gold is a tenth below its best while the reward is above what it was."""
    name = "held_out_reward" if _values(history, "held_out_reward") else "reward"
    looks = [row for row in history if row.get("gold") is not None]
    rewards = [_ends(_values([r for r in history if r["step"] <= row["step"]], name) or [math.nan])[1] for row in looks]
    gold = [row["gold"] for row in looks]
    if len(gold) < 3 or max(gold[-2:]) > max(gold) - 0.1 * abs(max(gold)):
        return []
    best = gold.index(max(gold))
    if not min(rewards[-2:]) > rewards[best]:
        return []
    meaning = f"The reward rises ({rewards[best]:.2f} to {rewards[-1]:.2f}) while gold falls ({max(gold):.2f} to "
    meaning += f"{gold[-1]:.2f}): it learns the reward's mistakes."
    remedy = f"Stop near step {looks[best]['step']}, {_hold(history)}, or train the reward model on more pairs."
    return [Alarm("reward_up_gold_down", step, meaning, remedy)]

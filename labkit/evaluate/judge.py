"""An LLM as judge (Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena), and an audit of it.

A judge is a function (prompts, options) -> for each prompt the probability of each option, or None where it could not
be read: `Local` here, `endpoint.Endpoint`, or any function of that form. A pair is a dict

    prompt, first, second    the question and two answers
    reference                a good answer, for the wording that shows one
    gold                     1: the first answer is better by the gold checker; -1: the second; 0: equal
    own                      1: the first answer is the judge's own; -1: the second; 0: neither

Every pair is judged twice, with sides swapped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from labkit import data, models
from labkit.errors import DataError, ModelError
from labkit.evaluate import answers, intervals, votes
from labkit.verdicts import Evidence

ASKED = "Question: {prompt}\n\nAnswer A: {a}\n\nAnswer B: {b}\n\n"
ENDING = 'End with one line: "Verdict: A" or "Verdict: B".'
WORDINGS = {
    "plain": "Here are a question and two answers to it.\n\n" + ASKED + "Which answer is better? " + ENDING,
    "rubric": "You compare two answers to a question. An answer is good if it is correct, says it in one short full "
    "sentence, declines what could hurt someone and declines nothing else. Correct comes first. Neither the order of "
    "the answers nor their length is a merit.\n\n" + ASKED + ENDING,
    "reference": "You compare two answers to a question with an answer that is known to be good.\n\n"
    "Known answer: {reference}\n\n" + ASKED + "Which one agrees with the known answer better? " + ENDING,
}
FEW = 10  # pairs; a bootstrap of fewer may see one kind of pair only, and be sure of it
GRADES = ("1", "2", "3", "4", "5")
GRADING = (
    "Question: {prompt}\n\nAnswer: {answer}\n\nHow good is this answer, from 1 (wrong or useless) to 5 (correct, in "
    'one short full sentence)? End with one line: "Verdict: " and the number.'
)


@dataclass
class Local:
    """A model on this machine. It writes nothing: "Verdict:" is put into its mouth, and p(A) and p(B) are compared.

    So no verdict is unreadable, nothing is sampled, and a model too small to keep to a format can be asked too.
    """

    model: torch.nn.Module
    tokenizer: object
    name: str
    batch_size: int = 8

    def estimate(self, prompts: Sequence[str]) -> dict:
        """{requests, tokens_in} of these prompts; a model on this machine costs time alone."""
        return {"requests": len(prompts), "tokens_in": sum(map(len, self.tokenizer(list(prompts))["input_ids"]))}

    def write(self, prompts: Sequence[str]) -> list[str]:
        """The judge's own answers to questions, for the audit of its liking for them."""
        return [row["text"] for row in answers.ask(self.model, self.tokenizer, list(prompts))]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float]]:
        """p(option | prompt, "Verdict:"), over the options alone. Raises ModelError, DataError before any is judged."""
        self.model.eval()
        work = [self._encoded(prompt, options) for prompt in prompts]
        most = models.context(self.model, default=0)
        if most and (long := [place for place, (ids, _) in enumerate(work) if len(ids) > most]):
            remedy = "Judge shorter answers, or take a judge with a longer context."
            raise DataError(f"prompts must fit the judge's {most} tokens", got=f"{len(long)} longer", remedy=remedy)
        found: list[list[float]] = [[] for _ in work]
        order = sorted(range(len(work)), key=lambda place: len(work[place][0]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            likely = self._next([work[place][0] for place in places])
            for place, row in zip(places, likely, strict=True):
                found[place] = row[work[place][1]].softmax(-1).tolist()
        return found

    def _encoded(self, prompt: str, options: Sequence[str]) -> tuple[list[int], list[int]]:
        """(tokens up to where the options part, each option's token there)."""
        asked = data.asked_ids(self.tokenizer, data.messages(prompt))
        rows = [asked + ids for ids in data.encode(self.tokenizer, [f"Verdict: {option}" for option in options])]
        shared = next(n for n, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
        letters = [row[shared] for row in rows]
        if len(set(letters)) < len(options):
            raise ModelError(
                f"the tokenizer of {self.name} must tell the verdicts apart by one token",
                got=list(options), remedy="Take another judge.",
            )  # fmt: skip
        return rows[0][:shared], letters

    def _next(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits of the next token, shape (rows, vocabulary), on the CPU."""
        longest = -(-max(map(len, rows)) // 32) * 32  # few different shapes: a CPU compiles kernels for every new one
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        mask = (torch.arange(longest, device=self.model.device) >= longest - lengths[:, None]).long()
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with models.autocast():
            output = self.model(ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1].float().cpu()


def prompts_for(pairs: Sequence[dict], wording: str = "plain") -> list[str]:
    """What the judge is asked: every pair with its first answer as A, then every pair with its second as A."""

    def asked(pair, a, b):
        shown = {"prompt": pair["prompt"], "a": pair[a], "b": pair[b], "reference": pair.get("reference", "")}
        return WORDINGS[wording].format(**shown)

    return [asked(pair, "first", "second") for pair in pairs] + [asked(pair, "second", "first") for pair in pairs]


def compare(judge: Callable, pairs: Sequence[dict], wording: str = "plain") -> list[dict]:
    """Each pair with forward, backward, verdict, leaning: 1 for the first answer, -1 for the second, 0 for neither.

    forward, backward: what the judge said with the first answer as A, as B; None where it could not be read. verdict:
    both, where they agree; else 0, a tie (Zheng et al., section 3.4). leaning: the sign of p(first) summed over both
    orders, less a half each, in which a liking for a side cancels out; 0 where an order could not be read.
    """
    found = judge(prompts_for(pairs, wording), ("A", "B"))
    rows = []
    for pair, ahead, behind in zip(pairs, found[: len(pairs)], found[len(pairs) :], strict=True):
        forward = None if ahead is None else ahead[0] - ahead[1]
        backward = None if behind is None else behind[1] - behind[0]
        sides = [None if lead is None else int(np.sign(lead)) for lead in (forward, backward)]
        both = sides[0] if sides[0] == sides[1] and sides[0] is not None else 0
        leaning = 0 if None in sides else int(np.sign(forward + backward))
        rows.append({**pair, "forward": sides[0], "backward": sides[1], "verdict": both, "leaning": leaning})
    return rows


def grade(judge: Callable, questions: Sequence[dict]) -> list[float | None]:
    """A mark for each {prompt, answer}: the mean of 1 to 5, weighed by their probability (G-Eval, Liu et al. 2023)."""
    found = judge([GRADING.format(prompt=one["prompt"], answer=one["answer"]) for one in questions], GRADES)
    marks = np.arange(1, 6)
    return [None if row is None else float(marks @ np.array(row) / sum(row)) for row in found]


def kappa(left, right) -> float:
    """Cohen's kappa (1960): agreement beyond what the two raters' own shares of each label give by chance.

        kappa = (observed - expected) / (1 - expected)

    0 where both use one and the same label only: there is nothing to agree on.
    """
    left, right = np.asarray(left), np.asarray(right)
    expected = sum((left == label).mean() * (right == label).mean() for label in np.unique([left, right]))
    return 0.0 if expected == 1 else float(((left == right).mean() - expected) / (1 - expected))


def agreement(rows: Sequence[dict], key: str = "gold", of: str = "verdict") -> tuple[float, float, float]:
    """(kappa, low, high) of the judge with row[key], over the pairs that row[key] decides; bootstrap over the pairs.

    Fewer than ten, or pairs of which row[key] always decides for the same side, show nothing: (kappa, -1, 1).
    """
    decided = [row for row in rows if row[key]]
    if not decided:
        raise DataError(f"pairs must be decided by {key}", got=f"{len(rows)} ties", remedy="Judge more pairs.")
    said, known = [row[of] for row in decided], [row[key] for row in decided]
    if len(decided) < FEW or len(set(known)) < 2:
        return kappa(said, known), -1.0, 1.0
    return intervals.bootstrap(kappa, said, known)


def consistency(rows: Sequence[dict]) -> tuple[float, float, float]:
    """(share, low, high) of pairs on which the judge says the same with sides swapped."""
    same = sum(row["forward"] is not None and row["forward"] == row["backward"] for row in rows)
    return intervals.proportion(same, len(rows))


def influences(rows: Sequence[dict]) -> dict[str, tuple[float, float, float]]:
    """{position, gold, length, own}, each (effect, low, high): what the judge's choices follow. 1 decides alone.

        position = mean over both orders of: 1 for A, -1 for B       of the pairs with both orders readable
        leaning  = gold g + length l + own o               by least squares, where a liking for a side cancels out

    g, l, o: 1 where the first answer is better, longer in words, the judge's own; -1 where the second is; else 0. An
    influence that is 0 for every pair is left out; what always goes together shares its effect. Bootstrap over pairs.
    """
    signs = {
        "gold": [row["gold"] for row in rows],
        "length": [int(np.sign(len(row["first"].split()) - len(row["second"].split()))) for row in rows],
        "own": [row.get("own", 0) for row in rows],
    }
    signs = {name: values for name, values in signs.items() if any(values)}
    readable = [row for row in rows if None not in (row["forward"], row["backward"])]
    sides = [(row["forward"] - row["backward"]) / 2 for row in readable]
    effects = {"position": intervals.bootstrap(np.mean, sides) if sides else (0.0, -np.inf, np.inf)}
    about, leaning = np.array(list(signs.values())).T, np.array([row["leaning"] for row in rows])
    for place, name in enumerate(signs):
        effects[name] = intervals.bootstrap(lambda x, y, n=place: (np.linalg.pinv(x) @ y)[n], about, leaning)
    return effects


def changed(
    rows: Sequence[dict], others: Sequence[dict], of: Sequence[str] = ("forward", "backward")
) -> tuple[float, float, float]:
    """(share, low, high) of pairs of which one of `of` is another: in one order at least; Wilson's interval."""
    different = sum(any(row[key] != other[key] for key in of) for row, other in zip(rows, others, strict=True))
    return intervals.proportion(different, len(rows))


def audit(
    rows: Sequence[dict], *, min_kappa: float = 0.4, min_consistency: float = 0.6, max_bias: float = 0.25
) -> list[Evidence]:
    """What a judge must show: kappa with gold, consistency under swapping, and no strong bias, as Evidence.

    A bias counts by its size: whichever way it goes, its whole interval must stay below max_bias. Of fewer than two
    pairs it may be anything from -1 to 1.
    """
    alike = 1 - intervals.proportion(len(rows), len(rows))[1]  # what as many that all agree leave open, by Wilson

    def open_to_doubt(middle: float, low: float, high: float) -> tuple[float, float, float]:
        """Drawn anew, pairs that are all alike show no spread."""
        return (middle, max(-1.0, low - alike), min(1.0, high + alike)) if low == high else (middle, low, high)

    found = [
        Evidence("kappa with gold", *open_to_doubt(*agreement(rows)), threshold=min_kappa),
        Evidence("consistent under swapping", *consistency(rows), threshold=min_consistency),
    ]
    for name, (effect, low, high) in influences(rows).items():
        if name != "gold":
            low, high = np.nan_to_num([low, high], posinf=1.0, neginf=-1.0)
            size = open_to_doubt(*((effect, low, high) if effect >= 0 else (-effect, -high, -low)))
            found.append(Evidence(f"size of {name} bias", *size, threshold=max_bias, direction="below"))
    return found


def usable(evidence: Sequence[Evidence]) -> str:
    """ "may be used", "may not be used", or "not shown": some interval straddles its threshold and none is beyond."""
    if any(one.refutes for one in evidence):
        return "may not be used"
    return "may be used" if all(one.supports for one in evidence) else "not shown: too few pairs"


def human_votes(file: Path | None = None) -> tuple[list[dict], int]:
    """(pairs with `vote` as gold has it, number of votes left out) from the arena's votes; ties are votes of 0.

    Only people's votes: a scripted voter's are left out.
    """
    sign = {"a": 1, "b": -1, "tie": 0, "both_bad": 0}
    cast = votes.read(file)
    pairs = [
        {
            "prompt": row["prompt"], "first": row["answers"]["a"], "second": row["answers"]["b"],
            "gold": 0, "own": 0, "vote": sign[row["choice"]],
        }
        for row in cast
        if row["voter"] == votes.HUMAN
    ]  # fmt: skip
    return pairs, len(cast) - len(pairs)

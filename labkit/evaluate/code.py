"""Code: HumanEval's 164 problems, a small set of one-line functions, and what share of samples passes.

A problem is {task_id, prompt, entry_point, canonical_solution, test} as in HumanEval (Chen et al. 2021); a program is
the prompt and what a model wrote after it. Every program runs in the sandbox, never here.
"""

import gzip
import itertools
import json
import math
import random
from collections.abc import Iterable

from datasets import Dataset

from labkit import data
from labkit.errors import ConfigError
from labkit.evaluate import sandbox

NEW_TOKENS = 1024  # that HumanEval allows, in the harness and in tasks/humaneval.yaml
NUMBER, TEXT, LIST = ("x", "n", "value", "number"), ("s", "text", "word", "line"), ("xs", "items", "numbers", "values")
# (argument's names, docstring, body, whether there is a second constant); {a}: the argument, {k} and {m}: constants
FUNCTIONS = [
    (NUMBER, "Return {a} plus {k}.", "return {a} + {k}"),
    (NUMBER, "Return {a} minus {k}.", "return {a} - {k}"),
    (NUMBER, "Return {a} times {k}.", "return {a} * {k}"),
    (NUMBER, "Return {a} times {k} plus {m}.", "return {a} * {k} + {m}"),
    (NUMBER, "Return {a} times {k} minus {m}.", "return {a} * {k} - {m}"),
    (NUMBER, "Return whether {a} is larger than {k}.", "return {a} > {k}"),
    (NUMBER, "Return whether {a} is smaller than {k}.", "return {a} < {k}"),
    (NUMBER, "Return the rest of {a} divided by {k}.", "return {a} % {k}"),
    (TEXT, "Return {a} in reverse.", "return {a}[::-1]"),
    (TEXT, "Return {a} in capital letters.", "return {a}.upper()"),
    (TEXT, "Return {a} repeated {k} times.", "return {a} * {k}"),
    (TEXT, "Return the first {k} letters of {a}.", "return {a}[:{k}]"),
    (TEXT, "Return the last {k} letters of {a}.", "return {a}[-{k}:]"),
    (TEXT, "Return {a} without its first {k} letters.", "return {a}[{k}:]"),
    (LIST, "Return the largest of {a} plus {k}.", "return max({a}) + {k}"),
    (LIST, "Return the smallest of {a} plus {k}.", "return min({a}) + {k}"),
    (LIST, "Return the sum of {a} times {k}.", "return sum({a}) * {k}"),
    (LIST, "Return the number of {a} plus {k}.", "return len({a}) + {k}"),
    (LIST, "Return the first {k} of {a}, sorted.", "return sorted({a}[:{k}])"),
    (LIST, "Return each of {a} plus {k}.", "return [one + {k} for one in {a}]"),
]
INPUTS = {
    NUMBER: [0, 1, -3, 8, 25, 100],
    TEXT: ["", "a", "river", "two words here"],
    LIST: [[3], [4, 1, 7], [9, -2, 5, 5, 30]],
}


def humaneval() -> list[dict]:
    """The 164 problems of HumanEval, in order."""
    with gzip.open(data.ROOT / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def functions(tested: int = 100) -> tuple[list[dict], list[dict]]:
    """(problems to learn from, problems to test on): every one-line function that FUNCTIONS makes, parted at random.

    The parting is always the same, so that the task lab_functions and whoever trains for it have one and the same test.
    No problem of the test is among the others: each has an argument and constants that its sentence has not been seen
    with. They test whether a model copies names and numbers into the right place, and no more.
    """
    made = []
    for names, sentence, body in FUNCTIONS:
        constants = [range(2, most) if f"{{{name}}}" in sentence else [0] for name, most in (("k", 10), ("m", 5))]
        for argument, k, m in itertools.product(names, *constants):
            filled = {"a": argument, "k": k, "m": m}
            made.append(problem(len(made), argument, sentence.format(**filled), body.format(**filled), INPUTS[names]))
    random.Random("functions-0").shuffle(made)
    return made[tested:], made[:tested]


def problem(number: int, argument: str, sentence: str, body: str, inputs: list) -> dict:
    """One function in HumanEval's form; its test compares with the body's values on the inputs."""
    head = f'def f({argument}):\n    """{sentence}"""\n'
    space: dict = {}
    exec(f"{head}    {body}", space)  # the lab's own text, from FUNCTIONS
    lines = [f"    assert candidate({one!r}) == {space['f'](one)!r}" for one in inputs]
    return {
        "task_id": f"functions-{number}",
        "prompt": head,
        "entry_point": "f",
        "canonical_solution": f"    {body}\n",
        "test": "def check(candidate):\n" + "\n".join(lines) + "\n",
    }


def as_row(problem: dict) -> dict:
    """The problem as a row of instructions, {prompt, answer}."""
    return {"prompt": problem["prompt"], "answer": problem["canonical_solution"].strip()}


def task(problem: dict, completion: str) -> dict:
    """What the sandbox needs to judge a completion; the prompt's own helpers are there for the test too."""
    test = f"{problem['test']}\ncheck({problem['entry_point']})"
    program = problem["prompt"] + completion
    return {"program": program, "test": test, "entry_point": problem["entry_point"], "setup": problem["prompt"]}


def passed(problems: Iterable[dict], completions: Iterable[str]) -> list[sandbox.Verdict]:
    """The verdict on each problem's completion."""
    return sandbox.run_all([task(*pair) for pair in zip(problems, completions, strict=True)])


def humaneval_dataset(**_):
    """HumanEval as lm-evaluation-harness takes a dataset: {"test": rows}."""
    return {"test": Dataset.from_list(humaneval())}


def functions_dataset(**_):
    """The one-line functions that are tested on, likewise."""
    return {"test": Dataset.from_list(functions()[1])}


def process_results(problem: dict, completions: list[str]) -> dict[str, float]:
    """What the harness calls with a problem and what the model wrote: pass@1 of the first completion, as it stands."""
    return {"pass@1": float(sandbox.run(**task(problem, completions[0])).passed)}


def process_functions(problem: dict, completions: list[str]) -> dict[str, float]:
    """The same for the one-line functions, which a model learns as answers: with the indentation put right."""
    return process_results(problem, [indented(completions[0])])


def indented(completion: str) -> str:
    """The completion as a function's body: a first line without indentation, as a chat model writes it, gets one."""
    return completion if completion[:1].isspace() else f"    {completion}"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that one of k samples passes, estimated without bias from `samples`, of which `right` passed.

    1 - C(n - c, k) / C(n, k), equation 1 of Chen et al. (2021). Raises ConfigError unless k <= samples.
    """
    if not 0 < k <= samples or not 0 <= right <= samples:
        what = "k must be from 1 to the number of samples, and right at most that number"
        raise ConfigError(what, got=(samples, right, k), remedy="Draw more samples of each problem, or lower k.")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)

"""Code benchmarks: HumanEval's own solutions pass, pass@k is unbiased, the small functions are parted cleanly."""

import gzip
import hashlib
import itertools
import random

import numpy as np
import pytest

from labkit import data
from labkit.errors import ConfigError
from labkit.evaluate import code

HASH = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"


def test_humaneval_is_the_packages_own():
    file = data.ROOT / "humaneval" / "HumanEval.jsonl.gz"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == HASH
    problems = code.humaneval()
    assert [one["task_id"] for one in problems] == [f"HumanEval/{n}" for n in range(164)]
    assert gzip.decompress(file.read_bytes()).count(b"\n") == 164


def test_every_solution_passes_and_no_empty_function_does():
    problems = code.humaneval()
    found = code.passed(problems, [one["canonical_solution"] for one in problems])
    assert [(one["task_id"], is_.reason) for one, is_ in zip(problems, found, strict=True) if not is_.passed] == []
    some = problems[::4]
    assert not any(one.passed for one in code.passed(some, ["    return None\n"] * len(some)))


def estimator_of_the_paper(n, c, k):
    """The numerically stable form printed in Chen et al. (2021), figure 3."""
    return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


def test_pass_at_k_is_the_papers():
    assert code.pass_at_k(10, 0, 5) == 0 and code.pass_at_k(10, 10, 1) == 1 and code.pass_at_k(10, 6, 5) == 1
    assert code.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert code.pass_at_k(5, 2, 2) == pytest.approx(0.7)
    for n, c, k in itertools.product((1, 7, 200), (0, 1, 5, 99), (1, 5, 100)):
        if k <= n and c <= n:
            assert code.pass_at_k(n, c, k) == pytest.approx(estimator_of_the_paper(n, c, k))


@pytest.mark.parametrize(("n", "c", "k"), [(6, 2, 3), (7, 1, 4), (5, 5, 2), (8, 3, 1)])
def test_pass_at_k_by_enumeration(n, c, k):
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert code.pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased_where_the_naive_estimate_is_not():
    rng, share, n, k = random.Random(0), 0.2, 10, 5
    counts = [sum(rng.random() < share for _ in range(n)) for _ in range(20_000)]
    truth = 1 - (1 - share) ** k
    assert np.mean([code.pass_at_k(n, c, k) for c in counts]) == pytest.approx(truth, abs=0.01)
    assert abs(np.mean([1 - (1 - c / n) ** k for c in counts]) - truth) > 0.02


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (3, -1, 1)])
def test_pass_at_k_refuses_what_cannot_be(n, c, k):
    with pytest.raises(ConfigError, match="k must be from 1"):
        code.pass_at_k(n, c, k)


def test_small_functions_are_parted_and_right():
    learn, test = code.functions()
    assert len(test) == 100 and len(learn) > 500
    assert not {one["prompt"] for one in learn} & {one["prompt"] for one in test}
    assert (learn, test) == code.functions()
    found = code.passed(test[::5], [one["canonical_solution"] for one in test[::5]])
    assert all(one.passed for one in found)
    assert not any(one.passed for one in code.passed(test[::5], ["    return None\n"] * 20))


def test_a_tested_function_takes_more_than_its_name():
    """No pattern of the test is solved by another's body: the inputs tell them apart."""
    _, test = code.functions()
    for one in test[:4]:
        argument = one["prompt"].split("(")[1].split(")")[0]
        alike = {other["canonical_solution"] for other in test if f"({argument})" in other["prompt"]}
        bodies = sorted(alike - {one["canonical_solution"]})[:8]
        assert len(bodies) >= 4
        assert not any(found.passed for found in code.passed([one] * len(bodies), bodies))


def test_a_completion_without_indentation_is_a_body():
    problem = code.functions()[1][0]
    answer = problem["canonical_solution"].strip()
    for said in (answer, f"    {answer}"):
        assert code.process_functions(problem, [said]) == {"pass@1": 1.0}
    assert code.process_functions(problem, [""]) == {"pass@1": 0.0}
    assert code.process_functions(problem, ["import os; os._exit(0)"]) == {"pass@1": 0.0}


def test_humaneval_is_judged_as_it_is_written():
    """As its authors judge it: a body without indentation is no program."""
    problem = code.functions()[1][0]
    answer = problem["canonical_solution"].strip()
    assert code.process_results(problem, [f"    {answer}"]) == {"pass@1": 1.0}
    assert code.process_results(problem, [answer]) == {"pass@1": 0.0}
    task = (data.ROOT.parent / "labkit" / "evaluate" / "tasks" / "humaneval.yaml").read_text()
    assert "code.process_results" in task and f"max_gen_toks: {code.NEW_TOKENS}" in task

"""The lab's benchmark items: whole, the same for a seed, and beyond cheap tricks, those of other bigram models too."""

import itertools
import json
import math
from collections import Counter

import pytest
from transformers import AutoTokenizer

from labkit import data
from labkit.evaluate import items


@pytest.mark.parametrize("style", ["mmlu", "hellaswag"])
def test_items_are_whole(style):
    made = items.made(style)
    assert len(made) > 150 and len({one["id"] for one in made}) == len(made)
    for one in made:
        assert len(set(one["choices"])) == 4 and all(one["choices"]) and one["question"]
        lengths = [len(choice) for choice in one["choices"]]
        assert max(lengths) - min(lengths) <= 2 * max(2, len(one["choices"][one["answer"]]) // 4)
    places = Counter(one["answer"] for one in made)
    assert set(places) == {0, 1, 2, 3} and min(places.values()) > len(made) / 8


def test_the_right_choice_is_the_questions_own_and_the_wrong_ones_are_of_its_kind():
    asked = {row["id"]: row for row in data.questions()}
    for one in items.made("mmlu"):
        row = asked[one["id"]]
        assert row["answer"].endswith(one["choices"][one["answer"]]) and row["prompt"] == one["question"]
        kin = [other["answer"] for other in asked.values() if other["kind"] == row["kind"]]
        assert all(any(answer.endswith(choice) for answer in kin) for choice in one["choices"])


@pytest.mark.parametrize("style", ["mmlu", "hellaswag"])
def test_no_trick_is_better_than_guessing(style):
    for name, (_, low, high) in items.baselines(items.made(style)).items():
        assert low <= 0.25 <= high, name


def test_a_trick_is_found_where_there_is_one():
    made = [{**one, "choices": [*one["choices"]], "answer": one["answer"]} for one in items.made("mmlu")]
    for one in made:
        one["choices"][one["answer"]] += " And so on and on."
    assert items.baselines(made)["longest"][0] == 1.0


@pytest.mark.parametrize("style", ["mmlu", "hellaswag"])
def test_another_bigram_model_guesses_too(style):
    """One over the tokenizer's tokens, smoothed by adding one, that had no part in choosing the items."""
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    texts = [
        json.loads(line)["text"] for line in itertools.islice(data.LAB["corpus"].open(encoding="utf-8"), 0, None, 4)
    ]
    single, pairs = Counter(), Counter()
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        single.update(ids)
        pairs.update(itertools.pairwise(ids))

    def log_prob(question, choice):
        before = tokenizer(question, add_special_tokens=False)["input_ids"][-1:]
        ids = before + tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        return sum(math.log((pairs[p] + 1) / (single[p[0]] + len(tokenizer))) for p in itertools.pairwise(ids))

    made = items.made(style)
    right = 0
    for one in made:
        scores = [log_prob(one["question"], choice) / len(choice) for choice in one["choices"]]
        right += scores.index(max(scores)) == one["answer"]
    share = right / len(made)
    assert abs(share - 0.25) < 3 * math.sqrt(0.25 * 0.75 / len(made)), share


def test_items_repeat_for_a_seed_and_change_with_it():
    first = items.made("hellaswag")
    items.made.cache_clear()
    assert items.made("hellaswag") == first
    assert items.made("hellaswag", seed=1) != first


def test_rows_are_written_for_sft(store):
    file = items.write("few", [{"prompt": "é?", "answer": "a"}, {"prompt": "b", "answer": "c"}])
    assert file.is_relative_to(store) and len(data.instructions(str(file))[0]) == 1

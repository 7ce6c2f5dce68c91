"""Preference pairs of one's own: every form that trl takes, and every fault counted and named by row."""

import itertools
import json

import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer
from trl.data_utils import maybe_extract_prompt

from labkit import data, models, pipeline, preferences
from labkit.config import DPOConfig
from labkit.errors import DataError
from labkit.evaluate import lengths

ASK = {"role": "user", "content": "What is an LLM?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("A large language model.", "A degree in law."))
PLAIN = {"prompt": ASK["content"], "chosen": GOOD["content"], "rejected": BAD["content"]}
FORMS = {
    "plain": PLAIN,
    "prompt as messages": {**PLAIN, "prompt": [ASK]},
    "conversational": {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
    "prompt left out": {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
    "prompt given twice": {"prompt": ASK["content"], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
}


@pytest.fixture
def write(tmp_path):
    def write(rows, name="own.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pair(write, form):
    train, held_out = preferences.pairs(write([FORMS[form]] * 3))
    assert (len(train), len(held_out)) == (2, 1)
    row = train[0]
    assert {name: row[name] for name in PLAIN} == PLAIN and row["messages"] == [ASK] and row["row"] == 2


def test_several_turns_are_kept(write):
    before = [{"role": "system", "content": "Be short."}, ASK, GOOD, {"role": "user", "content": "And a token?"}]
    row = {"chosen": [*before, {"role": "assistant", "content": "A piece of text."}], "rejected": [*before, BAD]}
    train, _ = preferences.pairs(write([row] * 2))
    assert train[0]["messages"] == before and train[0]["prompt"].endswith(
        "assistant: A large language model.\nuser: And a token?"
    )
    assert maybe_extract_prompt(row)["prompt"] == train[0]["messages"]  # trl's own reading


def test_pairs_as_tokens_are_what_sft_learns(write):
    tokenizer = AutoTokenizer.from_pretrained(data.BASE)
    # as smol's: a line break after the end, which no model ever samples
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|end|>'", "'<|end|>\\n'")
    train, _ = preferences.pairs(write([PLAIN] * 2))
    row = preferences.tokens(train, tokenizer)[0]
    for side in ("chosen", "rejected"):
        learned = data.chat_row(tokenizer, PLAIN["prompt"], PLAIN[side])
        assert [*row["prompt_ids"], *row[f"{side}_ids"]] == learned["input_ids"]
        assert row[f"{side}_ids"][-1] == tokenizer.eos_token_id
        assert row[f"{side}_ids"] == [label for label in learned["labels"] if label != data.IGNORED]
    assert row["length"] == len(PLAIN["prompt"]) + max(len(PLAIN["chosen"]), len(PLAIN["rejected"]))


@pytest.mark.parametrize("how", ["folder", "folder of splits", "parquet", "folder of files"])
def test_a_dataset_is_read_like_a_file(tmp_path, write, how):
    rows = Dataset.from_list([PLAIN | {"prompt": f"{n}?"} for n in range(4)])
    path = tmp_path / "own"
    if how == "folder":
        rows.save_to_disk(path)
    elif how == "folder of splits":
        DatasetDict(train=rows, test=rows.select([0])).save_to_disk(path)
    elif how == "parquet":
        path = tmp_path / "own.parquet"
        rows.to_parquet(path)
    else:
        path.mkdir()
        rows.to_json(path / "train.jsonl")
    train, held_out = preferences.pairs(str(path))
    assert (train["prompt"], held_out["prompt"]) == (["1?", "2?", "3?"], ["0?"])
    assert preferences.data_hash(str(path)) == preferences.data_hash(str(path)) != preferences.data_hash(write([PLAIN]))


FAULTS = {
    "have an empty answer": {**PLAIN, "chosen": "  "},
    "have an empty prompt": {**PLAIN, "prompt": ""},
    "have the same answer as chosen and rejected": {**PLAIN, "rejected": PLAIN["chosen"] + " "},
    "repeat the prompt as the chosen answer": {**PLAIN, "chosen": PLAIN["prompt"]},
    "have tool calls, which are not trained on here": {
        "prompt": [ASK],
        "chosen": [GOOD | {"content": "", "tool_calls": [{"name": "look_up"}]}],
        "rejected": [BAD],
    },
    "are no pair of texts or messages": {**PLAIN, "rejected": None},
    "have no prompt": {**PLAIN, "prompt": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_and_its_rows_are_named(write, fault):
    rows = [PLAIN] * 30
    rows[4] = rows[17] = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        preferences.pairs(write(rows))
    assert f"2 of 30 pairs in own.jsonl cannot be learned from: 2 {fault} (lines 5, 18)" in str(caught.value)


def test_all_faults_are_told_at_once_and_many_rows_are_cut_short(write):
    rows = [PLAIN, *[FAULTS["have an empty answer"]] * 12, FAULTS["have an empty prompt"]]
    with pytest.raises(DataError) as caught:
        preferences.pairs(write(rows))
    assert "13 of 14 pairs" in str(caught.value) and "(lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...)" in str(caught.value)
    assert "1 have an empty prompt (line 14)" in str(caught.value)


SWAPPED = {
    "have a prompt that does not end with the user's": {"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]},
    "have an answer that is not the assistant's": {"prompt": [ASK], "chosen": [ASK], "rejected": [BAD]},
    "ask in chosen and not in prompt": {**PLAIN, "prompt": PLAIN["chosen"], "chosen": PLAIN["prompt"]},
}


@pytest.mark.parametrize("fault", SWAPPED)
def test_swapped_columns_are_found(write, fault):
    with pytest.raises(DataError) as caught:
        preferences.pairs(write([SWAPPED[fault]] * 4))
    assert f"4 {fault}" in str(caught.value) and "swapped?" in str(caught.value)


def test_the_labs_pairs_turned_round_are_found_but_a_few_wrong_labels_are_not_refused(write):
    rows = [json.loads(line) for line in data.LAB["pairs"].open(encoding="utf-8")][:40]
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    with pytest.raises(DataError, match="40 prefer what the lab's own pairs reject"):
        preferences.pairs(write(turned))
    preferences.pairs(write(rows[:18] + turned[18:]))  # labels of which half are noise
    some, _ = preferences.pairs(write(rows[:30] + turned[30:]))
    said = preferences.check(some, models.load("smoke")[1], 999)
    assert any("prefer what the lab's own pairs reject (lines 32, 33, 34" in note for note in said)


@pytest.mark.parametrize("swapped", list(itertools.permutations(("prompt", "chosen", "rejected"))))
@pytest.mark.parametrize("name", ["pairs", "pairs_held_out"])
def test_the_labs_columns_in_any_other_order_are_found(write, swapped, name):
    rows = data.lines(data.LAB[name])[:300]
    names = ("prompt", "chosen", "rejected")
    rows = [dict(zip(names, (row[column] for column in swapped), strict=True)) for row in rows]
    rows[7]["chosen"] = ""  # another fault beside it
    with pytest.raises(DataError) as caught:
        preferences.pairs(write(rows))
    assert ("swapped?" in str(caught.value)) == (swapped != ("prompt", "chosen", "rejected"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "a", "chosen": "b"}] * 2, "lacks the columns ['rejected']"),
        ([PLAIN, {"chosen": "b", "rejected": "c"}, {**PLAIN, "chosen": 4}], "1 have no prompt (line 2)"),
        ([{"chosen": "b"}, PLAIN, PLAIN], "1 are no pair of texts or messages (line 1)"),
        ([PLAIN, {**PLAIN, "chosen": 42}], "1 are no pair of texts or messages (line 2)"),
        ([{**FORMS["conversational"], "chosen": []}, PLAIN], "1 have an empty answer (line 1)"),
        ([{"chosen": [ASK, GOOD], "rejected": [ASK, BAD, ASK, GOOD]}] * 2, "differ in more than the last message"),
    ],
)
def test_what_cannot_be_read_as_pairs_is_refused(write, rows, says):
    with pytest.raises(DataError) as caught:
        preferences.pairs(write(rows))
    assert says in str(caught.value)


def test_rows_of_several_forms_are_one_set(write):
    train, held_out = preferences.pairs(write([{**PLAIN, "prompt": f"{n}?"} for n in range(4)] + list(FORMS.values())))
    assert len(train) + len(held_out) == 4 + len(FORMS)


def test_answers_that_differ_only_beyond_the_context_are_refused(write):
    long = {**PLAIN, "chosen": "so " * 80 + "yes.", "rejected": "so " * 80 + "no."}
    train, _ = preferences.pairs(write([PLAIN, long, PLAIN]))
    with pytest.raises(DataError, match=r"1 of \d pairs are one and the same in 64 tokens \(line 2\)"):
        preferences.check(train, models.load("smoke")[1], 64)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "no where", "nobody/nothing"])
def test_a_source_that_is_not_there_is_refused(monkeypatch, source):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        preferences.pairs(source)
    assert source in str(caught.value)


def test_lengths_repetitions_and_contradictions(write):
    _, tokenizer = models.load("smoke")
    long = {**PLAIN, "rejected": "so " * 80}
    back = {**PLAIN, "chosen": PLAIN["rejected"], "rejected": PLAIN["chosen"]}
    train, _ = preferences.pairs(write([PLAIN, PLAIN, back, PLAIN, long]))
    assert preferences.check(train, tokenizer, 64) == [
        "2 of 4 pairs prefer what another row rejects (lines 3, 4)",
        "1 of 4 pairs are given twice (line 4)",
        "1 of 4 pairs are cut at 64 tokens (line 5)",
    ]
    full = {**PLAIN, "prompt": "so " * 80}
    train, _ = preferences.pairs(write([PLAIN, PLAIN, full, full]))
    with pytest.raises(
        DataError, match=r"2 of 2 pairs have a prompt that fills the context of 64 tokens \(lines 3, 4\)"
    ):
        preferences.check(train, tokenizer, 64)


def test_brief_pairs_prefer_the_shorter_answer_and_ask_nothing_of_mt_bench():
    train, held_out = preferences.pairs("brief")
    rows = [*train, *held_out]
    assert len(rows) > 60 and all(2 * len(row["chosen"]) < len(row["rejected"]) for row in rows)
    asked = {data.normalised(row["prompt"]) for row in rows}
    assert len(asked) == len(rows) and len({row["kind"] for row in rows}) >= 6
    assert not asked & {data.normalised(row["prompt"]) for row in lengths.open_questions()}
    assert preferences.data_hash("brief") == data.file_hash("brief", "pairs") != preferences.data_hash("lab")


def test_a_prompt_that_is_held_out_is_not_trained_on(write):
    rows = [{**PLAIN, "prompt": f"Question {n % 50}", "rejected": f"Wrong {n}."} for n in range(300)]
    train, held_out = preferences.pairs(write(rows))
    assert set(held_out["prompt"]) == {f"Question {n}" for n in range(0, 50, 10)}
    assert (len(train), len(held_out)) == (270, 30) and not set(train["prompt"]) & set(held_out["prompt"])
    train, _ = preferences.pairs(write([{**PLAIN, "rejected": f"Wrong {n}."} for n in range(20)]))
    assert len(train) == 18  # one prompt throughout: nothing else could be trained on


def test_dpo_trains_on_conversations_and_refuses_before_it_starts(store, write):
    options = {"model": "smoke", "steps": 2, "batch_size": 2, "eval_every": 2}
    own = write([FORMS["conversational"]] * 8)
    said = []
    run = pipeline.train_stage("dpo", DPOConfig(data=own, **options), say=said.append)
    assert run.status == "finished" and any("7 of 8 pairs are given twice" in line for line in said)
    full = write([{**PLAIN, "prompt": "so " * 3000}] * 8, "full.jsonl")
    with pytest.raises(DataError, match="fills the context"):
        pipeline.train_stage("dpo", DPOConfig(data=full, **options))

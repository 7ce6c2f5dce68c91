"""The data: nothing held out leaks into training, every row is whole, the build repeats itself, mistakes are named."""

import copy
import functools
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from collections import defaultdict

import pytest
import torch
from datasets import Dataset

from labkit import data, models, tickets
from labkit.errors import DataError
from labkit.evaluate import checkers, perplexity

TRAINED = ("instructions", "instructions_held_out", "pairs", "pairs_held_out")
DOCUMENTS = ("corpus", "corpus_held_out")
LARGEST = 30_000_000  # bytes of data/ in all
SOURCES = {  # folder: its files and the columns of their rows (None: a row is a string)
    "factbook": {"countries.jsonl": {"name", "capital", "region", "language"}},
    "wordnet": {"nouns.jsonl": {"name", "definition", "kind", "article"}},
    "mendeleev": {"elements.jsonl": {"name", "symbol", "number", "group"}},
    "wikipedia": {"leads.jsonl": None},
    "words": {"easy_words.jsonl": None},
    "glossary": {},
    "humaneval": {},  # packed; see test_code
    "mt_bench": {},  # see test_lengths
}
COLUMNS = {
    "corpus": {"kind", "text"},
    "instructions": {"prompt", "answer", "style", "kind", "entity"},
    "pairs": {"prompt", "chosen", "rejected", "fault", "kind"},
    "questions": set("id split kind entity prompt answer must share none subject safe key terse".split()),
}
BUILD = str(data.ROOT / "build")


@functools.cache
def rows(name):
    path = data.LAB[name] if name in data.LAB else data.ROOT / name
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def held_out_questions(*splits):
    return [row for row in rows("questions") if not splits or row["split"] in splits]


class Phrases:
    """Finds many phrases in many texts, as whole words of normalised text; looked up by their last two words."""

    def __init__(self, texts):
        self.by_end = defaultdict(set)
        for words in {tuple(data.normalised(text).split()) for text in texts}:
            assert len(words) >= 2, f"too short to look for: {words}"
            self.by_end[words[-2:]].add(words)

    def found(self, text):
        """(phrase, the word after it or "") for every phrase in the text."""
        words = tuple(data.normalised(text).split())
        for place, end in enumerate(itertools.pairwise(words), start=2):
            for phrase in self.by_end.get(end, ()):
                if words[max(0, place - len(phrase)) : place] == phrase:
                    yield " ".join(phrase), words[place] if place < len(words) else ""


@functools.cache
def relations():
    """data/build/relations.py; the folder leaves the path at once, for it shadows a package named requests."""
    sys.path.insert(0, BUILD)
    try:
        import relations as module
    finally:
        sys.path.remove(BUILD)
    return module


@functools.cache
def entities():
    glossary = json.loads((data.ROOT / "glossary" / "glossary.json").read_text(encoding="utf-8"))
    files = {
        "country": "factbook/countries.jsonl",
        "noun": "wordnet/nouns.jsonl",
        "element": "mendeleev/elements.jsonl",
    }
    return relations().entities({**{kind: rows(path) for kind, path in files.items()}, "term": glossary})


@functools.cache
def longer_names():
    """(a name that begins another entity's name, the word that follows in it): ("loss", "mask")."""
    pairs = set()
    for entity in entities():
        words = data.normalised(entity["name"]).split()
        pairs |= {(" ".join(words[:n]), words[n]) for n in range(1, len(words))}
    return pairs


def of_another(phrase, after):
    """Whether a question found in a text goes on there, and so is about another entity (a loss mask, not a loss)."""
    return any((f" {phrase}".endswith(f" {name}") and word == after) for name, word in longer_names())


def texts(name):
    for number, row in enumerate(rows(name)):
        for column in ("prompt", "answer", "chosen", "rejected", "text"):
            if column in row:
                yield number, row[column]


# No leak


def test_the_phrase_finder_finds_whole_words_only():
    phrases = Phrases(["7 + 24", "Cat, dog!"])
    assert list(phrases.found("What is 7 + 24? A cat\ndog.")) == [("7 + 24", "a"), ("cat dog", "")]
    assert not list(phrases.found("17 + 24, 7 + 245, cat and dog, cats dog"))
    assert of_another("what do we mean by a loss", "mask") and not of_another("what do we mean by a loss", "is")


@pytest.mark.parametrize("name", TRAINED)
def test_no_test_prompt_is_a_training_prompt(name):
    held_out = {data.normalised(row["prompt"]) for row in held_out_questions()}
    assert not [row for row in rows(name) if data.normalised(row["prompt"]) in held_out]


@pytest.mark.parametrize("name", (*TRAINED, *DOCUMENTS))
def test_no_text_holds_a_test_prompt_or_a_test_input(name):
    prompts = Phrases(row["prompt"] for row in held_out_questions())
    keys = Phrases(row["key"] for row in held_out_questions() if row["key"])
    asked = [(n, *hit, text) for n, text in texts(name) for hit in prompts.found(text) if not of_another(*hit)]
    assert not asked, f"{len(asked)} test prompts, first {asked[0]}"
    inputs = [(n, *hit, text) for n, text in texts(name) for hit in keys.found(text)]
    assert not inputs, f"{len(inputs)} test inputs, first {inputs[0]}"


@pytest.mark.parametrize("name", (*TRAINED, *DOCUMENTS))
def test_no_text_holds_a_test_sum_or_comparison_in_other_words(name):
    def numbers(kind):
        return {
            frozenset(map(int, re.findall(r"\d+", row["key"]))) for row in held_out_questions() if row["kind"] == kind
        }

    wordings = {
        "sum": r"\b(\d+) (?:\+|plus) (\d+)\b|\bsum of (\d+) and (\d+)\b",
        "larger": r"\b(\d+) or (\d+)\b|\b(\d+) is (?:larger|smaller) than (\d+)\b",
    }
    for kind, wording in wordings.items():
        held_out, pattern = numbers(kind), re.compile(wording)
        assert held_out
        for number, text in texts(name):
            for match in pattern.findall(text):
                assert frozenset(map(int, filter(None, match))) not in held_out, (kind, number, text)


def test_no_question_on_a_held_out_entity_is_ever_asked():
    held_out = {(row["entity"], row["kind"]) for row in held_out_questions("entity")}
    for name in ("instructions", "instructions_held_out"):
        assert not [row for row in rows(name) if (row["entity"], row["kind"]) in held_out]

    names = {entity for entity, _ in held_out}
    fill, templates = relations().fill, relations().RELATIONS
    questions = {
        fill(template, entity, relation)
        for entity in entities()
        for relation in entity["values"]
        if (entity["name"], relation) in held_out
        for template in templates[relation]["asked"] + templates[relation]["held_out"]
    }
    assert len(names) > 80 and {row["prompt"] for row in held_out_questions("entity")} <= questions
    every = {data.normalised(question) for question in questions}
    for name in TRAINED:
        assert not [row for row in rows(name) if data.normalised(row["prompt"]) in every], name
    phrases = Phrases(questions)
    for name in DOCUMENTS:  # the question sheets among them
        hits = [(n, *hit) for n, text in texts(name) for hit in phrases.found(text) if not of_another(*hit)]
        assert not hits, hits[:3]


def test_facts_of_held_out_entities_are_in_pretraining():
    text = "\n".join(row["text"] for row in rows("corpus"))
    for row in held_out_questions("entity"):
        assert row["entity"] in text, row["entity"]


def test_no_held_out_word_is_asked_for_in_capitals():
    words = {row["entity"] for row in held_out_questions("skill") if row["kind"] == "capitals"}
    assert len(words) == 30
    for name in TRAINED:
        for row in rows(name):
            if row["kind"] == "capitals":
                assert not words & set(data.normalised(row["prompt"]).split()), row
                shouted = re.findall(r"\b[A-Z]{3,}\b", row.get("answer") or row["chosen"] + " " + row["rejected"])
                assert not words & {word.lower() for word in shouted}, row


def test_no_held_out_request_is_ever_asked():
    requests = Phrases(row["entity"] for row in held_out_questions("how-to", "unsafe"))
    for name in TRAINED:
        hits = [(number, hit) for number, text in texts(name) for hit in requests.found(text)]
        assert not hits, hits[:3]
    unsafe = Phrases(row["entity"] for row in held_out_questions("unsafe"))
    assert not [hit for name in DOCUMENTS for _, text in texts(name) for hit in unsafe.found(text)]


def test_the_pairs_measured_on_are_not_trained_and_the_held_out_rows_differ():
    for train, held_out in (("instructions", "instructions_held_out"), ("pairs", "pairs_held_out")):
        seen = {tuple(sorted(row.items())) for row in rows(train)}
        assert not [row for row in rows(held_out) if tuple(sorted(row.items())) in seen]


# Every file is whole


def test_every_row_has_its_columns():
    for name in data.LAB:
        expected = COLUMNS[name.removesuffix("_held_out")]
        assert rows(name)
        for number, row in enumerate(rows(name)):
            assert set(row) == expected, (name, number)
            for column in expected & {"prompt", "answer", "chosen", "rejected", "text", "kind", "style", "fault"}:
                assert isinstance(row[column], str) and row[column].strip(), (name, number, column)
    ids = [row["id"] for row in rows("questions")]
    assert len(set(ids)) == len(ids)
    assert {row["split"] for row in held_out_questions()} == {"phrasing", "entity", "skill", "how-to", "unsafe"}


def test_no_pair_prefers_nothing():
    assert not [row for name in ("pairs", "pairs_held_out") for row in rows(name) if row["chosen"] == row["rejected"]]


@pytest.mark.parametrize("folder", SOURCES)
def test_every_source_has_its_rows_its_credit_and_its_licence(folder):
    for path, columns in SOURCES[folder].items():
        found = rows(f"{folder}/{path}")
        assert len(found) > 100
        assert all(isinstance(row, str) and row if columns is None else set(row) == columns for row in found)
        assert f"{len(found):,}" in (data.ROOT / folder / "README.md").read_text(encoding="utf-8")
    readme = (data.ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert all(part in readme for part in ("**Source**", "**Licence**", "**Credit**", "## What was changed"))
    assert len((data.ROOT / folder / "LICENSE").read_text(encoding="utf-8")) > 1000


def test_the_index_names_every_file_and_its_rows():
    index = (data.ROOT / "README.md").read_text(encoding="utf-8")
    for name, path in data.LAB.items():
        line = next(line for line in index.splitlines() if f"`{path.parent.name}/{path.name}`" in line)
        assert f"{len(rows(name)):,}" in line, line
    assert all(f"]({folder})" in index for folder in SOURCES)


def test_the_data_stays_small():
    sizes = {
        path: path.stat().st_size for path in data.ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert sum(sizes.values()) <= LARGEST, sorted(((size, path.name) for path, size in sizes.items()), reverse=True)[:5]


# The build repeats itself

SCRIPT = """
import hashlib, json, random, sys
sys.path.insert(0, sys.argv[1])
import documents, questions, relations
words = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]
found = {
    "country": [dict(name=f"Land{n}", capital=f"City{n}", region="Europe", language="Lang") for n in range(45)],
    "noun": [dict(name=f"noun{n}", article="a", definition=f"a thing of sort {n}", kind="thing") for n in range(45)],
    "element": [dict(name=f"element{n}", symbol=f"E{n}", number=n, group="metal") for n in range(45)],
    "term": [dict(term=f"TERM{n}", article="a", expansion="", definition=f"a model of {n}", purpose="test",
                  fact="It is one.", keys=["model"]) for n in range(45)],
}
everything = relations.entities(found)
keys = {row["term"]: row["keys"] for row in found["term"]}

def digest(rows):
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

def build(seed):
    natural = {"sentence": ["A sentence."], "article": ["An article."]}
    forbidden = {"sums": {(1, 2)}, "order": {(1, 2, 3)}, "lists": {tuple(words[:3])}}
    sheet = [f"What is {word}?" for word in words[:20]]
    rows = documents.corpus(everything, words, words[:80], sheet, ["To do it, do it."], natural, forbidden, seed)
    split = questions.Split(everything, words[:80], keys, words, seed)
    tests = split.tests(seed)
    asked = split.training_questions(random.Random(seed), 500, set())
    rng = random.Random(seed)
    answers = [questions.styled(rng, row) + questions.rejected(rng, row, asked) for row in asked]
    return [digest(part) for part in (rows, tests, asked, answers)]

print(json.dumps([build(int(seed)) for seed in sys.argv[2:]]))
"""


def built(hash_seed, *seeds):
    """Digests of what the builders make of synthetic facts, in a process with its own order of sets."""
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-c", SCRIPT, BUILD, *map(str, seeds)]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def test_the_same_seed_builds_the_same_rows_and_another_seed_others():
    first, again, other = built(1, 0, 0, 1)
    assert first == again == built(2, 0)[0]
    assert all(a != b for a, b in zip(first, other, strict=True))


# Mistakes in a reader's own file are named


@pytest.fixture(scope="module")
def tokenizer():
    return models.train_tokenizer(["What is a river? A river is a stream of water. 12 + 7 = 19."] * 20, 300)


def refused(make, *parts):
    with pytest.raises(DataError) as caught:
        make()
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.fixture
def jsonl(tmp_path):
    def write(*lines, name="own.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return str(path)

    return write


def test_files_that_cannot_be_used_are_named(jsonl):
    refused(lambda: data.corpus("nowhere.jsonl"), "data file not found", "nowhere.jsonl")
    refused(lambda: data.file_hash("nowhere.jsonl", "corpus"), "data file not found", "nowhere.jsonl")
    refused(lambda: data.corpus(jsonl("{not json")), "line 1 of own.jsonl is no JSON object", "one object a line")
    ask = {"prompt": "Hi?", "answer": "Hello."}
    refused(lambda: data.instructions(jsonl({"prompt": "Hi?"}, {"prompt": "So?"})), "lacks the columns ['answer']")
    refused(
        lambda: data.instructions(jsonl(ask, ask, {**ask, "answer": " "})),
        "1 of 3 rows in own.jsonl",
        "an empty answer (line 3)",
    )
    refused(lambda: data.instructions(jsonl(ask)), "too few rows", "got 1")


@pytest.mark.parametrize("line", [{"prompt": 3, "answer": "Hello."}, "3"])
def test_rows_of_another_type_are_refused(jsonl, line):
    refused(lambda: data.instructions(jsonl({"prompt": "Hi?", "answer": "Hello."}, line)), "own.jsonl")


def test_own_files_are_split_and_texts_are_cut_at_empty_lines(jsonl):
    train, held_out = data.corpus(jsonl("one\nline", "", "two", "", "", "three", name="own.txt"))
    assert train["text"] == ["two", "three"] and held_out["text"] == ["one\nline"]
    train, held_out = data.corpus(jsonl(*({"text": f"t{n}"} for n in range(300))))
    assert held_out["text"][:3] == ["t0", "t37", "t74"] and len(train) == 291
    train, held_out = data.corpus(jsonl(*({"text": f"t{n}"} for n in range(1000))))
    assert held_out["text"] == [f"t{n}" for n in range(0, 1000, 100)] and len(train) == 990


def test_the_lab_files_and_their_hashes():
    assert data.corpus()[0].column_names == ["kind", "text"]
    assert data.questions() == rows("questions")
    expected = hashlib.sha256(data.LAB["pairs"].read_bytes()).hexdigest()[:16]
    assert data.file_hash("lab", "pairs") == expected == data.file_hash(str(data.LAB["pairs"]), "corpus")


def test_who_answers_slowly_is_asked_less():
    every, kinds = rows("questions"), {(row["split"], row["kind"]) for row in rows("questions")}
    assert data.questions("nano") == every and data.questions("smol") == every[::4]
    smoke = data.questions("smoke")
    assert {(row["split"], row["kind"]) for row in smoke} == kinds and len(smoke) <= 2 * len(kinds)
    assert data.questions("smol", source="glossary") == data.questions(source="glossary")


def test_a_conversation_learns_every_answer_and_no_question(tokenizer):
    turns = [("What is a river?", "A stream of water."), ("And a lamp?", "A light."), ("12", "7")]
    row = data.conversation(tokenizer, turns)
    alone = [data.chat_row(tokenizer, *turn) for turn in turns]
    assert row["input_ids"] == list(itertools.chain(*(one["input_ids"] for one in alone)))  # the lab's own template
    assert row["labels"] == list(itertools.chain(*(one["labels"] for one in alone)))
    rows = Dataset.from_list([{"prompt": prompt, "answer": answer} for prompt, answer in turns])
    two = data.chat_rows(tokenizer, rows, loss_on="assistant", max_length=99, turns=2)
    assert two["labels"] == [row["labels"][: -len(alone[2]["labels"])], alone[2]["labels"]]


def test_a_system_prompt_is_paid_once_in_a_conversation(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = (
        "{{ 'Be kind. ' }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    row = data.conversation(plain, [("a", "b"), ("c", "d")])
    assert plain.decode(row["input_ids"]).count("Be kind.") == 1
    learned = "".join(plain.decode([label]) if label != data.IGNORED else "~" for label in row["labels"])
    assert [part for part in learned.split("~") if part] == ["b<|end|>", "d<|end|>"]


THINKS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|> ' + m['content'] }}{% else %}"
    "{{ '<|assistant|>' + OPENED + ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' + ASKED }}{% endif %}"
)


@pytest.mark.parametrize(
    ("opened", "asked", "wanted"),
    [
        ("''", "'<think>'", ""),  # as DeepSeek's distilled models: an answer without thinking has no mark of it
        ("'<think></think>'", "'<think>' + ('' if enable_thinking else '</think>')", "<think></think>"),  # as Qwen3
        ("'<think></think>'", "'<think>'", "<think>"),
    ],
)
def test_a_model_that_thinks_is_asked_as_it_is_trained(tokenizer, opened, asked, wanted):
    thinks = copy.deepcopy(tokenizer)
    thinks.chat_template = THINKS.replace("OPENED", opened).replace("ASKED", asked)
    text = data.asked(thinks, data.messages("a river"))
    assert text == f"<|user|> a river<|assistant|>{wanted}"
    row = data.chat_row(thinks, "a river", "water")
    before = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == data.IGNORED]
    assert thinks.decode(before) == text


def test_what_was_asked_is_never_cut_away(tokenizer):
    """As Mistral's templates, which put the system prompt before the last turn alone."""
    moves = copy.deepcopy(tokenizer)
    moves.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|> ' }}"
        "{% if loop.last %}{{ messages[0]['content'] + ' ' }}{% endif %}{{ m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|assistant|> ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a river"}]
    assert data.asked(moves, said) == "<|user|> Be kind. a river<|assistant|>"


def test_thinking_is_no_part_of_an_answer():
    assert data.spoken("<think>\nLet me see. 12\n</think>\n\n19") == data.spoken(" 19\n") == "19"
    assert data.spoken("<think> never ends") == "<think> never ends"


def test_rows_that_are_cut_are_told(tokenizer):
    said, rows = [], Dataset.from_list([{"prompt": "12", "answer": text} for text in ("7", "8", "9 " * 30)])
    data.chat_rows(tokenizer, rows, loss_on="assistant", max_length=20, say=said.append)
    assert said == ["1 of 3 rows are cut at 20 tokens, without an end (first: row 2)"]


def test_a_file_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "latin.jsonl"
    file.write_bytes('{"prompt": "Où?", "answer": "Là."}\n'.encode("latin-1"))
    refused(lambda: data.lines(file), "latin.jsonl is not UTF-8", "Save it as UTF-8")


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    data.conversation(plain, [("a", "b")])
    with pytest.raises(DataError, match=r"must not rewrite earlier turns.*turns = 1"):
        data.conversation(plain, [("a", "b"), ("c", "d")])


def test_replay_mixes_in_plain_english_that_no_test_reads(tokenizer):
    rows = Dataset.from_list([data.chat_row(tokenizer, "Say it", "one two three four five " * 9)] * 60)
    assert data.with_replay(tokenizer, rows, 0.0, seed=0) is rows
    mixed = data.with_replay(tokenizer, rows, 0.25, seed=0)
    assert len(mixed) == 80 and mixed[:60] == rows[:60]
    plain = mixed.select(range(60, 80))
    assert all(row["labels"] == row["input_ids"] and len(row["labels"]) == len(rows[0]["labels"]) for row in plain)
    text = " ".join(tokenizer.batch_decode(list(plain["input_ids"])))
    assert any(one["text"] in text for one in data.corpus()[0] if one["kind"] == "sentence")
    half = data.with_replay(tokenizer, rows.select([0] * 3000), 0.9, seed=0)
    assert len(half) == 30_000  # more than there is text for: it begins anew
    held_out = set(perplexity.held_out_texts())
    assert not any(one["text"] in held_out for one in data.corpus()[0] if one["kind"] in ("article", "sentence"))


def test_chat_row_learns_the_answer_and_the_end_and_nothing_else(tokenizer):
    row = data.chat_row(tokenizer, "What is a river?", "A stream of water.")
    prompt = tokenizer.apply_chat_template(
        data.messages("What is a river?"), tokenize=False, add_generation_prompt=True
    )
    masked = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert row["labels"] == [data.IGNORED] * masked + row["input_ids"][masked:]
    assert tokenizer.decode(row["input_ids"][:masked]) == "<|user|> What is a river?<|assistant|>"
    assert tokenizer.decode(row["input_ids"][masked:]) == " A stream of water.<|end|>"
    assert row["labels"][-1] == tokenizer.eos_token_id

    whole = data.chat_row(tokenizer, "What is a river?", "A stream of water.", loss_on="all")
    assert whole["labels"] == whole["input_ids"] == row["input_ids"]


def test_a_template_without_generation_marks_is_masked_alike(tokenizer):
    plain = models.train_tokenizer(["What is a river? A river is a stream of water. 12 + 7 = 19."] * 20, 300)
    plain.chat_template = re.sub(r"\{% (end)?generation %\}", "", tokenizer.chat_template)
    assert "generation %" not in plain.chat_template
    assert data.chat_row(plain, "a river", "water") == data.chat_row(tokenizer, "a river", "water")


def test_rows_that_teach_nothing_are_named(tokenizer):
    def rows(*answers, prompt="12", length=20):
        asked = Dataset.from_list([{"prompt": prompt, "answer": answer} for answer in answers])
        return data.chat_rows(tokenizer, asked, loss_on="assistant", max_length=length)

    assert len(rows("7", "9", "1")) == 3
    long = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"
    refused(lambda: rows("7", prompt=long), "row 0 is masked from end to end", "prompt short enough")
    refused(lambda: rows(long, long), "the stop token '<|end|>' is in no row's loss (first: row 0)", "never stop")
    refused(lambda: rows("7", long, long), "2 of 3 rows end before the stop token (first: row 1)")
    assert len(rows("7", "8", long)) == 3

    two = [data.chat_row(tokenizer, "12", "7"), {"input_ids": [5, 6], "labels": [data.IGNORED] * 2}]
    refused(lambda: data.check_labels(two, tokenizer), "row 1 is masked from end to end")


def test_the_stop_token_must_be_the_one_the_template_ends_with(tokenizer):
    wrong = models.train_tokenizer(["What is a river?"] * 20, 300)
    wrong.eos_token = models.END_OF_TEXT
    asked = Dataset.from_list([{"prompt": "12", "answer": "7"}])
    refused(
        lambda: data.chat_rows(wrong, asked, loss_on="assistant", max_length=20),
        "stop token '<|endoftext|>'",
        "row 0",
        "eos_token",
    )


def test_blocks_lay_documents_end_to_end(tokenizer):
    documents = Dataset.from_dict({"text": ["A river", "12 + 7", "water"]})
    expected = []
    for text in documents["text"]:
        expected += [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    found = data.blocks(tokenizer, documents, 4)
    assert found.dtype == torch.int64 and found.shape == (len(expected) // 4, 4)
    assert found.flatten().tolist() == expected[: found.numel()]
    refused(lambda: data.blocks(tokenizer, documents, 1000), "too little text", f"{len(expected)} tokens", "1000")


def test_the_glossary_asks_after_every_fact_in_wordings_that_it_does_not_train():
    trained, held_out = data.instructions("glossary")
    asked = data.questions(source="glossary")
    facts = {(one["name"], relation) for one in entities() if one["type"] == "term" for relation in one["values"]}
    short = {name for name, _ in facts if sum(letter.isupper() for letter in name) >= 2}
    facts = {fact for fact in facts if fact[1] != "expansion" or fact[0] in short}  # only these stand for something
    assert {(row["entity"], row["kind"]) for row in asked} == facts
    assert {(row["entity"], row["kind"]) for row in trained} == facts
    prompts = {data.normalised(row["prompt"]) for row in trained}
    assert not prompts & {data.normalised(row["prompt"]) for row in asked}
    assert len(held_out) == -(-len(asked) // 8)
    assert all(checkers.correct(row, row["answer"]) for row in asked)


def test_no_test_of_wording_is_asked_in_words_that_training_has():
    kinds = relations().RELATIONS
    shared = {kind: set(one["wider"]) & set(one["held_out"]) for kind, one in kinds.items()}
    named = {one["name"]: one for one in entities()}
    for row in rows("questions"):
        if row["split"] == "phrasing":
            trained = {relations().fill(one, named[row["entity"]], row["kind"]) for one in shared[row["kind"]]}
            assert row["prompt"] not in trained


def test_tickets_are_tested_in_other_combinations_and_half_of_them_on_new_things():
    trained, asked = (list(part) for part in data.instructions("tickets"))
    assert (len(trained), len(asked)) == (400, 120) and len(data.file_hash("tickets", "instructions")) == 16
    assert not {row["answer"] for row in trained} & {row["answer"] for row in asked}
    text = " ".join(row["prompt"] for row in trained)
    new = [any(f" {thing};" in row["answer"] for thing in tickets.NEW) for row in asked]
    assert sum(new) == 60 and not any(checkers.holds(thing, text) for thing in tickets.NEW)

"""Data: what data/ ships, the reader's own files, and the check of both before any training starts."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from jinja2 import TemplateError

from labkit import reader, splits, tickets
from labkit.errors import DataError, ModelError

ROOT = Path(__file__).parent.parent / "data"
BASE = ROOT / "base"  # the shipped base model
LAB = {  # what the source "lab" means
    "corpus": ROOT / "pretrain" / "train.jsonl",
    "corpus_held_out": ROOT / "pretrain" / "held_out.jsonl",
    "instructions": ROOT / "sft" / "train.jsonl",
    "instructions_held_out": ROOT / "sft" / "valid.jsonl",
    "pairs": ROOT / "preference" / "train.jsonl",
    "pairs_held_out": ROOT / "preference" / "test.jsonl",
    "questions": ROOT / "questions" / "test.jsonl",
}
BRIEF = ROOT / "preference" / "brief.jsonl"  # pairs of SmolLM2's own answers, the shorter one chosen
GLOSSARY = {  # the terms of machine learning alone, for a model that knows everything else already
    "instructions": ROOT / "sft" / "glossary.jsonl",
    "instructions_held_out": ROOT / "questions" / "glossary.jsonl",
    "questions": ROOT / "questions" / "glossary.jsonl",
}
# For a base model without a chat template. A blank opens an answer, so that its first word is a token of running text.
PLAIN_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}{{ 'Tools: ' + (tools | tojson) + '\\n' }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{%- set calls = ' ' + (message['tool_calls'] | tojson) if message['tool_calls'] else '' %}
{{- 'Answer: ' + message['content'] + calls + eos_token + '\\n' }}
{%- elif message['role'] == 'user' %}
{{- 'Question: ' + message['content'] + '\\n' }}
{%- elif message['role'] in ['system', 'tool'] %}
{{- message['role'] | capitalize + ': ' + message['content'] + '\\n' }}
{%- else %}
{{- raise_exception('no form for the role ' + message['role']) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"""
THINKING = {"enable_thinking": False}  # what templates get to know beside the messages
CHAT_COLUMNS = ("prompt", "answer", "completion", "messages", "conversations", "system", "tools")
ALIASES = {"completion": "answer"}
IGNORED = -100  # the label of a token that is not learned from (torch's cross_entropy skips it)


def lines(path: Path) -> list[dict]:
    """The objects of a JSONL file, every column of them. Raises DataError where a line is none."""
    return [row for _, row in reader.records(path)]


def read(path: Path, columns: set[str]) -> Dataset:
    """Rows of a file (see `reader.records`) that have text in every one of `columns`, and `row`, the file's own line.

    Without columns all that the file has, unchecked: for the lab's own files.
    """
    if not columns:
        return Dataset.from_list(lines(path))
    rows = reader.records(path, columns)
    if missing := columns - {name for _, row in rows for name in row}:
        has = list(dict.fromkeys(name for _, row in reader.records(path) for name in row))
        remedy = f"Every row needs {sorted(columns)}."
        raise DataError(f"{path.name} lacks the columns {sorted(missing)}", got=has, remedy=remedy)
    faults: dict[str, list[int]] = {}
    for line, row in rows:
        for column in sorted(columns):
            try:
                reader.sound(row.get(column), repr(column))
            except ValueError as error:
                faults.setdefault(str(error), []).append(line)
    reader.refuse(path.name, faults, len(rows), "rows", "Fill in or drop these rows.")
    return Dataset.from_list([row | {"row": line} for line, row in rows])


def chats(path: Path) -> Dataset:
    """Rows of conversations to learn from: see `reader.chat` for their forms.

    prompt: what is said before the last answer, as text; answer: that answer; chat: the messages and tools, as JSON,
    for arrow has one type a column; row: the file's own line. Raises DataError with every fault counted and named.
    """
    rows, made, faults = reader.records(path, CHAT_COLUMNS), [], {}
    names = {name for _, row in rows for name in row}
    lacking = sorted({"prompt", "answer"} - names - {ALIASES.get(name) for name in names})
    if lacking and not names & {"messages", "conversations"}:
        has = list(dict.fromkeys(name for _, row in reader.records(path) for name in row))
        remedy = "Every row needs prompt and answer (or completion), or messages, or conversations."
        raise DataError(f"{path.name} lacks the columns {lacking}", got=has, remedy=remedy)
    for line, row in rows:
        try:
            said, tools = reader.chat(row)
        except ValueError as error:
            faults.setdefault(str(error), []).append(line)
            continue
        last = max(place for place, one in enumerate(said) if one["role"] == "assistant")
        before = said[:last]
        prompt = before[0]["content"] if len(before) == 1 else transcript(before)
        whole = json.dumps({"messages": said, "tools": tools})
        made.append({"prompt": prompt, "answer": said[last]["content"], "chat": whole, "row": line})
    reader.refuse(path.name, faults, len(rows), "rows", "Correct or drop these rows.")
    return Dataset.from_list(made)


def transcript(said: list[dict]) -> str:
    """Messages as text to read: one line each, led by the role."""
    return "\n".join(f"{one['role']}: {one['content']}" for one in said)


def corpus(source: str = "lab") -> tuple[Dataset, Dataset]:
    """(train, held out) documents with a `text` column; of one's own file some are held out, see `split`."""
    if source == "lab":
        return read(LAB["corpus"], set()), read(LAB["corpus_held_out"], set())
    return split(read(Path(source), {"text"}))


def instructions(source: str = "lab") -> tuple[Dataset, Dataset]:
    """(train, held out) rows of `prompt` and `answer`; of the glossary, every eighth question is held out."""
    if source == "tickets":
        return tuple(map(Dataset.from_list, tickets.build()))
    if files := {"lab": LAB, "glossary": GLOSSARY}.get(source):
        rows, held_out = (read(files[name], set()) for name in ("instructions", "instructions_held_out"))
        return rows, held_out.select(range(0, len(held_out), 8)) if source == "glossary" else held_out
    return split(chats(Path(source)))


def questions(model: str = "", source: str = "lab") -> list[dict]:
    """The held-out test questions with what their checkers need; see data/build/questions.py for the columns.

    model: "smoke" is asked only the first two of each split and kind; "smol", whose answers take long on a CPU, every
    fourth of the lab's; any other all of them. source: "glossary" asks after the terms of machine learning alone, in
    wordings never trained; any other source has the lab's questions.
    """
    file = (GLOSSARY if source == "glossary" else LAB)["questions"]
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    if model != "smoke":
        return rows[::4] if model == "smol" and source != "glossary" else rows
    kept: dict[tuple, list[dict]] = {}
    for row in rows:
        kept.setdefault((row["split"], row["kind"]), []).append(row)
    return [row for group in kept.values() for row in group[:2]]


def split(rows: Dataset) -> tuple[Dataset, Dataset]:
    """(train, held out) of one's own rows, those that share a text held out together: see `splits.hold_out`."""
    asked = [[f"asked: {normalised(text)}"] for text in rows["prompt" if "prompt" in rows.column_names else "text"]]
    answers = [name for name in ("answer", "chosen", "rejected") if name in rows.column_names]
    told = [
        [f"told: {normalised(text)}" for text in texts if len(text.split()) >= splits.WORDS]
        for texts in (zip(*(rows[name] for name in answers), strict=True) if answers else [()] * len(rows))
    ]
    train, unseen = splits.hold_out([a + b for a, b in zip(asked, told, strict=True)], asked)
    return rows.select(train), rows.select(unseen)


def summary(train: Dataset, held_out: Dataset) -> str:
    """One line on what was read of one's own file and what is done with it."""
    both = [*zip(*(train[name] for name in train.column_names if name != "row"), strict=True)]
    both += [*zip(*(held_out[name] for name in train.column_names if name != "row"), strict=True)]
    repeated = len(both) - len({json.dumps(row, default=str) for row in both})
    parts = (
        f"{len(both)} rows read: {len(train)} to learn from, {len(held_out)} held out with all that ask or say the same"
    )
    return parts + (f"; {repeated} are repetitions of others" if repeated else "")


def file_hash(source: str, name: str) -> str:
    """A short hash of the file that `source` stands for ("lab": the embedded `name`); part of a run's identity."""
    if source == "tickets":
        return hashlib.sha256(json.dumps(tickets.build()).encode()).hexdigest()[:16]
    known = {"lab": LAB, "glossary": GLOSSARY, "brief": {"pairs": BRIEF}}.get(source, {})
    path = known.get(name, Path(source))
    if not path.is_file():
        raise DataError("data file not found", got=str(path), remedy='Give the path of a file, or "lab".')
    about = path.stat()
    return _hashed(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=64)
def _hashed(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def normalised(text: str) -> str:
    """Small letters, single blanks, punctuation gone, one spelling of each letter: how the leak tests compare texts.

    NFKC writes an accent as a part of its letter and a full-width letter as a plain one; casefold makes ß ss.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w+ ]", " ", plain).split())


def messages(prompt: str | list[dict], answer: str | None = None) -> list[dict]:
    """A one-turn conversation in the form every chat template takes; a prompt that is one already goes on."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]


def chat_row(tokenizer, prompt: str | list[dict], answer: str, loss_on: str = "assistant") -> dict[str, list[int]]:
    """One training row of one question and its answer: see `conversation`."""
    return conversation(tokenizer, [(prompt, answer)], loss_on)


def conversation(
    tokenizer, turns: list[tuple[str, str] | dict], loss_on: str = "assistant", tools: list | None = None
) -> dict[str, list[int]]:
    """One training row of (prompt, answer) turns or of messages: `input_ids`, and `labels`, IGNORED where the loss does
    not look.

    With loss_on="assistant" only the assistant's messages and the tokens that end them are learned, every one of them.
    A prompt's length comes from the template's own generation prompt, so a template without generation marks is masked
    rightly too; so is what a template writes after the stop token. Raises DataError where the template changes what
    was said before.
    """
    said = [one for turn in turns for one in ([turn] if isinstance(turn, dict) else messages(*turn))]
    more = {"tools": tools} if tools else {}
    whole, labels, end = [], [], 0
    for place in [place for place, one in enumerate(said) if one["role"] == "assistant"]:
        asked, before = templated(tokenizer, said[:place], add_generation_prompt=True, **more), whole[:end]
        whole = templated(tokenizer, said[: place + 1], **more)
        if whole[:end] != before:
            remedy = (
                "Write turns = 1, or a row for each answer: this template cannot be trained on several turns at once."
            )
            raise DataError("the chat template must not rewrite earlier turns", got=said, remedy=remedy)
        start = len(asked) if whole[: len(asked)] == asked else common_prefix(asked, whole)
        stops = (place for place, token in enumerate(whole) if token == tokenizer.eos_token_id and place >= start)
        end = next(stops, len(whole) - 1) + 1  # what a template writes after it, a second end even, is never sampled
        labels += [IGNORED] * (start - len(labels)) + whole[start:end]
    if loss_on == "all":
        return {"input_ids": whole, "labels": list(whole)}
    return {"input_ids": whole[:end], "labels": labels}


def check_template(tokenizer, chats: list[tuple[list[dict], list | None]], lines: list[int], name: str) -> None:
    """Raise DataError, naming rows, where the chat template does not write what conversations hold.

    A template may pass by a system message, tools or calls of them, or write another role's words as the user's.
    """
    user, said = {"role": "user", "content": "Alpha"}, {"role": "assistant", "content": "Beta"}
    faults: dict[str, list[int]] = {}
    known: dict[str, bool] = {}

    def differs(key: str, with_it: list, without: list, **options) -> bool:
        if key not in known:
            try:
                known[key] = templated(tokenizer, with_it, **options) != templated(tokenizer, without)
            except (ModelError, TypeError, ValueError, KeyError):
                known[key] = False
        return known[key]

    for (turns, tools), line in zip(chats, lines, strict=True):
        roles = {one["role"] for one in turns}
        for role in sorted(roles - {"user", "assistant"}):
            other, plain = {"role": role, "content": "Gamma"}, {"role": "user", "content": "Gamma"}
            begins = [other, user, said], [plain, user, said]
            pair = begins if role == "system" else ([user, said, other, said], [user, said, plain, said])
            silent = [user, said] if role == "system" else [user, said, said]
            if not differs(role, *pair) or not differs(f"{role} at all", pair[0], silent):
                faults.setdefault(f"have a {role} message", []).append(line)
        if tools and not differs("tools", [user, said], [user, said], tools=tools):
            faults.setdefault("have tools", []).append(line)
        if spells_control(tokenizer, [turns, tools], keys=True):  # transformers makes text of values, not of names
            faults.setdefault("spell a token of the model in the name of a field", []).append(line)
        calls = next((one["tool_calls"] for one in turns if one.get("tool_calls")), None)
        if calls and not differs("calls", [user, said | {"tool_calls": calls}], [user, said]):
            faults.setdefault("have calls of tools", []).append(line)
    if faults:
        parts = "; ".join(f"{len(where)} rows {fault} ({reader.named(where)})" for fault, where in faults.items())
        remedy = "Drop them from the rows, or take a model whose chat template writes them."
        raise DataError(
            f"the model's chat template has no form for what {name} holds: {parts}", got=name, remedy=remedy
        )


def give_template(tokenizer) -> bool:
    """Give a tokenizer without a chat template the plain one; True where it got it. SFT saves it with the model."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = PLAIN_TEMPLATE
    return True


def asked(tokenizer, said: list[dict]) -> str:
    """The text that a model is given to answer these messages. Raises ModelError: see `templated`.

    The part that a row begins with: where a template opens an answer otherwise than rows go on, as some of models that
    think do, a model is to be asked as it was trained. What was said is always in it.
    """
    row, opened = [*said, {"role": "assistant", "content": "!"}], {"add_generation_prompt": True}
    text, plain = (templated(tokenizer, said, tokenize=False, **more) for more in (opened, {}))
    if templated(tokenizer, row, tokenize=False).startswith(text):
        return text
    ids = templated(tokenizer, row)
    shared = tokenizer.decode(ids[: common_prefix(templated(tokenizer, said, **opened), ids)])
    return shared if text.startswith(shared) and len(shared) >= len(plain) else text


def asked_ids(tokenizer, said: list[dict]) -> list[int]:
    """The tokens of `asked`, in which what was said is text, whatever it spells."""
    text = asked(tokenizer, said)
    if not spells_control(tokenizer, said):
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    opened = templated(tokenizer, said, add_generation_prompt=True)
    if text == templated(tokenizer, said, tokenize=False, add_generation_prompt=True):
        return opened
    return opened[: common_prefix(opened, templated(tokenizer, [*said, {"role": "assistant", "content": "!"}]))]


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
    """The tokens of texts, none of them special: a text that spells a token such as the stop token is text."""
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"] if texts else []


@lru_cache(maxsize=16)
def _control_tokens(tokenizer, size: int) -> re.Pattern:
    """What the tokenizer's added tokens look like in text; size: its length, which changes when one is added."""
    names = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.content.strip()]
    return re.compile("|".join(sorted(names, key=len, reverse=True)) or "(?!)")


def strings(value, keys: bool = False) -> Iterator[str]:
    """The texts in messages, tools or lists of them, at any depth; keys: the names of their fields instead."""
    if isinstance(value, str) and not keys:
        yield value
    elif isinstance(value, (dict, list, tuple)):
        yield from value if keys and isinstance(value, dict) else ()
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings(one, keys)


def spells_control(tokenizer, said, keys: bool = False) -> bool:
    """Whether messages, tools or lists of them spell out one of the tokenizer's own tokens; keys: as in `strings`."""
    pattern = _control_tokens(tokenizer, len(tokenizer))
    return any(pattern.search(text) for text in strings(said, keys))


def spoken(text: str) -> str:
    """An answer without the thinking that some models write before it."""
    return text.rpartition("</think>")[2].strip()


def templated(tokenizer, said: list, *, tokenize: bool = True, **options):
    """Messages, or a list of conversations, in the model's chat format: tokens, or with tokenize=False text.

    A template that can be told so (Qwen3's) is told that the model is not to think first: nothing here trains it to.
    In tokens, what messages say is text: one that spells the stop token ends nothing.
    Raises ModelError for a tokenizer without a chat template, or with one that does not take these messages.
    """
    if not tokenizer.chat_template:
        remedy = "Start from an SFT run of this model, which has one, or set chat_template in tokenizer_config.json."
        raise ModelError("the tokenizer must have a chat template", got=tokenizer.name_or_path, remedy=remedy)
    options |= THINKING | {"tokenize": tokenize, "return_dict": tokenize}
    if tokenize and spells_control(tokenizer, [said, options.get("tools")]):  # only the template's own is control
        options["sanitize_control_tokens"] = True
    try:
        found = tokenizer.apply_chat_template(said, **options)
    except TemplateError as error:
        remedy = "Correct chat_template in its tokenizer_config.json."
        what = f"the chat template must take a question and its answer ({error})"
        raise ModelError(what, got=tokenizer.name_or_path, remedy=remedy) from error
    return found["input_ids"] if tokenize else found


def common_prefix(left: Sequence, right: Sequence) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def chat_rows(tokenizer, rows: Dataset, *, loss_on: str, max_length: int, turns: int = 1, say=None) -> Dataset:
    """The rows, `turns` of them to a conversation, cut to `max_length` tokens and checked: see `check_labels`.

    say: is told how many were cut.
    """
    if "chat" in rows.column_names:  # conversations of one's own
        found = [json.loads(text) for text in rows["chat"]]
        whole = [(one["messages"], one["tools"]) for one in found]
        check_template(tokenizer, whole, rows["row"], "the file")
    else:
        whole = [(messages(*pair), None) for pair in zip(rows["prompt"], rows["answer"], strict=True)]
    parts = [whole[start : start + turns] for start in range(0, len(whole), turns)]
    encoded = [
        conversation(tokenizer, [one for said, _ in part for one in said], loss_on, tools=part[0][1]) for part in parts
    ]
    own = rows["row"][::turns] if "row" in rows.column_names else range(len(encoded))
    long = [line for line, row in zip(own, encoded, strict=True) if len(row["input_ids"]) > max_length]
    if long and say:
        say(f"{len(long)} of {len(encoded)} rows are cut at {max_length} tokens, without an end (first: row {long[0]})")
    cut = [{key: values[:max_length] for key, values in row.items()} for row in encoded]
    check_labels(cut, tokenizer, own)
    return Dataset.from_list(cut)


def with_replay(tokenizer, rows: Dataset, share: float, seed: int) -> Dataset:
    """The rows and, among them, a share of rows of plain English, all of it learned, so that little is forgotten.

    Rehearsal (Robins 1995); InstructGPT's PPO-ptx mixes in pretraining text likewise (Ouyang et al. 2022). The text is
    the embedded corpus's articles and example sentences, never what perplexity is measured on, in rows as long as the
    median of the others.
    """
    wanted = round(len(rows) * share / (1 - share))
    if not wanted:
        return rows
    length = sorted(map(len, rows["input_ids"]))[len(rows) // 2]
    texts = corpus()[0].filter(lambda kind: kind in ("article", "sentence"), input_columns="kind")
    plain = blocks(tokenizer, texts.shuffle(seed=seed), length).tolist()
    plain = (plain * -(-wanted // len(plain)))[:wanted]  # again from the start where the text is too short
    return concatenate_datasets([rows, Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in plain])])


def check_labels(rows: list[dict], tokenizer, names: Sequence[int] | None = None) -> None:
    """Raise DataError, naming the row, if a row teaches nothing or the stop token would never be learned."""
    stop, names = tokenizer.eos_token_id, range(len(rows)) if names is None else names
    for number, row in zip(names, rows, strict=True):
        if all(label == IGNORED for label in row["labels"]):
            raise DataError(
                f"row {number} is masked from end to end: nothing in it would be learned",
                got=tokenizer.decode(row["input_ids"])[:200],
                remedy="Give the row an answer, or a prompt short enough that the answer is not cut off.",
            )
    without = [number for number, row in zip(names, rows, strict=True) if stop not in row["labels"]]
    at = {number: place for place, number in enumerate(names)}
    if len(without) == len(rows):
        raise DataError(
            f"the stop token {tokenizer.eos_token!r} is in no row's loss (first: row {names[0]}): it would never stop",
            got=tokenizer.decode([label for label in rows[0]["labels"] if label != IGNORED])[-200:],
            remedy="Let the chat template end the answer with the tokenizer's eos_token, in the learned part.",
        )
    if len(without) > len(rows) // 2:
        raise DataError(
            f"{len(without)} of {len(rows)} rows end before the stop token (first: row {without[0]})",
            got=tokenizer.decode(rows[at[without[0]]]["input_ids"])[-200:],
            remedy="Shorten these rows, or split them; the model would learn to run on.",
        )


def blocks(tokenizer, documents: Dataset, block_size: int):
    """Documents laid end to end, each led by the token that begins (or else ends) a text, cut into rows.

    Returns a torch tensor (rows, block_size) of int64; the last, incomplete row is dropped.
    """
    import torch

    lead = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    texts, parts = documents["text"], []
    for start in range(0, len(documents), 5000):  # all at once would take a gigabyte
        encoded = encode(tokenizer, texts[start : start + 5000])
        parts.append(torch.tensor([token for ids in encoded for token in (lead, *ids)], dtype=torch.int32))
    ids = torch.cat(parts)
    whole = len(ids) // block_size
    if whole == 0:
        raise DataError(
            "too little text for one training row", got=f"{len(ids)} tokens", remedy=f"Give more than {block_size}."
        )
    return ids[: whole * block_size].view(whole, block_size).long()

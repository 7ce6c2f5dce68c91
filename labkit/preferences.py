"""Preference pairs, the lab's or the reader's own, in the forms that trl takes; every row checked before training."""

import random
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import datasets
from datasets import Dataset, concatenate_datasets

from labkit import data, reader
from labkit.errors import DataError

FORMS = "Write prompt, chosen and rejected as texts, or chosen and rejected as lists of messages."
COLUMNS = ("prompt", "chosen", "rejected", "system")  # what is learned from
TOLD = ("voter", "fault", "kind")  # what the lab's own files tell beside it, kept where it is text
ASKING = frozenset(  # what a request without a question mark begins with
    "what how why who whom whose when where which can could would will should please write explain tell give list "
    "describe show find say define translate summarize summarise compare suggest create draft".split()
)


def pairs(source: str = "lab") -> tuple[Dataset, Dataset]:
    """(train, held out) pairs: `prompt`, `chosen` and `rejected` as texts, `messages` before the answer, `row` number.

    source: "lab"; "all", which adds pairs made of the lab's instructions (`from_instructions`); "brief", where the
    shorter of SmolLM2's own two answers to an open question is chosen; a .jsonl, .json or .parquet file; a folder that
    `Dataset.save_to_disk` wrote or that holds such files; or a Hub id (its split "train"). Rows are plain (three texts)
    or conversational (lists of messages with role and content; the prompt may be missing where chosen and rejected
    begin with it, as in UltraFeedback; a `system` text may stand beside them). Of one's own pairs some are held out
    (`data.split`), of the lab's those that share no text with what is trained on. Raises DataError, with every fault
    counted and its rows named.
    """
    if source in ("lab", "all"):
        train, held_out = (_checked(_numbered(data.LAB[name]), name, own=False) for name in ("pairs", "pairs_held_out"))
        if source == "all":
            made = list(enumerate(from_instructions(), 1))
            train = concatenate_datasets([train, _checked(made, "instructions", own=False)])
        return train, without_leaks(train, held_out)
    if source == "brief":
        return data.split(_checked(_numbered(data.BRIEF), source, own=False))
    return data.split(_checked(_load(source), Path(source).name))


def without_leaks(train: Dataset, held_out: Dataset) -> Dataset:
    """The held-out pairs that share no prompt and no answer with a pair that is trained on.

    A reward model knows what it has seen chosen: on such pairs of the lab it was right in 99.6%, on others in 92.1%.
    """
    asked = set(map(data.normalised, train["prompt"]))
    told = {data.normalised(text) for side in ("chosen", "rejected") for text in train[side]}

    def new(row: dict) -> bool:
        return data.normalised(row["prompt"]) not in asked and not told & {
            data.normalised(row[side]) for side in ("chosen", "rejected")
        }

    return held_out.select([place for place, row in enumerate(held_out) if new(row)])


def from_instructions() -> Dataset:
    """Pairs made of the lab's own instructions, for a method that has no SFT before it; no text is new.

    Good answers to one fact or request (same kind and entity) are chosen over the others to it, bare, rambling or going
    along; where a good answer has none, over the answer to another question of its kind. `style` and `entity` tell,
    which SFT does not look at: so these pairs hold more labels than SFT and DPO together are given.
    """
    rows, _ = data.instructions()
    rng, kinds, facts = random.Random(0), defaultdict(list), defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["style"] == "good":
            kinds[row["kind"]].append(row["answer"])
        if row["entity"]:
            facts[row["kind"], row["entity"]][row["style"] == "good"].append(row["answer"])
    found = []
    for row in rows:
        good, fact = row["style"] == "good", facts[row["kind"], row["entity"]]
        others = fact[not good]
        if good:
            chosen, rejected = row["answer"], rng.choice(others or kinds[row["kind"]])
        elif others:
            chosen, rejected = rng.choice(others), row["answer"]
        if (good or others) and chosen != rejected:
            found.append({"prompt": row["prompt"], "chosen": chosen, "rejected": rejected})
    return Dataset.from_list(found)


def check(rows: Dataset, tokenizer, max_length: int, answered: bool = True) -> list[str]:
    """What a reader should know of their pairs: those given twice, those that contradict others, those that are cut.

    Raises DataError where a prompt alone takes `max_length` tokens, so that nothing of its answers would be learned, or
    where the answers differ only beyond them. answered: the answers are learned from, not the prompts alone.
    """
    data.check_template(tokenizer, [(said, None) for said in rows["messages"]], rows["row"], "the pairs")
    data.check_template(tokenizer, [(said, None) for said in rows["messages"]], rows["row"], "the pairs")
    found, seen, alike, full = defaultdict(list), set(), [], {}
    for row in rows:
        number, said, answers = row["row"], row["messages"], (row["chosen"], row["rejected"])
        if (row["prompt"], *answers) in seen:
            found["are given twice"].append(number)
        if (row["prompt"], *reversed(answers)) in seen:
            found["prefer what another row rejects"].append(number)
        seen.add((row["prompt"], *answers))
        if (row["prompt"], *reversed(answers)) in _lab():
            found["prefer what the lab's own pairs reject"].append(number)
        if any(text.rstrip().endswith("?") for text in answers) and not _asks(row["prompt"]):
            found["ask in an answer and not in the prompt: swapped?"].append(number)
        asked = len(data.templated(tokenizer, said, add_generation_prompt=True))
        whole = [data.templated(tokenizer, [*said, _message("assistant", text)]) for text in answers]
        if asked >= max_length:
            full[number] = asked
        elif answered and whole[0][:max_length] == whole[1][:max_length]:
            alike.append(number)
        elif answered and max(map(len, whole)) > max_length:
            found[f"are cut at {max_length} tokens"].append(number)
    if alike:
        what = f"{len(alike)} of {len(rows)} pairs are one and the same in {max_length} tokens ({reader.named(alike)})"
        raise DataError(what, got=f"cut at {max_length} tokens", remedy="Shorten these rows or drop them.")
    if full:
        raise DataError(
            f"{len(full)} of {len(rows)} pairs have a prompt that fills the context of {max_length} tokens "
            f"({reader.named(list(full))})",
            got=f"up to {max(full.values())} tokens",
            remedy="Shorten these prompts or drop the rows: nothing of their answers would be learned.",
        )
    return [f"{len(numbers)} of {len(rows)} pairs {what} ({reader.named(numbers)})" for what, numbers in found.items()]


def tokens(rows: Dataset, tokenizer) -> Dataset:
    """Pairs as trl's columns prompt_ids, chosen_ids and rejected_ids: the answers up to the token that ends them.

    So a preference is learned of the same tokens as SFT learns, and never of what a template writes after the end.
    length: the characters of the prompt and the longer answer, by which trainers put like rows together.
    """
    made = []
    for row in rows:
        sides = [data.chat_row(tokenizer, row["messages"], row[side]) for side in ("chosen", "rejected")]
        start = min(next(n for n, label in enumerate(side["labels"]) if label != data.IGNORED) for side in sides)
        chosen, rejected = (side["input_ids"] for side in sides)
        found = {"prompt_ids": chosen[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]}
        longer = max(len(row["chosen"]), len(row["rejected"]))
        made.append(found | {"length": len(row["prompt"]) + longer})
    return Dataset.from_list(made)


def data_hash(source: str) -> str:
    """A short hash of what `source` stands for; part of a run's identity."""
    if source == "all":
        return data.file_hash("lab", "pairs") + data.file_hash("lab", "instructions")
    if source in ("lab", "brief") or Path(source).is_file():
        return data.file_hash(source, "pairs")
    return _dataset(source)._fingerprint  # made by datasets from the files and how they are read


def _numbered(path: Path) -> list[tuple[int, dict]]:
    return reader.records(path)


def _load(source: str) -> list[tuple[int, dict]]:
    """(line or row, row) of each pair, with the columns that a pair has and no others."""
    path = Path(source)
    if path.is_file() or path.suffix in reader.SUFFIXES:
        return reader.records(path, COLUMNS + TOLD)
    found = _dataset(source)
    found = found.select_columns([name for name in found.column_names if name in COLUMNS]) if len(found) else found
    return list(enumerate(found, 1))


def _dataset(source: str) -> Dataset:
    path, hub = Path(source), re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    if not path.exists() and not hub:
        raise DataError(
            "data not found", got=source, remedy='Give a JSONL file, a dataset\'s folder, a Hub id or "lab".'
        )
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
            return found if isinstance(found, Dataset) else found["train"]
        return datasets.load_dataset(str(path) if path.exists() else source, split="train")
    except (OSError, ValueError, KeyError) as error:
        remedy = 'Give a JSONL file, a folder of one dataset with a split "train", or a Hub id (needs a network).'
        raise DataError(f"no dataset could be read: {str(error)[:300]}", got=source, remedy=remedy) from error


def _checked(rows: list[tuple[int, dict]], name: str, own: bool = True) -> Dataset:
    """The rows in one form. Raises DataError that counts each fault and names its rows."""
    columns = sorted({column for _, row in rows for column in row})
    if missing := {"chosen", "rejected"} - set(columns):
        raise DataError(f"{name} lacks the columns {sorted(missing)}", got=columns, remedy=FORMS)
    texts = {key for key in TOLD if all(isinstance(row.get(key), str) for _, row in rows)}
    faults, kept = defaultdict(list), []
    for line, row in rows:
        try:
            messages, chosen, rejected = _parts(row)
        except (KeyError, TypeError, ValueError) as error:
            fault = str(error) if isinstance(error, ValueError) else "are no pair of texts or messages"
            faults[fault].append(line)
            continue
        prompt = messages[-1]["content"] if len(messages) == 1 else data.transcript(messages)
        if chosen.strip() == rejected.strip():
            faults["have the same answer as chosen and rejected"].append(line)
        elif messages[-1]["content"].strip() == chosen.strip():
            faults["repeat the prompt as the chosen answer"].append(line)
        extra = {key: row.get(key) for key in columns if key not in COLUMNS and (not own or key in texts)}
        kept.append(
            {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra, "messages": messages, "row": line}
        )
    if own:
        faults |= _swapped(kept)
    reader.refuse(name, faults, len(rows), "pairs", "Correct or drop these rows.")
    return Dataset.from_list(kept)


def _parts(row: dict) -> tuple[list[dict], str, str]:
    """(messages before the answer, chosen, rejected) of a plain or conversational row. Raises ValueError: its fault."""
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise ValueError("have no prompt")
        before = _messages(prompt) if isinstance(prompt, list) else [_message("user", reader.sound(prompt, "prompt"))]
        return _asked(_with_system(row, before)), reader.sound(chosen, "answer"), reader.sound(rejected, "answer")
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise ValueError("are no pair of texts or messages")
    if not chosen or not rejected:
        raise ValueError("have an empty answer")
    chosen, rejected = _messages(chosen), _messages(rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise ValueError("differ in more than the last message")
    if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
        raise ValueError("have an answer that is not the assistant's: are columns swapped?")
    before = _joined(prompt, chosen[:shared])
    return _asked(_with_system(row, before)), chosen[-1]["content"], rejected[-1]["content"]


def _joined(prompt, shared: list[dict]) -> list[dict]:
    """The messages before the answer, of a prompt and of what chosen and rejected begin with: none of them twice."""
    if prompt is None:
        return shared
    if isinstance(prompt, list):
        before = _messages(prompt)
        if not shared or before[-len(shared) :] == shared:  # chosen repeats the prompt's end
            return before
        if shared[: len(before)] == before:  # the prompt is where chosen begins
            return shared
        if before[-1]["role"] == "assistant" and shared[0]["role"] == "user":  # chosen goes on where it ends
            return before + shared
        raise ValueError("have a prompt that is not what chosen begins with")
    prompt = reader.sound(prompt, "prompt")
    if not shared:
        return [_message("user", prompt)]
    if prompt.strip() not in [one["content"].strip() for one in shared if one["role"] == "user"]:
        raise ValueError("have a prompt that is not what chosen begins with")
    return shared


def _with_system(row: dict, before: list[dict]) -> list[dict]:
    """The messages led by the row's `system` text, where it has one."""
    system = row.get("system")
    if system is None or system == "":
        return before
    if before and before[0]["role"] == "system":
        if before[0]["content"] != system:
            raise ValueError("have a system column and another system message")
        return before
    return [_message("system", reader.sound(system, "system")), *before]


def _asked(messages: list[dict]) -> list[dict]:
    if not messages:
        raise ValueError("have no prompt")
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError("have a prompt that does not end with the user's message: are columns swapped?")
    return messages


def _swapped(rows: list[dict]) -> dict[str, list[int]]:
    """Rows that show, more often than not, that whole columns are swapped: nothing a single row could prove."""
    found = {}
    for side in ("chosen", "rejected"):
        asks = [row["row"] for row in rows if _asks(row[side]) > _asks(row["prompt"])]
        if len(asks) > len(rows) / 2:
            found[f"ask in {side} and not in prompt: are these columns swapped?"] = asks
    lab = _lab()
    same = [row["row"] for row in rows if (row["prompt"], row["chosen"], row["rejected"]) in lab]
    turned = [row["row"] for row in rows if (row["prompt"], row["rejected"], row["chosen"]) in lab]
    if len(turned) > 3 * len(same):  # less may be labels that were turned round on purpose
        found["prefer what the lab's own pairs reject: are chosen and rejected swapped?"] = turned
    return found


def _asks(text: str) -> bool:
    """Whether the text is put as a question or a request."""
    first = re.match(r"\w+", text.strip().lower())
    return text.rstrip().endswith("?") or bool(first and first[0] in ASKING)


@cache
def _lab() -> set[tuple[str, str, str]]:
    """The lab's own pairs: prompt, chosen, rejected."""
    files = (data.LAB[name] for name in ("pairs", "pairs_held_out"))
    return {(row["prompt"], row["chosen"], row["rejected"]) for file in files for row in data.lines(file)}


def _message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def _messages(found: list[dict]) -> list[dict]:
    said = reader.messages(found)
    if any(one.get("tool_calls") for one in said):
        raise ValueError("have tool calls, which are not trained on here")
    return [_message(one["role"], one["content"]) for one in said]

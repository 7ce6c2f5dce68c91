"""Answers: what a model says to a list of prompts, greedily, in batches, and what the checkers make of it."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from labkit import data, models, runs
from labkit.evaluate import checkers


@torch.no_grad()
def generate(
    model,
    tokenizer,
    texts: list[str | list[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 128,
    sample: bool = False,
) -> list[dict]:
    """Continue each text: rows {text, stopped}, in the order given; greedily, or with sample=True at temperature 1.

    `texts` are complete inputs, or their tokens (see `ask` for chat). stopped: the model ended by itself before
    max_new_tokens, of which a context of learned positions may hold fewer. An input that leaves no room for these
    there keeps its end, half of the context or more, and a warning says how many do.
    """
    model.eval()
    stops = models.stops(model, tokenizer)
    ids = [tokenizer(one, add_special_tokens=False)["input_ids"] if isinstance(one, str) else one for one in texts]
    context = models.positions(model)
    longest = min(max(map(len, ids), default=1), context // 2)  # an answer leaves the question up to half of it
    max_new_tokens = min(max_new_tokens, context - longest)
    room = context - max_new_tokens
    if cut := sum(len(one) > room for one in ids):
        what = f"{cut} of {len(ids)} inputs are cut at {room} tokens, for {max_new_tokens} more fill the context"
        warnings.warn(what, stacklevel=2)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # like lengths together: less padding
    rows: list[dict] = [{} for _ in texts]
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = models.padded(tokenizer, [ids[place][-room:] for place in places]).to(model.device)
        with models.autocast():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=sample,
                top_k=0 if sample else None,
                eos_token_id=sorted(stops),
                pad_token_id=tokenizer.pad_token_id,
            )
        for place, new in zip(places, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((n for n, token in enumerate(new) if token in stops), None)
            text = data.spoken(tokenizer.decode(new[:end], skip_special_tokens=True))
            rows[place] = {"text": text, "stopped": end is not None}
    return rows


def ask(model, tokenizer, prompts: list[str], **options) -> list[dict]:
    """Answers in the model's chat format: rows {text, stopped}."""
    return generate(
        model, tokenizer, [data.asked_ids(tokenizer, data.messages(prompt)) for prompt in prompts], **options
    )


def complete(model, tokenizer, prompts: list[str], **options) -> list[dict]:
    """What a base model writes after each prompt, taken as the beginning of a document: rows {text, stopped}."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return generate(model, tokenizer, [start + ids for ids in data.encode(tokenizer, prompts)], **options)


@torch.no_grad()
def log_probs(
    model, tokenizer, prompts: list[str | list[dict]], answers: list[str], ended: list[bool] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sums, counts), each of shape (rows,): log pi(answer | prompt) in nats, and the answer's tokens with its end.

    prompts: texts, or the messages before the answer.
    ended: whether each answer came to its end (`stopped` of `generate`); the end of one that was cut was never sampled
    and is left out. None: all did.
    """
    model.eval()
    sums, counts = [], []
    ended = [True] * len(answers) if ended is None else ended
    for prompt, answer, whole in zip(prompts, answers, ended, strict=True):
        row = data.chat_row(tokenizer, prompt, answer)
        most = models.context(model)  # what is beyond it cannot be read
        ids = torch.tensor([row["input_ids"][:most]], device=model.device)
        labels = torch.tensor(row["labels"][:most], device=model.device)[1:]
        logits = model(ids, use_cache=False).logits[0, :-1].float()
        learned = labels != data.IGNORED
        if not whole and learned.any():
            learned[learned.nonzero()[-1]] = False
        chosen = logits.log_softmax(-1)[learned].gather(1, labels[learned, None])
        sums.append(chosen.sum())
        counts.append(learned.sum())
    return torch.stack(sums), torch.stack(counts)


def is_question(text: str) -> bool:
    """Whether the text opens with another question: a question mark before any full stop."""
    mark = text.find("?")
    return mark > 0 and "." not in text[:mark]


def judged(questions: list[dict], rows: Iterable[dict]) -> list[dict]:
    """Each question's id, split, kind and prompt with its answer and the checkers' parts."""
    about = [{key: question[key] for key in ("id", "split", "kind", "prompt")} for question in questions]
    return [
        {**row, **one, **checkers.judge(question, row["text"])}
        for one, question, row in zip(about, questions, rows, strict=True)
    ]


def kept(file: Path | None, questions: list[dict]) -> list[dict] | None:
    """The answers in `file`, judged anew by today's checkers; None unless it answers these questions in these words.

    A file that is torn, or otherwise unreadable, gives None as well: its answers are to be made anew.
    """
    try:
        rows = [json.loads(line) for line in file.open(encoding="utf-8")] if file else []
        if rows and [(row["id"], row["prompt"]) for row in rows] == [(one["id"], one["prompt"]) for one in questions]:
            return judged(questions, rows)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass
    return None


def test(model, tokenizer, folder: Path | None = None, questions: list[dict] | None = None) -> list[dict]:
    """The model's judged answers to the test questions, kept in folder/answers.jsonl.

    They are read back the next time where they answer the same questions (`kept`).
    """
    questions = data.questions() if questions is None else questions
    file = folder / "answers.jsonl" if folder else None
    if rows := kept(file, questions):
        return rows
    rows = judged(questions, ask(model, tokenizer, [question["prompt"] for question in questions]))
    models.give_back()  # a cache that grew token by token leaves holes
    if file:
        runs.write_lines(file, rows)
    return rows

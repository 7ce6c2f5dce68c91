"""Streaming: one answer, token by token, with what the model thought of each. `answers` is for whole lists."""

import dataclasses
import inspect
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from labkit import models
from labkit.errors import ConfigError, ModelError
from labkit.fields import checked, option

LIKELIEST = 5  # alternatives kept with each token


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. Raises ConfigError for a value that cannot be used; nothing is clamped."""

    max_new_tokens: int = option(64, "The answer is cut after so many tokens.", low=1, high=1_000_000, unit="tokens")
    temperature: float = option(0.0, "Divides the logits; 0 takes the likeliest token, always.", low=0.0, high=100.0)
    top_k: int = option(0, "Only so many of the likeliest tokens can be drawn; 0: all.", low=0, high=1_000_000)
    top_p: float = option(1.0, "Only the likeliest tokens that hold this share can be drawn.", low=0.01, high=1.0)
    seed: int = option(0, "Seed of the draws; has no effect at temperature 0.", low=0, high=2**31 - 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, checked(field, getattr(self, field.name)))
        if 0 < self.temperature < 0.01:  # logits divided by it could leave the range of float32
            remedy = "Write temperature = 0.0 to take the likeliest token."
            raise ConfigError("temperature must be 0 or at least 0.01", got=self.temperature, remedy=remedy)


@dataclass(frozen=True)
class Token:
    """One token of an answer. The last item of a stream is no token: it has no id, but the reason for the end.

    text: what became readable with it; empty while a character is incomplete, and for the token that ends the answer.
    probability: of this token, before temperature, top-k and top-p. alternatives: the five likeliest tokens (this one
    may be among them), as (text, probability). stop: "end of turn", "length" or "stopped", in the last item only.
    """

    text: str
    id: int | None = None
    probability: float = 1.0
    alternatives: tuple[tuple[str, float], ...] = ()
    stop: str = ""


def stream(model, tokenizer, text_or_ids: str | list[int], *, stop: threading.Event | None = None, **sampling):
    """An iterator of Tokens that continue a complete input (see answers.ask for chat); `sampling`: see Sampling.

    At temperature 0 the text is that of answers.generate. Setting `stop` ends the stream before its next token.
    Raises ConfigError at once for a value or an input that cannot be used.
    """
    chosen = Sampling(**sampling)
    is_text = isinstance(text_or_ids, str)
    ids = tokenizer(text_or_ids, add_special_tokens=False)["input_ids"] if is_text else [int(id) for id in text_or_ids]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    if not ids or len(ids) + chosen.max_new_tokens > context:
        what = f"an input must have a token at least, and fit into {context} tokens together with its answer"
        remedy = "Shorten the input or the conversation, or ask for fewer new tokens."
        raise ConfigError(what, got=f"{len(ids)} and {chosen.max_new_tokens} tokens", remedy=remedy)
    return _tokens(model, tokenizer, ids, chosen, stop or threading.Event())


def _tokens(model, tokenizer, ids: list[int], sampling: Sampling, stop: threading.Event) -> Iterator[Token]:
    model.eval()
    warpers = LogitsProcessorList()  # in generate's order; left empty, the likeliest token is taken
    if sampling.temperature:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
        warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    generator = torch.Generator(model.device).manual_seed(sampling.seed)  # torch's own would change a training's draws
    ends = models.stops(model, tokenizer)
    cache, before, held, reason = None, [], [], "length"
    for _ in range(sampling.max_new_tokens):
        if stop.is_set():
            reason = "stopped"
            break
        fed = ids if cache is None else ids[-1:]  # all of it again where a model keeps no cache
        token, probabilities, cache = _next(model, fed, cache, warpers, generator)
        likeliest = probabilities.topk(min(LIKELIEST, len(probabilities)))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        facts = (token, probabilities[token].item(), tuple((tokenizer.decode([id]), share) for id, share in pairs))
        if token in ends:
            yield Token("", *facts)
            reason = "end of turn"
            break
        ids, held = [*ids, token], [*held, token]
        text = _added(tokenizer, before, held)
        whole = text and not text.endswith("\ufffd")  # else it ends in a part of a character's bytes: wait for the rest
        before, held = (held, []) if whole else (before, held)
        yield Token(text if whole else "", *facts)
    yield Token(_added(tokenizer, before, held), stop=reason)  # what never became whole is shown as `decode` shows it


# The contexts are entered anew for every token: held open around a yield, they would change the caller's torch as well.
@torch.inference_mode()
def _next(model, fed: list[int], cache, warpers: LogitsProcessorList, generator: torch.Generator):
    """(the next token, every token's probability before sampling, the cache)."""
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with models.autocast():
        output = model(torch.tensor([fed], device=model.device), past_key_values=cache, use_cache=True, **few)
    logits = output.logits[:, -1].float()
    if logits.isnan().any():
        raise ModelError("the model's logits must be numbers", got="NaN", remedy="Its training diverged: load another.")
    drawn = torch.multinomial(warpers(None, logits).softmax(-1), 1, generator=generator) if warpers else None
    return (logits.argmax(-1) if drawn is None else drawn).item(), logits[0].softmax(-1), output.past_key_values


def _added(tokenizer, before: list[int], new: list[int]) -> str:
    """What `new` adds to the text: decoded after the piece before it, for some tokenizers drop a text's first blank."""
    known, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (before, before + new))
    return whole[len(known) :]

"""A model behind an OpenAI-compatible endpoint (POST base_url/chat/completions), as a judge.

The key is read from an environment variable when a request is made and goes into that request's header alone: it is no
attribute, and what the server or the network says is cleared of it before it is shown or kept.

What was paid for is kept, in runs/endpoint/replies.jsonl: a judge that is made anew, after an error say, asks only for
what is not there. A prompt that is asked twice has two replies. Delete the file to ask everything again.
"""

import asyncio
import hashlib
import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from labkit import runs
from labkit.config.studies import check_base_url, check_key_variable
from labkit.errors import ConfigError, ModelError

LONGEST_WAIT = 60.0  # seconds, whatever Retry-After says
LONGEST_REPLY = 4_000_000  # bytes
LOOPBACK = ("localhost", "127.0.0.1", "::1")
NOT_AS_MEANT = (ValueError, LookupError, TypeError, RecursionError)  # of JSON that is none, or holds something else


def replies_file() -> Path:
    return runs.runs_dir() / "endpoint" / "replies.jsonl"


@dataclass
class Endpoint:
    """Asks for a verdict in words and reads its letter. Raises ConfigError for an address or key that cannot be used.

    timeout: seconds for one whole request. tries: requests before giving up on time-outs, broken replies, 408, 429 and
    5xx, the wait doubling from one second unless Retry-After says how long. max_tokens: a reply that is cut off there
    is unreadable; a model that thinks first needs thousands. parallel: requests at once. price_in, price_out: per
    million tokens, 0 where unknown.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    tries: int = 5
    max_tokens: int = 256
    parallel: int = 4
    price_in: float = 0.0
    price_out: float = 0.0
    used: dict = field(default_factory=lambda: {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0})
    kept: dict[str, list[str]] = field(default_factory=lambda: _kept_replies(), repr=False)  # not yet used here
    settings: dict = field(init=False)  # sent with every prompt; without what the server has refused

    def __post_init__(self):
        check_base_url(self.base_url)
        check_key_variable(self.key_variable)
        parts = urlsplit(self.base_url)
        if not self.model:
            raise ConfigError("judge must name the endpoint's model", got=self.model, remedy="Ask its GET /models.")
        if _key(self.key_variable) and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            remedy = f"Use https, or unset {self.key_variable} where the server needs no key."
            raise ConfigError("base_url must be https for a key to be sent", got=self.base_url, remedy=remedy)
        self.settings = {"temperature": 0, "max_tokens": self.max_tokens}

    @property
    def name(self) -> str:
        return f"{self.model} at {urlsplit(self.base_url).hostname}"

    def estimate(self, prompts: Sequence[str]) -> dict:
        """{requests, tokens_in, tokens_out_at_most, cost_at_most, kept} before any request; a token taken as 4 bytes.

        kept: prompts whose reply is there already and that are not asked. cost_at_most is in the prices' currency, None
        where a price is unknown. Repeated requests are not in it.
        """
        wanted, new = Counter(prompts), []
        for prompt, times in wanted.items():
            new += [prompt] * max(0, times - len(self.kept.get(self._place(prompt), ())))
        tokens_in = sum(len(_sound(prompt).encode()) // 4 + 8 for prompt in new)
        tokens_out = self.max_tokens * len(new)
        return {
            "requests": len(new), "tokens_in": tokens_in, "tokens_out_at_most": tokens_out,
            "cost_at_most": self._cost(tokens_in, tokens_out), "kept": len(prompts) - len(new),
        }  # fmt: skip

    def spent(self) -> dict:
        """What the server has counted up to now: {requests, prompt_tokens, completion_tokens, cost}."""
        return {**self.used, "cost": self._cost(self.used["prompt_tokens"], self.used["completion_tokens"])}

    def _cost(self, tokens_in: int, tokens_out: int) -> float | None:
        if not self.price_in or not self.price_out:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def __call__(self, prompts: Sequence[str], options: Sequence[str]) -> list[list[float] | None]:
        """For each prompt 1 for the option it chose and 0 for the others, or None where no option could be read.

        Raises ModelError where the endpoint refuses, or has failed `tries` times: nothing more is asked then, and what
        is on its way is waited for and kept.
        """
        chosen = [verdict(reply, options) for reply in self.write(prompts)]
        return [None if one is None else [float(option == one) for option in options] for one in chosen]

    def write(self, prompts: Sequence[str]) -> list[str]:
        """What the model writes to each prompt, in their order. Raises ModelError as above."""
        with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as thread:
            work = loop.create_task(self._write(prompts))
            try:  # in a thread, for a notebook's own has a loop that runs already
                return thread.submit(loop.run_until_complete, work).result()
            finally:  # an interrupt ends the requests on their way too
                loop.call_soon_threadsafe(work.cancel)

    async def _write(self, prompts: Sequence[str]) -> list[str]:
        replies, faults, waiting, stop = [""] * len(prompts), [], iter(enumerate(prompts)), asyncio.Event()

        async def work() -> None:
            for place, prompt in waiting:  # all workers take from it
                try:
                    replies[place] = await self._kept_or_new(client, prompt, stop)
                except Exception as error:
                    faults.append(error)
                    stop.set()
                if stop.is_set():
                    return

        near = urlsplit(self.base_url).hostname in LOOPBACK  # no proxy stands before this machine itself
        async with httpx.AsyncClient(timeout=None, trust_env=not near) as client:  # `_post` has the time limit
            await asyncio.gather(*(work() for _ in range(self.parallel)))
        if faults:
            raise faults[0]
        return replies

    async def _kept_or_new(self, client: httpx.AsyncClient, prompt: str, stop: asyncio.Event) -> str:
        place = self._place(prompt)
        if self.kept.get(place):
            return self.kept[place].pop(0)
        text = await self._reply(client, prompt, stop)
        _keep_reply(place, text)
        return text

    def _place(self, prompt: str) -> str:
        """Under what name a reply to the prompt is kept: a hash of what it depends on."""
        about = [self.base_url, self.model, self.max_tokens, prompt]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    async def _reply(self, client: httpx.AsyncClient, prompt: str, stop: asyncio.Event) -> str:
        for attempt in range(self.tries):
            fault, pause = "", 2.0**attempt
            try:
                status, headers, body = await self._post(client, prompt)
            except (httpx.HTTPError, TimeoutError) as error:  # its text may hold the header: only its kind is told
                fault = type(error).__name__
            if not fault and status == 200:
                try:
                    return self._read(body)
                except NOT_AS_MEANT:
                    fault = f"a reply that is no chat completion: {self._complaint(body)}"
            elif not fault:
                fault = f"HTTP {status}: {self._complaint(body)}"
                if status not in (408, 429) and status < 500:
                    remedy = f"Check base_url, the model's name and the key in {self.key_variable}."
                    raise ModelError(f"{self.name} must accept the request", got=fault, remedy=remedy)
                pause = _retry_after(headers.get("retry-after", "")) or pause
            if attempt + 1 < self.tries:
                await _pause(min(pause, LONGEST_WAIT), stop)
            if stop.is_set():  # another prompt's fault has ended the batch, and is the one that is told
                break
        remedy = "Wait and run again, or raise tries or timeout."
        raise ModelError(f"{self.name} must reply within {self.tries} tries", got=fault, remedy=remedy)

    async def _post(self, client: httpx.AsyncClient, prompt: str) -> tuple[int, httpx.Headers, bytes]:
        """(status, headers, body) of one request, asked again where the server refuses a setting by its name."""
        key, settings, body = _key(self.key_variable), self.settings, b""
        content = {"model": self.model, "messages": [{"role": "user", "content": _sound(prompt)}], **settings}
        address = self.base_url.rstrip("/") + "/chat/completions"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (  # the limit is on connecting, sending, headers and body together: a server may drip any of them
            asyncio.timeout(self.timeout),
            client.stream("POST", address, json=content, headers=headers, follow_redirects=False) as reply,
        ):
            async for part in reply.aiter_bytes():
                body += part
                if len(body) > LONGEST_REPLY:
                    break
        if reply.status_code == 400 and (accepted := _accepted(settings, body.decode("utf-8", "replace"))) != settings:
            self.settings = accepted
            return await self._post(client, prompt)
        return reply.status_code, reply.headers, body

    def _read(self, body: bytes) -> str:
        """The reply's text, "" where the model wrote none or was cut off, as when it thought for all of max_tokens."""
        reply = json.loads(body)
        choices, usage = reply["choices"], reply.get("usage")
        self.used["requests"] += 1  # before the text is looked at: it is paid for in any case
        for name in ("prompt_tokens", "completion_tokens"):
            number = usage.get(name) if isinstance(usage, dict) else None
            self.used[name] += number if isinstance(number, int) else 0
        text = choices[0]["message"]["content"]
        if isinstance(text, list):  # the form in parts, of which some servers give thoughts as well
            text = "".join(part["text"] for part in text if part["type"] == "text")
        if not isinstance(text, str | None):
            raise TypeError(text)
        return "" if choices[0].get("finish_reason") == "length" else self._cleared(_sound(text or ""))

    def _complaint(self, body: bytes) -> str:
        """What the server says of a fault, without the key: its error's message, else how the body begins."""
        text = body.decode("utf-8", "replace")
        with suppress(*NOT_AS_MEANT):
            text = str(json.loads(body)["error"]["message"])
        return self._cleared(_sound(text))[:200]

    def _cleared(self, text: str) -> str:
        """The text without the key that a server may have repeated in it."""
        key = _key(self.key_variable)
        return text.replace(key, "[key]") if key else text


def verdict(reply: str, options: Sequence[str]) -> str | None:
    """The option that the last line with a verdict ends in ("Verdict: A"), or that is all the reply says; else None.

    What goes on after the letter ("Verdict: A tie", "Verdict: A is worse than B", "Verdict: 4.5"), and a line that
    names two verdicts, as one that repeats the question does, is no verdict.
    """
    letter = rf"(?<![A-Za-z0-9.−–-])({'|'.join(map(re.escape, options))})(?![A-Za-z0-9])"
    said, end = rf"verdict(?:[\W_]|is|the|better|answer|option)*{letter}", r"(?:[^\w?\n]|_)*"
    found = [line[2] for line in re.finditer(rf"(?im)^(?:(?!{said}).)*{said}{end}$", reply)]  # [1] is of (?!...)
    alone = re.fullmatch(rf"(?i)[\W_]*{letter}[\W_]*", reply)
    chosen = found[-1] if found else alone[1] if alone else ""
    return next((option for option in options if option.lower() == chosen.lower()), None)


def _accepted(settings: dict, complaint: str) -> dict:
    """The settings without those that a refusal names: reasoning models have another limit, and no temperature."""
    kept = dict(settings)
    if "max_tokens" in complaint and "max_tokens" in kept:
        kept["max_completion_tokens"] = kept.pop("max_tokens")
    if "temperature" in complaint:
        kept.pop("temperature", None)
    return kept


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    """Wait so long, or until nothing more is to be asked."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _sound(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs: JSON may hold them, and UTF-8 has no form for them."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _kept_replies() -> dict[str, list[str]]:
    """{place: replies in their order} of the file; a line that cannot be read is left out."""
    found, file = defaultdict(list), replies_file()
    for line in file.read_bytes().split(b"\n") if file.exists() else ():
        try:
            row = json.loads(line)
            found[row["place"]].append(_sound(str(row["text"])))
        except NOT_AS_MEANT:
            continue
    return found


def _keep_reply(place: str, text: str) -> None:
    """Append in one write; the newline comes first, so that a line which a crash tore spoils no other."""
    file = replies_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, b"\n" + json.dumps({"place": place, "text": text}).encode())
    finally:
        os.close(handle)


def _key(variable: str) -> str:
    """The key, "" where there is none. Raises ConfigError, without the key, where no header could carry it."""
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"{variable} must hold a key of one line in plain letters", remedy="Set it again.")
    return key


def _retry_after(value: str) -> float:
    """Seconds that Retry-After asks for, as a number or as a date; 0 where it says nothing."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0

"""Judges whose faults are known: each is found. An endpoint that misbehaves, and a key that shows nowhere."""

import json
import re
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from labkit import models
from labkit.config import JudgeConfig
from labkit.errors import ConfigError, DataError, LabError, ModelError
from labkit.evaluate import endpoint, judge, votes
from labkit.evaluate.endpoint import Endpoint, verdict
from labkit.execute import run_notebook

KEY = "sk-test-5f1c0a9e77"


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Pairs whose gold, length and owner vary independently; the better answer says "good"."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        gold, own = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))
        sides = [
            " ".join(["good" if gold == side else "poor", "mine" if own == side else "theirs"] + ["w"] * length)
            for side, length in ((1, rng.integers(2, 20)), (-1, rng.integers(2, 20)))
        ]
        about = {"prompt": f"Question {number}?", "reference": "good"}
        found.append({**about, "first": sides[0], "second": sides[1], "gold": gold, "own": own})
    return found


def by(rule):
    """A judge that sees the two answers as they stand in the prompt: rule(a, b) > 0 for A, < 0 for B, 0 for neither."""

    def asked(prompts, options):
        assert tuple(options) == ("A", "B")
        shown = [re.search(r"Answer A: (.*?)\n\nAnswer B: (.*?)\n\n", prompt, re.S).groups() for prompt in prompts]
        return [[(1 + lead) / 2, (1 - lead) / 2] for lead in (float(np.sign(rule(*sides))) for sides in shown)]

    return asked


ORACLE = by(lambda a, b: a.startswith("good") - b.startswith("good"))
LENGTH = by(lambda a, b: len(a.split()) - len(b.split()))
ALWAYS_A = by(lambda a, b: 1)
OWN = by(lambda a, b: ("mine" in a) - ("mine" in b))


def coin():
    rng = np.random.default_rng(3)
    return by(lambda a, b: rng.choice([-1, 1]))


@pytest.mark.parametrize("wording", judge.WORDINGS)
def test_an_oracle_passes_the_audit(wording):
    rows = judge.compare(ORACLE, pairs(80), wording)
    assert [row["verdict"] for row in rows] == [row["gold"] for row in rows] == [row["leaning"] for row in rows]
    evidence = judge.audit(rows)
    assert judge.usable(evidence) == "may be used" and all(one.supports for one in evidence)
    assert judge.influences(rows)["gold"] == pytest.approx((1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("biased", "name"), [(ALWAYS_A, "position"), (LENGTH, "length"), (OWN, "own")], ids=["position", "length", "own"]
)
def test_a_bias_is_found_and_no_other(biased, name):
    rows = judge.compare(biased, pairs(80))
    effects = judge.influences(rows)
    assert effects.pop(name) == pytest.approx((1.0, 1.0, 1.0))
    assert all(low <= 1e-9 and high >= -1e-9 for _, low, high in effects.values()), effects
    refuted = {one.name for one in judge.audit(rows) if one.refutes}
    assert f"size of {name} bias" in refuted and judge.usable(judge.audit(rows)) == "may not be used"


def test_a_judge_of_position_agrees_with_nothing_and_a_liking_for_b_counts_as_much():
    rows = judge.compare(ALWAYS_A, pairs(60))
    assert judge.agreement(rows)[0] == 0.0 and judge.consistency(rows)[0] == 0.0
    assert {row["verdict"] for row in rows} == {row["leaning"] for row in rows} == {0}
    rows = judge.compare(by(lambda a, b: -1), pairs(60))
    assert judge.influences(rows)["position"][0] == pytest.approx(-1.0)
    size = next(one for one in judge.audit(rows) if one.name == "size of position bias")
    assert size.estimate == pytest.approx(1.0) and size.refutes


def test_a_coin_does_not_pass():
    rows = judge.compare(coin(), pairs(200))
    effects = judge.influences(rows)
    assert all(low < 0 < high for _, low, high in effects.values()), effects
    _, low, high = judge.agreement(rows)
    assert low < 0 < high < 0.4 and judge.usable(judge.audit(rows)) == "may not be used"


def test_intervals_of_an_influence_hold_the_truth():
    """A judge that follows gold in four of five cases and else tosses a coin: the true effect is 0.8."""
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(100 + seed)
        mixed = by(lambda a, b, rng=rng: a.startswith("good") - b.startswith("good") if rng.random() < 0.8
                   else rng.choice([-1, 1]))  # fmt: skip
        _, low, high = judge.influences(judge.compare(mixed, pairs(60, seed)))["gold"]
        hits += low <= 0.8 <= high
    assert hits >= 51  # 95% of 60 is 57; fewer than 51 would come of an interval that is too narrow


def test_a_few_pairs_show_nothing():
    decided = [{**pair, "gold": 1, "own": 0} for pair in pairs(4)]
    mostly = judge.compare(by(lambda a, b: 1 if a < b else -1), decided)
    for row, said in zip(mostly, ((1, 1), (1, 1), (1, 1), (1, -1)), strict=True):
        row |= {"forward": said[0], "backward": said[1], "verdict": 1 if said == (1, 1) else 0}
    found = judge.audit(mostly)
    assert not any(one.refutes for one in found) and judge.usable(found).startswith("not shown")
    with pytest.raises(DataError, match="pairs must be decided by gold; got '4 ties'"):
        judge.agreement([{**row, "gold": 0} for row in mostly])


def test_kappa_against_scikit_learn():
    rng = np.random.default_rng(0)
    for labels in (2, 3, 5):
        left = rng.integers(labels, size=200)
        right = np.where(rng.random(200) < 0.6, left, rng.integers(labels, size=200))
        assert judge.kappa(left, right) == pytest.approx(cohen_kappa_score(left, right))
    assert judge.kappa([1, 1], [1, 1]) == 0.0
    table = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15  # observed 0.7, expected 0.5
    assert judge.kappa(*zip(*table, strict=True)) == pytest.approx(0.4)


def test_wordings_that_disagree_are_counted():
    rows, others = judge.compare(ORACLE, pairs(40)), judge.compare(LENGTH, pairs(40))
    different = sum(row["forward"] != other["forward"] for row, other in zip(rows, others, strict=True))
    assert judge.changed(rows, others)[0] == different / 40 > 0 == judge.changed(rows, rows)[0]
    stuck, tossed = judge.compare(ALWAYS_A, pairs(40)), judge.compare(coin(), pairs(40))
    assert judge.changed(stuck, tossed)[0] > 0.5
    assert judge.changed(stuck, judge.compare(by(lambda a, b: -1), pairs(40)), of=["leaning"])[0] == 0.0


def test_unreadable_verdicts_are_no_verdicts():
    def mute(prompts, options):
        return [None] * len(prompts)

    rows = judge.compare(mute, pairs(30))
    assert {(row["forward"], row["verdict"]) for row in rows} == {(None, 0)}
    assert judge.consistency(rows)[0] == 0.0 and judge.agreement(rows)[0] == 0.0
    assert all(effect == 0 for effect, _, _ in judge.influences(rows).values())
    assert judge.usable(judge.audit(rows)) == "may not be used"


@pytest.fixture(scope="module")
def local():
    return judge.Local(*models.load("smoke", seed=5), "smoke", batch_size=3)


def test_the_local_judge_by_hand(local):
    """p(A) and p(B) after "Verdict:", one prompt at a time, without padding."""
    asked = ["Short?", "A longer question than the first, with more words?", "Middle one, then?", "B?"]
    for options in (("A", "B"), judge.GRADES):
        for prompt, row in zip(asked, local(asked, options), strict=True):
            text = f"<|user|> {prompt}<|assistant|>Verdict:"
            ids = local.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
            letters = [local.tokenizer(f"{text} {one}", add_special_tokens=False)["input_ids"] for one in options]
            assert all(len(one) >= ids.shape[1] + 1 for one in letters)
            shared = len(letters[0]) - 1  # " 1" may be a blank and a digit: then the blank belongs to the prompt
            ids = torch.tensor([letters[0][:shared]])
            with torch.no_grad(), models.autocast():
                logits = local.model(ids, use_cache=False).logits[0, -1].float()
            expected = logits[[one[shared] for one in letters]].softmax(-1)
            assert row == pytest.approx(expected.tolist(), abs=5e-3)


def test_judges_write_answers_too(local, key):
    assert len(local.write(["Short?", "B?"])) == 2
    with Server(says("Lima.")) as server:
        assert Endpoint(server.url, **key).write(["p", "q"]) == ["Lima.", "Lima."]


def test_the_local_judge_refuses_before_judging(local):
    with pytest.raises(DataError, match="prompts must fit the judge's 1024 tokens; got '1 longer'"):
        local(["short", "word " * 2000], ("A", "B"))
    assert local.estimate(["a b", "c"])["requests"] == 2


def test_grades_are_means(local):
    marks = judge.grade(lambda prompts, options: [[0, 0, 0, 0, 1.0], [0.5, 0, 0, 0, 0.5], None], [
        {"prompt": "q", "answer": "{braces} stay"}] * 3)  # fmt: skip
    assert marks == [5.0, 3.0, None]
    assert all(1 <= mark <= 5 for mark in judge.grade(local, [{"prompt": "q", "answer": "a"}]))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Verdict: A", "A"), ("Both are fine.\n**Verdict:** B", "B"), ("B", "B"), ("[[A]]", "A"), ("(B).", "B"),
        ("Verdict: A\nNo, wait.\nVerdict: B", "B"), ("The verdict is: answer A.", "A"), ("The verdict is a tie", None),
        ("A good answer is hard to find", None), ("", None), ("Verdict: C", None), ("Verdict: About the same", None),
    ],
)  # fmt: skip
def test_verdicts_are_read_or_not_at_all(reply, expected):
    assert verdict(reply, ("A", "B")) == expected


def test_only_votes_of_people_count(tmp_path):
    file = tmp_path / "votes.jsonl"
    said = [(votes.HUMAN, "a"), (votes.HUMAN, "b"), (votes.HUMAN, "tie"), (votes.HUMAN, "both_bad")]
    for number, (voter, choice) in enumerate([*said, (votes.SCRIPTED, "a")]):
        battle = {"id": str(number), "prompt": "q", "models": {"a": "m", "b": "n"}, "answers": {"a": "x", "b": "y"}}
        assert votes.add(battle, choice, voter, file)
    with file.open("a") as handle:
        handle.write('{"voter": "human", "choi')  # a kernel that died in writing
    with pytest.warns(UserWarning, match="unreadable"):
        found, left_out = judge.human_votes(file)
    assert [one["vote"] for one in found] == [1, -1, 0, 0] and left_out == 1
    assert {(one["prompt"], one["first"], one["second"]) for one in found} == {("q", "x", "y")}
    assert judge.human_votes(tmp_path / "none.jsonl") == ([], 0)


# ---- an endpoint on loopback ----


class Server:
    """A real HTTP server on loopback that answers by a list of behaviours, the last one for ever."""

    def __init__(self, *behaviours):
        self.behaviours, self.seen, self.lock = list(behaviours), [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *parts):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.prompt = body["messages"][0]["content"]
                with outer.lock:
                    outer.seen.append({"path": self.path, "key": self.headers.get("Authorization"), "body": body})
                    behave = outer.behaviours.pop(0) if len(outer.behaviours) > 1 else outer.behaviours[0]
                try:
                    behave(self)
                except OSError:  # the client has gone
                    self.close_connection = True

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def send(handler, status, body: bytes, *, length=None, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


def completion(text) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}).encode()


def says(text):
    return lambda handler: send(handler, 200, completion(text))


def fails(status, body=b"no", **headers):
    return lambda handler: send(handler, status, body, **headers)


def cut(handler):
    send(handler, 200, completion("Verdict: A")[:20], length=500)
    handler.close_connection = True


def slow(handler):
    time.sleep(1.5)
    send(handler, 200, completion("Verdict: A"))


def dripping(handler):
    """A good reply, a byte now and then: each read is in time, the whole is not."""
    body = b" " * 12 + completion("Verdict: A")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for place in range(12):
        handler.wfile.write(body[place : place + 1])
        handler.wfile.flush()
        time.sleep(0.1)
    handler.wfile.write(body[12:])


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return {"model": "m", "key_variable": "JUDGE_KEY", "parallel": 1}


def test_an_endpoint_judges(key):
    with Server(says("Verdict: A"), says("I think.\nVerdict: B"), says("no idea")) as server:
        one = Endpoint(server.url + "/", **key, price_in=2.0, price_out=10.0, max_tokens=50)
        estimate = one.estimate(["four" * 10, "more" * 10])
        assert one.used["requests"] == 0 and not server.seen  # shown before it starts
        assert estimate == {"requests": 2, "tokens_in": 36, "tokens_out_at_most": 100, "cost_at_most": 0.001072,
                            "kept": 0}  # fmt: skip
        assert one(["p1", "p2", "p3"], ("A", "B")) == [[1.0, 0.0], [0.0, 1.0], None]
        assert one.spent() == pytest.approx(
            {"requests": 3, "prompt_tokens": 33, "completion_tokens": 9, "cost": (33 * 2 + 9 * 10) / 1e6}
        )
    assert [row["path"] for row in server.seen] == ["/v1/chat/completions"] * 3
    assert {row["key"] for row in server.seen} == {f"Bearer {KEY}"}
    assert server.seen[0]["body"]["messages"] == [{"role": "user", "content": "p1"}]
    assert server.seen[0]["body"]["temperature"] == 0 and server.seen[0]["body"]["model"] == "m"
    assert Endpoint(server.url, **key).estimate(["p"])["cost_at_most"] is None  # a price of 0 is not known


def test_many_at_once_keep_their_order(key):
    letters = ["A", "B", "B", "A", "A", "B", "A", "B"]

    def echo(handler):
        time.sleep(0.1 if handler.prompt == "A" else 0.0)
        says(f"Verdict: {handler.prompt}")(handler)

    with Server(echo) as server:
        found = Endpoint(server.url, **{**key, "parallel": 4})(letters, ("A", "B"))
    assert ["A" if row == [1.0, 0.0] else "B" for row in found] == letters


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        (fails(429, Retry_After="7"), [7.0]), (fails(429, Retry_After="100000"), [60.0]), (fails(429), [1.0]),
        (fails(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), [1.0]), (fails(500), [1.0]), (fails(503), [1.0]),
        (fails(200, b"{not json"), [1.0]), (fails(200, b"[]"), [1.0]), (fails(200, b'{"choices": []}'), [1.0]),
        (fails(200, b"\xff\xfe\x00"), [1.0]), (cut, [1.0]), (slow, [1.0]), (dripping, [1.0]),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again(key, fault, waited):
    pauses = []
    with Server(fault, says("Verdict: B")) as server:
        one = Endpoint(server.url, **key, timeout=0.6, sleep=pauses.append)
        assert one(["p"], ("A", "B")) == [[0.0, 1.0]]
    assert pauses == waited and len(server.seen) == 2


def test_a_reply_without_text_is_paid_for_once_and_no_verdict(key):
    """As of a model that spent all of its tokens on thinking; at temperature 0 it would do so again."""
    with Server(says(None), says("Verdict: B")) as server:
        one = Endpoint(server.url, **key)
        assert one(["p"], ("A", "B")) == [None]
    assert len(server.seen) == 1 and one.used["requests"] == 1 and one.used["completion_tokens"] > 0


def test_what_was_paid_for_is_not_asked_again(key):
    with Server(says("Verdict: A"), fails(400, b"wrong")) as server:
        with pytest.raises(ModelError, match="HTTP 400"):
            Endpoint(server.url, **{**key, "parallel": 1})(["p1", "p2"], ("A", "B"))
        again = Endpoint(server.url, **key)
        assert again.estimate(["p1", "p2"])["kept"] == 1 and again.estimate(["p1", "p2"])["requests"] == 1
    with Server(says("Verdict: B")) as other:
        assert Endpoint(other.url, **key).estimate(["p1"])["kept"] == 0  # another address: another judge
    assert KEY not in endpoint.replies_file().read_text()


@pytest.mark.parametrize(
    "reply", ["Verdict: Answer A", "Verdict: Option A", "Verdict: __A__", "**Verdict:** the better is A"]
)
def test_a_verdict_in_other_words(reply):
    assert endpoint.verdict(reply, ("A", "B")) == "A"


def test_what_does_not_pass_is_given_up(key):
    pauses = []
    with Server(fails(500, b"down")) as server, pytest.raises(ModelError, match=r"within 4 tries.*HTTP 500: down"):
        Endpoint(server.url, **key, tries=4, sleep=pauses.append)(["p"], ("A", "B"))
    assert pauses == [1.0, 2.0, 4.0] and len(server.seen) == 4
    with pytest.raises(ModelError, match="ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", **key, tries=1)(["p"], ("A", "B"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_refusal_is_not_tried_again_and_no_redirect_gets_the_key(key, status):
    with Server(says("Verdict: A")) as other, Server(fails(status, b"wrong", Location=other.url)) as server:
        with pytest.raises(ModelError, match=f"HTTP {status}: wrong.*JUDGE_KEY"):
            Endpoint(server.url, **key)(["p"] * 50, ("A", "B"))
        assert len(server.seen) <= 2 and not other.seen


def test_the_key_shows_nowhere(key, tmp_path, capfd, monkeypatch, caplog):
    """Not in an error, its traceback or its causes, not in repr or fields, not printed, logged or written."""
    caplog.set_level("DEBUG")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    echo = f"invalid key {KEY}".encode()
    shown = []
    for behave in (fails(401, echo), fails(500, echo), fails(200, echo), cut):
        with Server(behave) as server:
            one = Endpoint(server.url, **key, tries=2, sleep=lambda seconds: None)
            with pytest.raises(LabError) as caught:
                one(["p"], ("A", "B"))
            assert server.seen[0]["key"] == f"Bearer {KEY}"  # it was sent, so it could have leaked
        shown += [str(caught.value), repr(caught.value.got), "".join(traceback.format_exception(caught.value))]
        shown += [repr(one), repr(vars(one)), one.name, json.dumps(one.spent())]
    for bad in (f"{KEY}\nX-Other: 1", f"{KEY} {KEY}", f"{KEY}\u00e9"):
        monkeypatch.setenv("JUDGE_KEY", bad)
        with pytest.raises(ConfigError, match="JUDGE_KEY must hold a key of one line") as caught:
            Endpoint("https://api.example.org/v1", **key)
        shown += [str(caught.value), "".join(traceback.format_exception(caught.value))]
    with Server(says("Verdict: A")) as server:
        monkeypatch.setenv("JUDGE_KEY", KEY)
        import labkit

        config = JudgeConfig(base_url=server.url, judge="m", key_variable="JUDGE_KEY")
        rows = judge.compare(Endpoint(server.url, **key), pairs(6))
        evidence = judge.consistency(rows)
        labkit.record("12_llm_as_judge", config, {"consistent": evidence[0]})
    shown += [*capfd.readouterr(), caplog.text]
    written = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert written and not [text for text in shown + written if KEY in text]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("api.example.org", "address of an API"), ("ftp://example.org/v1", "address of an API"),
        (f"https://user:{KEY}@example.org/v1", "no name, password or query"),
        (f"https://example.org/v1?key={KEY}", "no name, password or query"),
        ("http://example.org/v1", "must be https for a key"),
    ],
)  # fmt: skip
def test_addresses_that_would_show_the_key_are_refused(key, url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Endpoint(url, **key)
    assert KEY not in str(caught.value)
    if "https for" not in said:
        with pytest.raises(ConfigError, match=said):
            JudgeConfig(base_url=url)


def test_without_a_key_none_is_sent_and_plain_http_is_fine(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    Endpoint("http://192.168.0.7:8000/v1", model="m", key_variable="JUDGE_KEY")
    with Server(says("Verdict: A")) as server:
        Endpoint(server.url, model="m", key_variable="JUDGE_KEY")(["p"], ("A", "B"))
    assert server.seen[0]["key"] is None
    with pytest.raises(ConfigError, match="judge must name the endpoint's model"):
        Endpoint(server.url, model="")


@pytest.mark.notebook
def test_a_notebook_judged_by_an_endpoint_keeps_no_key(key, store):
    """Not where all goes well, nor where the server repeats it; and no more requests than were announced."""
    options = {"model": "smoke", "judge": "m", "key_variable": "JUDGE_KEY"}
    with Server(says("Verdict: A")) as server:
        folder = run_notebook("12_llm_as_judge", {**options, "base_url": server.url})
    assert {row["key"] for row in server.seen} == {f"Bearer {KEY}"}
    found = json.loads((folder / "record.json").read_text())["metrics"]
    assert found["position_influence"] == 1.0 and found["may_be_used"] == 0
    book = next(folder.glob("*.ipynb")).read_text()
    announced = int(re.search(r"requests\s+tokens_in.*?\\n\D*(\d+)", book, re.S)[1])
    assert 0 < len(server.seen) <= announced
    with Server(fails(401, f"invalid key {KEY}".encode())) as server, pytest.raises(LabError) as caught:
        run_notebook("12_llm_as_judge", {**options, "base_url": server.url})
    shown = [str(caught.value), "".join(traceback.format_exception(caught.value))]
    shown += [file.read_text("utf-8", "replace") for file in store.rglob("*") if file.is_file()]
    assert not [text for text in shown if KEY in text]

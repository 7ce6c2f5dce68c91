"""An endpoint that misbehaves, verdicts in many words, paid replies that are kept, and a key that shows nowhere."""

import json
import re
import signal
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from labkit.config import JudgeConfig
from labkit.errors import ConfigError, LabError, ModelError
from labkit.evaluate import endpoint, judge
from labkit.evaluate.endpoint import Endpoint, verdict
from labkit.execute import run_notebook

KEY = "sk-test-5f1c0a9e77"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Verdict: A", "A"), ("Both are fine.\n**Verdict:** B", "B"), ("B", "B"), ("[[A]]", "A"), ("(B).", "B"),
        ("Verdict: A\nNo, wait.\nVerdict: B", "B"), ("The verdict is: answer A.", "A"), ("The verdict is a tie", None),
        ("A good answer is hard to find", None), ("", None), ("Verdict: C", None), ("Verdict: About the same", None),
        ("Verdict: Answer A", "A"), ("Verdict: Option B", "B"), ("Verdict: __B__", "B"), ("__A__", "A"),
        ("**Verdict:** the better answer is B", "B"), ("VERDICT - (A)", "A"), ("Verdict: AB", None),
        ("Verdict: the same", None), ("verdictA", None), ("verdict: b", "B"), ("VERDICT: a.", "A"), ("b", "B"),
        ('My verdict is: "Verdict: B".', "B"), ("**Verdict:**\n\n**A**\n", "A"), ("Verdict: A\r\nThanks.", "A"),
        ("Verdict: A\nThis verdict is about brevity.", "A"), ("Verdict: A tie.", None), ("Verdict: A?", None),
        ("Verdict: A is worse than B", None), ("Verdict: A or B", None), ("Verdict: A, B", None),
        ('I must end with "Verdict: A" or "Verdict: B". Let me', None),
        ('I must end with "Verdict: A" or "Verdict: B".', None),
        ('Either "Verdict: A" or "Verdict: B".\nIt is short.\nVerdict: A', "A"),
    ],
)  # fmt: skip
def test_verdicts_are_read_or_not_at_all(reply, expected):
    assert verdict(reply, ("A", "B")) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Verdict: 4", "4"), ("Verdict: **5**.", "5"), ("3", "3"), ("Verdict: 4.5", None), ("Verdict: 4/5", None),
        ("Verdict: -1", None), ("-1", None), ("Verdict: 10", None), ("Verdict: 0", None), ("Verdict: 6", None),
        ("Verdict: 2 to 3", None), ("Verdict: 2-3", None), ("Verdict: .5", None), ("4.5", None),
    ],
)  # fmt: skip
def test_grades_are_whole_and_within_the_scale_or_unreadable(reply, expected):
    assert verdict(reply, judge.GRADES) == expected


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
                body = self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
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


def completion(text, **about) -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 3}
    choice = {"message": {"role": "assistant", "content": text}, **about}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


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


def dripping_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(12):
        handler.wfile.write(b"X-%d: yes\r\n" % n)
        time.sleep(0.1)
    body = completion("Verdict: A")
    handler.wfile.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)


def early(handler):
    """Interim responses without end."""
    while True:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.01)


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
def key(store, monkeypatch):
    """What an endpoint needs; the store is empty, so that no reply is there from a server that had the same port."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return {"model": "m", "key_variable": "JUDGE_KEY", "parallel": 1}


@pytest.fixture
def pauses(monkeypatch):
    """The waits between tries, which the test does not wait for."""
    found = []

    async def noted(seconds, stop):
        found.append(seconds)

    monkeypatch.setattr(endpoint, "_pause", noted)
    return found


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


def test_an_endpoint_writes_answers_too(key):
    with Server(says("Lima.")) as server:
        assert Endpoint(server.url, **key).write(["p", "q"]) == ["Lima.", "Lima."]


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
        (fails(200, b"\xff\xfe\x00"), [1.0]), (fails(200, b"[" * 200_000), [1.0]), (cut, [1.0]), (slow, [1.0]),
        (dripping, [1.0]), (dripping_headers, [1.0]), (early, [1.0]),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again(key, pauses, fault, waited):
    with Server(fault, says("Verdict: B")) as server:
        one = Endpoint(server.url, **key, timeout=0.6)  # for the whole request, not for each of its reads
        assert one(["p"], ("A", "B")) == [[0.0, 1.0]]
    assert pauses == waited and len(server.seen) == 2


def test_a_reply_without_text_is_paid_for_once_and_no_verdict(key):
    """As of a model that spent all of its tokens on thinking; at temperature 0 it would do so again."""
    with Server(says(None), says("Verdict: B")) as server:
        one = Endpoint(server.url, **key)
        assert one(["p"], ("A", "B")) == [None]
    assert len(server.seen) == 1
    assert one.used == {"requests": 1, "prompt_tokens": 11, "completion_tokens": 3}


def test_a_reply_that_is_cut_off_is_unreadable(key):
    """It would have gone on: "Verdict: A is worse", perhaps."""
    with Server(fails(200, completion("Verdict: A", finish_reason="length"))) as server:
        assert Endpoint(server.url, **key)(["p"], ("A", "B")) == [None]
        assert Endpoint(server.url, **key).estimate(["p"])["kept"] == 1


def test_a_reply_in_parts_is_joined_without_its_thoughts(key):
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Verdict"}, {"type": "text", "text": ": B"}]
    with Server(says(parts)) as server:
        assert Endpoint(server.url, **key).write(["p"]) == ["Verdict: B"]


def test_half_of_a_surrogate_pair_spoils_neither_the_reply_nor_what_is_kept(key):
    body = completion("half").replace(b"half", b"\\ud83d, whole \\ud83d\\ude00")
    with Server(fails(200, body)) as server:
        assert Endpoint(server.url, **key).write(["p"]) == ["\ufffd, whole \U0001f600"]
        file = endpoint.replies_file()
        file.write_bytes(file.read_bytes().replace(b"ufffd", b"ud83d"))  # as it was kept before
        one = Endpoint(server.url, **key)
        (said,) = one.write(["p"])
        assert said.encode() and one.spent()["requests"] == 0
        assert one.estimate(["\ud83d"])["requests"] == 1 and one.write(["\ud83d"])
        assert server.seen[-1]["body"]["messages"][0]["content"] == "\ufffd"


def test_an_error_under_status_200_is_told_without_the_key(key, pauses):
    body = json.dumps({"error": {"message": f"no credit left for {KEY}", "code": 402}}).encode()
    with Server(fails(200, body)) as server, pytest.raises(ModelError, match=r"no credit left for \[key\]"):
        Endpoint(server.url, **key, tries=2)(["p"], ("A", "B"))
    assert pauses == [1.0]


def reasons(handler):
    """As OpenAI's reasoning models: no temperature, and the limit under another name."""
    if "max_tokens" in handler.body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
    elif "temperature" in handler.body:
        message = "Unsupported value: 'temperature' does not support 0 with this model. Only the default is supported."
    else:
        return says("Verdict: A")(handler)
    fails(400, json.dumps({"error": {"message": message}}).encode())(handler)


@pytest.mark.parametrize("parallel", [1, 4])
def test_a_reasoning_model_is_asked_in_its_own_way(key, parallel):
    with Server(reasons) as server:
        one = Endpoint(server.url, **{**key, "parallel": parallel}, tries=1, max_tokens=77)
        assert one(["p"] * 8, ("A", "B")) == [[1.0, 0.0]] * 8
        last = server.seen[-1]["body"]
        assert last["max_completion_tokens"] == 77 and not {"max_tokens", "temperature"} & set(last)
        assert len(server.seen) <= 8 + 2 * parallel  # learnt once, not with every prompt
    with Server(fails(400, b"temperature and max_tokens are odd")) as server, pytest.raises(ModelError, match="odd"):
        Endpoint(server.url, **key)(["p"], ("A", "B"))
    assert len(server.seen) == 2


@pytest.mark.parametrize("usage", [None, [], "none", {"prompt_tokens": None}, {"completion_tokens": "3"}])
def test_a_usage_that_is_none_spoils_no_verdict(key, usage):
    body = json.dumps({"choices": [{"message": {"content": "Verdict: A"}}], "usage": usage}).encode()
    with Server(fails(200, body)) as server:
        one = Endpoint(server.url, **key)
        assert one(["p"], ("A", "B")) == [[1.0, 0.0]]
    assert len(server.seen) == 1 and one.used == {"requests": 1, "prompt_tokens": 0, "completion_tokens": 0}


def test_what_was_paid_for_is_not_asked_again(key):
    with Server(says("Verdict: A"), fails(400, b"wrong"), says("Verdict: B")) as server:
        with pytest.raises(ModelError, match="HTTP 400"):
            Endpoint(server.url, **key)(["p1", "p2"], ("A", "B"))
        with endpoint.replies_file().open("ab") as file:
            file.write(b'\n{"place": "torn')
        again = Endpoint(server.url, **key)
        estimate = again.estimate(["p1", "p2"])
        assert (estimate["kept"], estimate["requests"]) == (1, 1) and estimate["tokens_out_at_most"] == again.max_tokens
        assert again(["p1", "p2"], ("A", "B")) == [[1.0, 0.0], [0.0, 1.0]]
        assert [row["body"]["messages"][0]["content"] for row in server.seen] == ["p1", "p2", "p2"]
        assert again(["p1"], ("A", "B")) == [[0.0, 1.0]]  # asked a second time, it is a second reply
        third = Endpoint(server.url, **key)
        assert third.estimate(["p1", "p1", "p2"])["kept"] == 3 and third.spent()["requests"] == 0
        assert third.estimate(["p1"] * 3)["requests"] == 1
        assert Endpoint(server.url, **key, max_tokens=9).estimate(["p1"])["kept"] == 0  # it might have said more
    with Server(says("Verdict: B")) as other:
        assert Endpoint(other.url, **key).estimate(["p1"])["kept"] == 0  # another address: another judge
    assert KEY not in endpoint.replies_file().read_text()


def test_what_does_not_pass_is_given_up(key, pauses):
    with Server(fails(500, b"down")) as server, pytest.raises(ModelError, match=r"within 4 tries.*HTTP 500: down"):
        Endpoint(server.url, **key, tries=4)(["p"], ("A", "B"))
    assert pauses == [1.0, 2.0, 4.0] and len(server.seen) == 4
    with pytest.raises(ModelError, match="ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", **key, tries=1)(["p"], ("A", "B"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302])
def test_a_refusal_is_not_tried_again_and_no_redirect_gets_the_key(key, status):
    with Server(says("Verdict: A")) as other, Server(fails(status, b"wrong", Location=other.url)) as server:
        with pytest.raises(ModelError, match=f"HTTP {status}: wrong.*JUDGE_KEY"):
            Endpoint(server.url, **key)(["p"] * 50, ("A", "B"))
        assert len(server.seen) == 1 and not other.seen


def mixed(handler):
    """One prompt is refused, one is to wait, one takes its time; others would be answered."""
    if handler.prompt == "slow":
        time.sleep(0.5)
    if handler.prompt == "bad":
        time.sleep(0.1)  # the others have come by then
        fails(401, b"refused")(handler)
    elif handler.prompt == "busy":
        fails(429, Retry_After="50")(handler)
    else:
        says("Verdict: A")(handler)


def test_after_a_fault_nothing_more_is_asked_and_nobody_waits(key):
    """With four at once as well; what was on its way, and is paid for, is kept."""
    with Server(mixed) as server:
        started = time.monotonic()
        with pytest.raises(ModelError, match="HTTP 401: refused"):
            Endpoint(server.url, **{**key, "parallel": 3})(["busy", "slow", "bad"] + ["p"] * 50, ("A", "B"))
        assert time.monotonic() - started < 5  # not the 50 seconds of Retry-After
        asked = sorted(row["body"]["messages"][0]["content"] for row in server.seen)
        assert asked == ["bad", "busy", "slow"]
        assert Endpoint(server.url, **key).estimate(["slow"])["kept"] == 1


def test_an_interrupt_is_not_waited_for(key):
    """Neither the requests on their way nor the waits between tries go on after it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Server(lambda handler: mixed(handler) if handler.prompt == "busy" else time.sleep(3)) as server:
            end = threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
            end.start()
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                Endpoint(server.url, **{**key, "parallel": 2})(["busy", "silent", "p"], ("A", "B"))
            assert time.monotonic() - started < 2.5 and len(server.seen) == 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_key_shows_nowhere(key, pauses, tmp_path, capfd, monkeypatch, caplog):
    """Not in an error, its traceback or its causes, not in repr or fields, not printed, logged or written."""
    caplog.set_level("DEBUG")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABKIT_RUNS", str(tmp_path / "runs"))
    echo = f"invalid key {KEY}".encode()
    shown = []
    for behave in (fails(401, echo), fails(500, echo), fails(200, echo), cut):
        with Server(behave) as server:
            one = Endpoint(server.url, **key, tries=2)
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
    with Server(says(f"Your key is {KEY}.\nVerdict: A")) as server:
        monkeypatch.setenv("JUDGE_KEY", KEY)
        import labkit

        config = JudgeConfig(base_url=server.url, judge="m", key_variable="JUDGE_KEY")
        (said,) = Endpoint(server.url, **key).write(["p"])
        assert said == "Your key is [key].\nVerdict: A"
        pair = {"prompt": "q", "first": "x", "second": "y", "gold": 1}
        rows = judge.compare(Endpoint(server.url, **key), [pair])
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
        ("http://[::1/v1", "host or port cannot be read"), ("http://localhost:80o0/v1", "host or port cannot be read"),
        (f"https://user:{KEY}@example.org:{KEY}/v1", "host or port cannot be read"),
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


@pytest.mark.parametrize("name", [KEY, "sk_LIVE", "MY-KEY", "KEY 1", "1KEY"])
def test_a_key_in_the_place_of_its_variable_is_refused_and_not_repeated(name):
    for made in (lambda: JudgeConfig(key_variable=name), lambda: Endpoint("http://localhost/v1", "m", name)):
        with pytest.raises(ConfigError, match="key_variable must be the name of an environment variable") as caught:
            made()
        shown = str(caught.value) + repr(caught.value.got) + "".join(traceback.format_exception_only(caught.value))
        assert name not in shown
    assert JudgeConfig(key_variable="_KEY_2").key_variable == "_KEY_2"
    assert Endpoint("http://localhost/v1", "m", "").key_variable == ""  # no key is asked for


def test_without_a_key_none_is_sent_and_plain_http_is_fine(store, monkeypatch):
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
        asked = len(server.seen)
        second = run_notebook("12_llm_as_judge", {**options, "base_url": server.url})
        again = json.loads((second / "record.json").read_text())
        assert len(server.seen) == asked  # all is kept, and reading a file is no pace of a judge
        assert "seconds_per_verdict" not in again["metrics"]
        assert "seconds a verdict" not in {one["name"] for one in again["verdicts"][0]["evidence"]}
    assert {row["key"] for row in server.seen} == {f"Bearer {KEY}"}
    found = json.loads((folder / "record.json").read_text())["metrics"]
    assert found["position_influence"] == 1.0 and found["may_be_used"] == 0
    book = next(folder.glob("*.ipynb")).read_text()
    announced = int(re.search(r"requests\s+tokens_in.*?\\n\D*(\d+)", book, re.S)[1])
    assert 0 < len(server.seen) <= announced
    assert found["seconds_per_verdict"] > 0 and found["unreadable"] == 0
    with Server(fails(401, f"invalid key {KEY}".encode())) as server, pytest.raises(LabError) as caught:
        run_notebook("12_llm_as_judge", {**options, "base_url": server.url})
    shown = [str(caught.value), "".join(traceback.format_exception(caught.value))]
    shown += [file.read_text("utf-8", "replace") for file in store.rglob("*") if file.is_file()]
    assert not [text for text in shown if KEY in text]

"""Three hundred malformed files and more: nothing trains on rubbish, and no mistake of the library's shows through.

Whatever bytes a file holds, it gives rows whose texts are those that it spells out, or a DataError with a remedy.
"""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit import data, preferences, reader
from labkit.errors import DataError

MANY = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
NAMES = (
    "prompt",
    "answer",
    "completion",
    "messages",
    "conversations",
    "chosen",
    "rejected",
    "text",
    "system",
    "tools",
    "id",
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12) | st.just("Say it."),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "content", "from", "value", "tool_calls")), inner, max_size=3)
        | st.fixed_dictionaries(
            {"role": st.sampled_from(("user", "assistant", "system", "tool", "x", 3)), "content": inner}
        )
    ),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5) | VALUES, max_size=6)
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"])
READERS = (data.instructions, data.corpus, preferences.pairs)


def checked(path, content: bytes) -> int:
    """Each reader gives sound rows or a DataError; how many gave rows."""
    path.write_bytes(content)
    gave = 0
    for read in READERS:
        try:
            train, held_out = read(str(path))
        except DataError as error:
            assert error.remedy and len(str(error)) < 5000
            continue
        gave += 1
        assert len(train) and len(held_out)
        for row in [*train, *held_out]:
            texts = [row[name] for name in ("prompt", "answer", "chosen", "rejected", "text") if name in row]
            assert texts and all(isinstance(text, str) and text.encode() for text in texts if text)
            assert row["row"] >= 1
            if "chat" in row:
                said = json.loads(row["chat"])["messages"]
                assert {one["role"] for one in said} <= {"system", "user", "assistant", "tool"}
                assert any(one["role"] == "assistant" for one in said) and said[0]["role"] != "assistant"
    return gave


@MANY
@given(content=st.binary(max_size=200), suffix=SUFFIXES)
def test_any_bytes(tmp_path_factory, content, suffix):
    checked(tmp_path_factory.mktemp("bytes") / f"own{suffix}", content)


@MANY
@given(
    rows=ROWS, array=st.booleans(), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
)
def test_any_json(tmp_path_factory, rows, array, encoding):
    text = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    checked(tmp_path_factory.mktemp("json") / "own.jsonl", text.encode(encoding))


@MANY
@given(
    cells=st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=5),
    head=st.sampled_from(["prompt,answer", "prompt,chosen,rejected", "text", "a,a", ""]),
)
def test_any_table(tmp_path_factory, cells, head):
    text = "\n".join([head, *(",".join(row) for row in cells)])
    checked(tmp_path_factory.mktemp("csv") / "own.csv", text.encode("utf-8", "surrogatepass"))


@MANY
@given(place=st.integers(0, 400), byte=st.integers(0, 255), drop=st.booleans())
def test_a_sound_file_with_one_byte_wrong_is_read_or_refused(tmp_path_factory, place, byte, drop):
    """Never read as something else: what is read of the other lines is what stands there."""
    rows = [{"prompt": f"What is {n}?", "answer": f"It is {n}."} for n in range(10)]
    content = bytearray("".join(json.dumps(row) + "\n" for row in rows).encode())
    place %= len(content)
    if drop:
        del content[place]
    else:
        content[place] = byte
    path = tmp_path_factory.mktemp("flip") / "own.jsonl"
    path.write_bytes(bytes(content))
    try:
        found = reader.records(path, ("prompt", "answer"))
    except DataError as error:
        assert error.remedy
        return
    same = sum(row == rows[n] for n, (_, row) in enumerate(found) if n < len(rows))
    assert same >= 8 or len(found) != len(rows)


def test_the_generators_make_files_that_are_read_too(tmp_path):
    """Else the tests above would say nothing: of sound rows every form is read."""
    rows = [
        {"prompt": f"{n}?", "answer": f"{n}.", "chosen": f"{n}.", "rejected": "no", "text": f"t{n}"} for n in range(9)
    ]
    assert checked(tmp_path / "own.jsonl", "\n".join(map(json.dumps, rows)).encode()) == 3

"""A reader's own files: JSONL, JSON, CSV, Parquet and text, each read rightly or refused with its line and the reason.

Only the columns that are asked for are looked at: what else a file holds need not be of one type, or readable at all.
Rows of conversations become lists of messages {role, content} in the roles of chat templates.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.errors import DataError

MARKS = {  # how a file begins that is not UTF-8 text: its encoding, or what it is
    b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}  # fmt: skip
PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip (a spreadsheet is one too)", b"\x28\xb5\x2f\xfd": "zstd", b"PAR1": "Parquet"}
ROLES = {  # roles as files name them -> as chat templates do
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "model": "assistant", "tool": "tool",
}  # fmt: skip
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
MEANT = "Write one object a line, as JSON."


def records(path: Path, columns: Iterable[str] = ()) -> list[tuple[int, dict]]:
    """(line, row) of each row of a file; a row holds those of `columns` that the file has, or without any all of them.

    line: where the row begins, counted from 1; in Parquet, which has no lines, the row. Raises DataError.
    """
    if not path.is_file():
        raise DataError("data file not found", got=str(path), remedy='Give the path of a JSONL file, or "lab".')
    wanted = set(columns)
    kind = path.suffix.lower()
    read = {".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".txt": _documents}.get(kind, _json)
    try:
        rows = list(read(path, wanted))
    except RecursionError:
        raise DataError(f"{path.name} is nested too deeply", got=str(path), remedy=MEANT) from None
    if not rows:
        raise DataError(f"{path.name} holds no rows", got=str(path), remedy="Give a file with rows.")
    return [(line, {name: row[name] for name in row if not wanted or name in wanted}) for line, row in rows]


def text_of(path: Path) -> str:
    """The file's text: UTF-8, or UTF-16 or UTF-32 where a byte-order mark says so. Raises DataError with the line."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if packed := next((name for mark, name in PACKED.items() if content.startswith(mark)), ""):
        remedy = "Unpack it, or save it as JSONL." if packed != "Parquet" else "Let its name end in .parquet."
        raise DataError(f"{path.name} is no text but {packed}", got=str(path), remedy=remedy)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"{path.name} is not {encoding.upper()}: {error.reason} in line {line}"
        raise DataError(what, got=str(path), remedy="Save it as UTF-8; it may be Latin-1.") from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        remedy = "Save it as UTF-8; it may be UTF-16 without a mark."
        raise DataError(f"{path.name} holds a NUL character in line {line}", got=str(path), remedy=remedy)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _documents(path: Path, wanted: set[str]) -> Iterator[tuple[int, dict]]:
    text = text_of(path)
    for found in re.finditer(r"\S.*?(?=\n[^\S\n]*\n|\s*\Z)", text, re.DOTALL):
        yield text.count("\n", 0, found.start()) + 1, {"text": found[0].strip()}


def _json(path: Path, wanted: set[str]) -> Iterator[tuple[int, dict]]:
    text = text_of(path)
    if text.lstrip().startswith("["):  # one array of all rows, or else lines
        try:
            json.loads(text)
        except ValueError:
            pass
        else:
            yield from _array(path, text)
            return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                what = f"line {number} of {path.name} is no JSON object: {error}"
                raise DataError(what, got=line[:200], remedy=MEANT) from error
            yield number, _object(path, number, row)


def _array(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    """The objects of a JSON array with the lines on which they begin."""
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    gap = re.compile(r"[\s,]*")
    while text[place := gap.match(text, place).end()] != "]":
        row, end = decoder.raw_decode(text, place)
        number = text.count("\n", 0, place) + 1
        yield number, _object(path, number, row)
        place = end


def _object(path: Path, number: int, row) -> dict:
    if not isinstance(row, dict):
        what = f"line {number} of {path.name} is no JSON object but {type(row).__name__}"
        raise DataError(what, got=json.dumps(row)[:200], remedy=MEANT)
    return row


def _csv(path: Path, wanted: set[str]) -> Iterator[tuple[int, dict]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = csv.reader(io.StringIO(text_of(path), newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(2**31 - 1)
    begins, header = 1, None
    try:
        for cells in lines:
            if header is None:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header) or "" in header:
                    remedy = "Name every column, each otherwise, in the first line."
                    raise DataError(f"{path.name} must name its columns in line 1", got=header, remedy=remedy)
            elif cells:
                if len(cells) != len(header):
                    what = f"line {begins} of {path.name} has {len(cells)} cells for {len(header)} columns"
                    raise DataError(
                        what, got=str(cells)[:200], remedy='Put a cell that holds the separator in "quotes".'
                    )
                yield begins, dict(zip(header, cells, strict=True))
            begins = lines.line_num + 1
    except csv.Error as error:
        remedy = 'Put cells with separators or line breaks in "quotes", and write a quote in them twice.'
        raise DataError(f"line {begins} of {path.name} is no CSV: {error}", got=str(path), remedy=remedy) from error


def _parquet(path: Path, wanted: set[str]) -> Iterator[tuple[int, dict]]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        table = file.read(columns=[name for name in names if not wanted or name in wanted])
        yield from enumerate(table.to_pylist(), 1)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"{path.name} is no readable Parquet file: {str(error)[:200]}"
        raise DataError(what, got=str(path), remedy="Write it again.") from error


def sound(value, what: str) -> str:
    """The text as it is. Raises ValueError, its fault in words, where it is none, is empty or cannot be written."""
    if not isinstance(value, str):
        raise ValueError(f"have {what} that is no text but {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"have an empty {what}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"have {what} with half of a surrogate pair, which is no character") from None
    return value


def messages(found) -> list[dict]:
    """Messages in the form of chat templates, from [{role, content}] or ShareGPT's [{from, value}].

    Of an assistant's message tool_calls are kept, of a tool's its name. Raises ValueError: the fault in words.
    """
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found) or not found:
        raise ValueError("have messages that are no list of objects with role and content")
    said = []
    for one in found:
        shared_gpt = "from" in one and "role" not in one
        role, content = (one.get("from"), one.get("value")) if shared_gpt else (one.get("role"), one.get("content"))
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"have a message of the unknown role {str(role)[:40]!r}")
        kept = {"role": ROLES[role]}
        calls = one.get("tool_calls")
        kept["content"] = "" if calls and not content else sound(content, "message")
        if calls and (ROLES[role] != "assistant" or not isinstance(calls, list)):
            raise ValueError("have tool calls that are no list in a message of the assistant")
        named = isinstance(one.get("name"), str)
        said.append(kept | ({"tool_calls": calls} if calls else {}) | ({"name": one["name"]} if named else {}))
    _system_first(said)
    return said


def _system_first(said: list[dict]) -> None:
    if any(one["role"] == "system" for one in said[1:]):
        raise ValueError("have a system message after the first one")


def _side(value, role: str, what: str) -> list[dict]:
    """A text, or a list of messages, as messages."""
    return messages(value) if isinstance(value, list) else [{"role": role, "content": sound(value, what)}]


def chat(row: dict) -> tuple[list[dict], list | None]:
    """(messages, tools) of an SFT row in any of its forms. Raises ValueError: the fault in words.

    prompt with answer or completion, as texts or lists of messages; `messages`; ShareGPT's `conversations`. Beside
    them `system`, a text, and `tools`, a list, or that as JSON.
    """
    whole = row.get("messages") if row.get("messages") is not None else row.get("conversations")
    if whole is not None:
        said = messages(whole)
    else:
        answer = row.get("answer") if row.get("answer") is not None else row.get("completion")
        said = _side(row.get("prompt"), "user", "prompt") + _side(answer, "assistant", "answer")
        _system_first(said)
    if row.get("system") not in (None, ""):
        system = {"role": "system", "content": sound(row["system"], "system")}
        if said[0]["role"] == "system" and said[0] != system:
            raise ValueError("have a system column and another system message")
        said = [system, *(one for one in said if one["role"] != "system")]
    first = next((one for one in said if one["role"] != "system"), None)
    if first and first["role"] == "assistant":
        raise ValueError("begin with the assistant's message: nobody asked")
    if not any(one["role"] == "assistant" for one in said):
        raise ValueError("have no message of the assistant: nothing would be learned")
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            raise ValueError("have tools that are no JSON") from None
    if tools and (not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("have tools that are no list of objects")
    return said, tools or None


def named(lines: list[int], unit: str = "line", most: int = 10) -> str:
    """ "line 4", or "lines 4, 17, ..." with the first ten."""
    return f"{unit}{'s' * (len(lines) > 1)} " + ", ".join(map(str, lines[:most])) + ", ..." * (len(lines) > most)


def refuse(name: str, faults: dict[str, list[int]], total: int, what: str, remedy: str) -> None:
    """Raise DataError where there are faults: each counted, its lines named."""
    if faults:
        unit = "row" if name.endswith(".parquet") or "." not in name else "line"
        parts = "; ".join(f"{len(lines)} {fault} ({named(lines, unit)})" for fault, lines in faults.items())
        count = len({line for lines in faults.values() for line in lines})
        raise DataError(f"{count} of {total} {what} in {name} cannot be learned from: {parts}", got=name, remedy=remedy)

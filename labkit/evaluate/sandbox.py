"""The sandbox: code that a model wrote, run against a test, where it can neither reach anything nor grade itself.

Two processes that share only two pipes. The program's holds the untrusted code and answers calls of one function with
plain data; the test's holds the test, the expected values and the only way to say "passed". So whatever the program
does to its own process (os._exit, patched builtins, forged output, a value that claims to equal everything), it can
only return wrong values. Both are behind the walls of `inside`. Neither can start another process, so that killing two
processes kills everything.

Limits: seconds by the wall clock, memory, one process without threads each, bytes printed, bytes and number of files:
4 MiB of what the folder shows, looked at every 10 ms, and as much again in files that are open and already deleted,
for a process may have 16 open of 256 KiB each. A program can learn that a file outside exists (stat), not what it
holds. Where the kernel lacks the walls (Linux before 6.2, another system, a container that forbids them) `run` refuses;
`refusal` asks beforehand.
"""

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

OUTPUT, DISK, FILES = 2**16, 4 * 2**20, 64  # bytes printed, bytes of files, number of files
LOOK = 0.01  # seconds between two looks at the folder
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "QUOTA PERIOD" in microseconds, in a container


class SandboxError(LabError):
    """This machine cannot isolate a program."""


@dataclass(frozen=True)
class Verdict:
    """What came of a program: passed or not, why not, and the seconds that it took by the wall clock."""

    passed: bool
    reason: str
    seconds: float


def run(program: str, test: str, entry_point: str, *, setup: str = "", seconds: float = 5.0) -> Verdict:
    """Run `test` against the function `entry_point` of `program`.

    program: untrusted source. test: trusted source that calls `entry_point` and raises where it is wrong. setup:
    trusted source run before the test in its process, for helpers that it needs. Arguments and values must be plain
    data (None, numbers, text, bytes, lists, tuples, sets, dicts): the program gets copies, so that a change it makes to
    an argument is not seen, and one that returns anything else, such as a Fraction, has failed. Raises SandboxError
    where the program cannot be isolated.
    """
    _proven()
    return _run(program, test, entry_point, setup, seconds)


def run_all(tasks: Iterable[dict], *, seconds: float = 5.0) -> list[Verdict]:
    """The verdicts on many {program, test, entry_point, setup}, as many at a time as there are CPUs to use."""
    _proven()
    with ThreadPoolExecutor(_at_once()) as pool:
        return list(pool.map(lambda task: run(**task, seconds=seconds), tasks))  # an interrupt cancels what waits


def refusal() -> str:
    """Why this machine runs no generated code, or "" where it does."""
    try:
        _proven()
    except SandboxError as error:
        return str(error)
    return ""


def _at_once() -> int:
    """The CPUs that this process may use: those it is bound to, and no more than its container's share of time."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000", or no such file
        quota, period = CPU_MAX.read_text(encoding="ascii").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


@functools.cache
def _proven() -> None:
    """Once in a process: the walls stand, shown by a program that tries them. Raises SandboxError."""
    with tempfile.NamedTemporaryFile("w") as secret:
        secret.write("secret")
        secret.flush()
        for attempt in (f"open({secret.name!r})", "__import__('os').fork()", "__import__('socket').socket()"):
            found = _run(f"def f():\n    {attempt}", "f()", "f", "", 20.0)
            if found.passed:
                raise SandboxError(
                    "the sandbox must isolate", got=f"{attempt} went through", remedy="Run no generated code here."
                )
        if not (found := _run("def f():\n    return 1", "assert f() == 1", "f", "", 20.0)).passed:
            raise SandboxError("the sandbox must run a program", got=found.reason, remedy="Run no generated code here.")


def _run(program: str, test: str, entry_point: str, setup: str, seconds: float) -> Verdict:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="labkit-sandbox-", ignore_cleanup_errors=True) as folder, _Pipes() as pipes:
        places = [Path(folder, name) for name in ("program", "test")]
        for place, source in zip(places, (program, json.dumps([setup, test])), strict=True):
            place.mkdir()
            (place / "source").write_text(source, encoding="utf-8", errors="replace")
        to_program, to_test, verdict, output = (pipes.pair() for _ in range(4))
        program_fds, test_fds = (to_program[0], to_test[1]), (to_test[0], to_program[1], verdict[1])
        processes = [
            _start("program", places[0], entry_point, program_fds, output[1]),
            _start("test", places[1], entry_point, test_fds, subprocess.DEVNULL),
        ]
        pipes.close(*program_fds, *test_fds, output[1])
        try:
            said, reason = _watch(verdict[0], output[0], places[0], began + seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if said.startswith("no walls"):
        remedy = "Generated code needs Linux 6.2 or newer (x86_64 or aarch64) with Landlock and seccomp."
        raise SandboxError("the sandbox must isolate a program", got=said[:200], remedy=remedy)
    if processes[0].returncode == -signal.SIGSYS:
        reason = "made a system call that is not allowed (a process, thread, signal, socket, link, ...)"
    passed = said == "passed" and not reason
    return Verdict(passed, "" if passed else reason or said or "the test ended without a verdict",
                   time.monotonic() - began)  # fmt: skip


def _start(role: str, folder: Path, entry_point: str, pipes: tuple[int, ...], output: int) -> subprocess.Popen:
    script = Path(__file__).with_name("inside.py")
    command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", script, role, folder, entry_point, *map(str, pipes)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=pipes, env={}, start_new_session=True
    )


def _watch(verdict: int, output: int, folder: Path, deadline: float) -> tuple[str, str]:
    """(what the test said, which limit was broken) once the test's process has spoken or a limit is reached."""
    read = {verdict: b"", output: b""}
    with selectors.DefaultSelector() as watched:
        for end in read:
            watched.register(end, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            for key, _ in watched.select(LOOK):
                piece = os.read(key.fd, 2**16)
                read[key.fd] += piece
                if not piece:
                    watched.unregister(key.fd)
            if len(read[output]) > OUTPUT:
                return "", f"printed more than {OUTPUT:,} bytes"
            if _too_much(folder):
                return "", f"wrote more than {DISK:,} bytes or {FILES} files"
            if verdict not in watched.get_map():
                return read[verdict].decode(errors="replace"), ""
    return "", "ran out of time"


def _too_much(folder: Path) -> bool:
    total = 0
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_size
            if number >= FILES or total > DISK:
                return True
    return False


class _Pipes(contextlib.ExitStack):
    """Pipes that are closed at the end, whatever happens."""

    def __init__(self):
        super().__init__()
        self.open: set[int] = set()
        self.callback(lambda: self.close(*self.open))

    def pair(self) -> tuple[int, int]:
        ends = os.pipe()
        self.open |= set(ends)
        return ends

    def close(self, *ends: int) -> None:
        for end in ends:
            self.open.discard(end)
            os.close(end)

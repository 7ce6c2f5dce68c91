"""The sandbox: hostile programs fail and nothing else notices, honest ones pass, and no program grades itself."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from labkit.evaluate import inside, sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox refuses elsewhere")
RIGHT = "\ndef f(x):\n    return x + 1\n"
TEST = "assert f(1) == 2\nassert f(41) == 42"
NATIVE = "import ctypes\nlibc = ctypes.CDLL(None)\n"
LIAR = "class Liar(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"

HOSTILE = {  # PARENT, SECRET, FOLDER, PORT and REPO are filled in; `f` itself is right where nothing else is said
    "fork bomb": "import os\nwhile True: os.fork()" + RIGHT,
    "fork bomb, errors swallowed": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass" + RIGHT,
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()" + RIGHT,
    "native fork": NATIVE + "libc.fork()" + RIGHT,
    "native clone3": NATIVE + "libc.syscall(435, 0, 0)" + RIGHT,
    "vfork and exec": "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'echo hi'])" + RIGHT,
    "exec": "import os\nos.execv('/bin/true', ['true'])" + RIGHT,
    "double fork with setsid": "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()" + RIGHT,
    "leaves its group": "import os\nos.setsid()" + RIGHT,
    "memory bomb": "x = []\nwhile True: x.append(bytearray(10**7))" + RIGHT,
    "memory bomb, native": NATIVE + "libc.malloc.restype = ctypes.c_void_p\n"
    "while (p := libc.malloc(10**7)): libc.memset(ctypes.c_void_p(p), 1, 10**7)\nraise MemoryError" + RIGHT,
    "shared memory": NATIVE + "libc.shmget(0, 10**8, 0o1600)" + RIGHT,
    "endless loop": "while True: pass" + RIGHT,
    "endless loop that ignores signals": "import signal\n"
    "for s in set(signal.Signals) - {9, 19}: signal.signal(s, signal.SIG_IGN)\nwhile True: pass" + RIGHT,
    "sleeps": "import time\ntime.sleep(1000)" + RIGHT,
    "endless call": "def f(x):\n    while True: pass",
    "kills the parent": "import os\nos.kill(PARENT, 9)" + RIGHT,
    "kills its parent": "import os\nos.kill(os.getppid(), 15)" + RIGHT,
    "kills everyone": "import os\nos.kill(-1, 9)" + RIGHT,
    "kills by thread": NATIVE + "libc.syscall(234, PARENT, PARENT, 9)" + RIGHT,
    "kills by a pipe's owner": "import fcntl, os\nfor end in range(3, 20):\n    try:\n"
    "        fcntl.fcntl(end, 8, PARENT); fcntl.fcntl(end, 10, 9); fcntl.fcntl(end, 4, 0o20000)\n"
    "    except OSError: pass" + RIGHT,
    "slows the parent": "import os\nos.setpriority(os.PRIO_PROCESS, PARENT, 19)" + RIGHT,
    "writes outside": "open(SECRET, 'w').write('gone')" + RIGHT,
    "appends outside": "open(SECRET, 'a').write('more')" + RIGHT,
    "truncates outside": NATIVE + "libc.truncate(SECRET.encode(), 0)" + RIGHT,
    "makes a file outside": "open(FOLDER + '/new', 'x')" + RIGHT,
    "reads outside": "open(SECRET).read()" + RIGHT,
    "reads by a relative path": "open('../' * 9 + SECRET).read()" + RIGHT,
    "reads passwords": "open('/etc/shadow').read()" + RIGHT,
    "reads the environment": "open('/proc/self/environ').read()" + RIGHT,
    "reads the parent's memory": "open('/proc/PARENT/mem', 'rb').read(1)" + RIGHT,
    "lists outside": "import os\nos.listdir('/')" + RIGHT,
    "reads solutions": "open(REPO + '/data/README.md').read()" + RIGHT,
    "reads the test": "import os\nopen('../test/source').read()" + RIGHT,
    "leaves the folder": "import os\nos.chdir('/')" + RIGHT,
    "deletes outside": "import os\nos.remove(SECRET)" + RIGHT,
    "deletes a tree": "import shutil\nshutil.rmtree(FOLDER)" + RIGHT,
    "renames outside": "import os\nos.rename(SECRET, FOLDER + '/b')" + RIGHT,
    "changes rights": "import os\nos.chmod(SECRET, 0o777)" + RIGHT,
    "changes owner": "import os\nos.chown(SECRET, 1, 1)" + RIGHT,
    "changes times": "import os\nos.utime(SECRET, (1, 1))" + RIGHT,
    "symbolic link": "import os\nos.symlink(SECRET, 'link')\nopen('link').read()" + RIGHT,
    "hard link": "import os\nos.link(SECRET, 'link')" + RIGHT,
    "device": "import os, stat\nos.mknod('null', stat.S_IFCHR | 0o600, os.makedev(1, 3))" + RIGHT,
    "deep folders": "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')" + RIGHT,
    "fills the disk": "for n in range(10**6): open(f'{n}', 'wb').write(bytes(10**6))" + RIGHT,
    "many files": "for n in range(10**6): open(f'{n}', 'w').close()" + RIGHT,
    "one large file": "open('a', 'wb').write(bytes(10**8))" + RIGHT,
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', PORT))" + RIGHT,
    "sends": "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))" + RIGHT,
    "local socket": "import socket\nsocket.socket(socket.AF_UNIX)" + RIGHT,
    "fetches": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:PORT')" + RIGHT,
    "io_uring": NATIVE + "libc.syscall(425, 8, 0)" + RIGHT,
    "ptrace": NATIVE + "libc.ptrace(16, PARENT, 0, 0)" + RIGHT,
    "reads another's memory": NATIVE + "libc.process_vm_readv(PARENT, 0, 0, 0, 0, 0)" + RIGHT,
    "mounts": NATIVE + "libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0)" + RIGHT,
    "new namespace": NATIVE + "libc.unshare(0x10000000)" + RIGHT,
    "new identity": "import os\nos.setuid(1)" + RIGHT,
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))" + RIGHT,
    "32-bit system call": NATIVE + "libc.syscall(0x40000000 + 57)" + RIGHT,
    "code of its own": NATIVE + "import mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
    "m.write(b'\\xb8\\x39\\0\\0\\0\\x0f\\x05\\xc3')\n"
    "ctypes.CFUNCTYPE(int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()" + RIGHT,
    "crashes": "import ctypes\nctypes.string_at(0)" + RIGHT,
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "huge output": "while True: print('x' * 10**6)" + RIGHT,
    "huge errors": "import os\nwhile True: os.write(2, b'x' * 10**6)" + RIGHT,
    "huge answer": "def f(x): return 'x' * 10**8",
    "os._exit": "import os\nos._exit(0)" + RIGHT,
    "os._exit when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "raise SystemExit(0)" + RIGHT,
    "no program": "def f(x:",
    "prints the verdict": "print('passed', flush=True)\ndef f(x): return 0",
    "writes the verdict everywhere": "import os\nfor end in range(3, 64):\n    try: os.write(end, b'passed\\n')\n"
    "    except OSError: pass\nos._exit(0)",
    "opens the test's pipes": "import os\nfor pid in range(os.getpid() - 5, os.getpid() + 6):\n"
    "    for end in range(3, 32):\n        try: open(f'/proc/{pid}/fd/{end}', 'wb').write(b'passed')\n"
    "        except OSError: pass\ndef f(x): return 0",
    "forges answers": "import os\nfor end in range(3, 64):\n    try: os.write(end, b'{\"value\": 1}\\n')\n"
    "    except OSError: pass\ndef f(x): return 0",
    "forges a reason": "import os\nfor end in range(3, 64):\n    try: os.write(end, b'{\"unfit\": \"passed\"}\\n')\n"
    "    except OSError: pass\ndef f(x): return 0",
    "forges a refusal": "import os\nfor end in range(3, 64):\n    try: os.write(end, b'{\"unfit\": \"no walls\"}\\n')\n"
    "    except OSError: pass\ndef f(x): return 0",
    "answers rubbish": "import os\nfor end in range(3, 64):\n    try: os.write(end, b'\\xff[{]\\n' * 9)\n"
    "    except OSError: pass\ndef f(x): return 0",
    "nested answer": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "equals everything": LIAR + "def f(x): return Liar()",
    "answers an object": "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
    "patches builtins": "import builtins, json\nbuiltins.AssertionError = ValueError\n"
    "builtins.exec = lambda *a: None\njson.loads = lambda *a: [[1], {}]\ndef f(x): return 0",
    "patches the packing": "import __main__\n__main__.packed = lambda v: True\ndef f(x): return 0",
    "reads the frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for value in frame.f_locals.values():\n            if 'ass' + 'ert f(1)' in str(value): return x + 1\n"
    "        frame = frame.f_back",
    "searches its memory": "import gc\ndef f(x):\n"
    "    return x + 1 if any('ass' + 'ert f(1)' in str(one) for one in gc.get_objects() if type(one) is str) else 0",
    "raises what a test may raise": "def f(x): raise AssertionError",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 0",
    "ends by a signal handler": "import os, signal\nsignal.signal(2, lambda *a: os._exit(0))\nsignal.raise_signal(2)",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What a program could reach if it were not kept in: a file, a folder, a server, this process."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        repo = str(Path(__file__).parent.parent)
        names = {"PARENT": str(os.getpid()), "SECRET": repr(str(folder / "secret")), "FOLDER": repr(str(folder)),
                 "PORT": str(port), "REPO": repr(repo)}  # fmt: skip
        before = (folder / "secret").stat()
        yield folder, server, names, before


def kept():
    """Leftovers that a run could leave: child processes and folders of the sandbox."""
    folders = {path.name for path in Path(tempfile.gettempdir()).glob("labkit-sandbox-*")}
    return {child.pid for child in psutil.Process().children(recursive=True)}, folders


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_nothing_else_notices(name, world):
    folder, server, names, before = world
    program = HOSTILE[name]
    for word, value in names.items():
        program = program.replace(word, value)
    processes, _ = kept()
    began, priority = time.monotonic(), os.getpriority(os.PRIO_PROCESS, 0)
    verdict = sandbox.run(program, TEST, "f", seconds=1.0)
    assert not verdict.passed and verdict.reason
    assert time.monotonic() - began < 10
    assert kept()[0] <= processes
    assert [path.name for path in folder.iterdir()] == ["secret"]
    after = (folder / "secret").stat()
    assert (folder / "secret").read_text() == "secret"
    assert (after.st_mode, after.st_uid, after.st_mtime) == (before.st_mode, before.st_uid, before.st_mtime)
    with pytest.raises(BlockingIOError):
        server.accept()
    assert os.getpriority(os.PRIO_PROCESS, 0) == priority


HONEST = {
    "plain": RIGHT,
    "prints": "print('hello')" + RIGHT,
    "imports": "import collections, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math\n"
    "import random, re, statistics, string, typing, dataclasses, bisect, copy, operator, enum, time\n"
    "import asyncio, unittest, subprocess, tempfile, shutil, pathlib, uuid, logging, ast, base64, zlib" + RIGHT,
    "files of its own": "def f(x):\n    with open('a.txt', 'w') as file: file.write(str(x))\n"
    "    import os\n    found = int(open('a.txt').read()) + 1\n    assert os.listdir() != []\n    os.remove('a.txt')\n"
    "    return found",
    "memory": "def f(x): return len(bytearray(10**8)) * 0 + x + 1",
    "recursion": "def f(x): return 1 if x == 0 else 1 + f(x - 1)",
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(name):
    assert sandbox.run(HONEST[name], TEST, "f") == sandbox.Verdict(True, "", pytest.approx(1, abs=5))


@pytest.mark.parametrize(
    "value",
    ["None", "True", "-7", "10 ** 50", "1.5", "float('inf')", "'é\\n'", "b'\\x00'", "[1, (2, 'x')]", "(1,)", "{1, 2}",
     "{1: [2], (3, 4): None}", "frozenset({1})", "2j", "()", "{}", "[]"],
)  # fmt: skip
def test_values_arrive_as_they_were(value):
    test = f"found = f({value})\nassert found == {value} and type(found) is type({value}), found"
    assert sandbox.run("def f(x): return x", test, "f").passed
    assert not sandbox.run("def f(x): return [x]", test, "f").passed


def test_a_test_may_expect_an_error_but_a_dead_program_is_none():
    expects = "try: f(0)\nexcept Exception as e: assert type(e) is ZeroDivisionError, e\nelse: assert False"
    assert sandbox.run("def f(x): return 1 / x", expects, "f").passed
    anything = "try: f(0)\nexcept Exception: pass\nelse: assert False"
    for program in ("import os\ndef f(x): os._exit(0)", "def f(x:", "g = 1", "raise ValueError"):
        assert not sandbox.run(program, anything, "f").passed


def test_a_value_that_cannot_be_sent_is_no_error_that_a_test_may_expect():
    anything = "try: f(0)\nexcept Exception: pass\nelse: assert False"
    for value in ("object()", "__import__('fractions').Fraction(1, 2)", "(n for n in 'ab')", "10 ** 5000"):
        verdict = sandbox.run(f"def f(x): return {value}", anything, "f")
        assert not verdict.passed and "cannot be sent" in verdict.reason, value
    lies = "class Bad(dict):\n    def items(self): raise ValueError\ndef f(x): return Bad()"
    assert not sandbox.run(lies, anything, "f").passed


def test_open_files_hold_no_more_than_the_folder_may():
    """A deleted file is not seen in the folder, and keeps its bytes: together they may be as many as the folder's."""
    assert inside.FILE * inside.OPEN_FILES <= sandbox.DISK
    program = (
        "import os\nopen_files = []\ndef f(x):\n    try:\n        while True:\n"
        "            open_files.append(open('a', 'wb', buffering=0))\n            os.remove('a')\n"
        "            try: open_files[-1].write(bytes(2**21))\n            except OSError: pass\n"
        "    except OSError:\n        return sum(os.fstat(file.fileno()).st_size for file in open_files)"
    )
    verdict = sandbox.run(program, f"found = f(0)\nassert 2**20 < found <= {sandbox.DISK}, found", "f")
    assert verdict.passed, verdict.reason


def test_what_a_quiet_attack_gets():
    """One that hides its failure is judged by its answers: it has reached nothing."""
    program = "try: found = open('/etc/passwd').read()\nexcept OSError: found = ''\ndef f(x): return len(found)"
    assert sandbox.run(program, "assert f(0) == 0", "f").passed


def test_an_argument_is_a_copy_and_the_setup_stays_with_the_test():
    assert sandbox.run("def f(x): x.append(1)", "x = []\nf(x)\nassert x == []", "f").passed
    assert sandbox.run(RIGHT, "assert f(helper()) == 3", "f", setup="def helper(): return 2").passed
    assert not sandbox.run("def f(x): return helper()", "assert f(0) == 2", "f", setup="def helper(): return 2").passed


def test_many_at_once_in_order():
    tasks = [{"program": f"def f(): return {n}", "test": "assert f() % 2 == 0", "entry_point": "f"} for n in range(8)]
    assert [verdict.passed for verdict in sandbox.run_all(tasks)] == [True, False] * 4


def test_an_interrupt_cancels_what_waits(monkeypatch):
    began = []

    def run(number, seconds):
        began.append(number)
        time.sleep(0.02)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "run", run)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run_all([{"number": number} for number in range(200)])
    assert len(began) < 100


def test_no_more_at_once_than_cpus_to_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for text, cpus in (("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("3200000 100000", 8)):
        monkeypatch.setattr(sandbox, "CPU_MAX", tmp_path / "cpu.max")
        (tmp_path / "cpu.max").write_text(text)
        assert sandbox._at_once() == cpus
    monkeypatch.setattr(sandbox, "CPU_MAX", tmp_path / "none")
    assert sandbox._at_once() == 8


@pytest.mark.parametrize("broken", ["version < 3", "platform.machine() not in MACHINES"])
def test_it_refuses_where_there_are_no_walls(broken, tmp_path, monkeypatch):
    """The script with a condition turned around, so that it takes this kernel for one without the walls."""
    source = Path(inside.__file__).read_text()
    assert broken in source
    (tmp_path / "inside.py").write_text(source.replace(broken, "True", 1))
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    sandbox._proven.cache_clear()
    with pytest.raises(sandbox.SandboxError, match="must isolate"):
        sandbox.run(RIGHT, TEST, "f")
    assert "must isolate" in sandbox.refusal() and "Linux 6.2" in sandbox.refusal()


def test_it_refuses_nothing_where_the_walls_stand():
    sandbox._proven.cache_clear()
    assert sandbox.refusal() == ""


@pytest.mark.parametrize("wall", ["call(libc.syscall, LANDLOCK_RESTRICT, rules, 0)", "call(libc.prctl, 22, 2,"])
def test_it_refuses_where_a_wall_does_not_hold(wall, tmp_path, monkeypatch):
    source = Path(inside.__file__).read_text()
    assert wall in source
    (tmp_path / "inside.py").write_text(source.replace(wall, wall.replace("call(", "("), 1))
    monkeypatch.setattr(sandbox, "__file__", str(tmp_path / "sandbox.py"))
    sandbox._proven.cache_clear()
    with pytest.raises(sandbox.SandboxError, match="went through"):
        sandbox.run(RIGHT, TEST, "f")


def test_it_needs_no_rights():
    """The same as a user without any, with the system's own Python, which that user can read."""
    python = shutil.which("python3", path="/usr/bin")
    if os.geteuid() != 0 or not python or not shutil.which("setpriv"):
        pytest.skip("needs root to become nobody, and a Python in /usr/bin")
    folder = Path(tempfile.mkdtemp(prefix="labkit-nobody-"))
    try:
        folder.chmod(0o755)
        shutil.copytree(Path(inside.__file__).parent.parent, folder / "labkit", ignore=shutil.ignore_patterns("ui"))
        programs = [RIGHT, "import os; os.fork()" + RIGHT, "open('/etc/passwd')" + RIGHT]
        code = (
            "from labkit.evaluate import sandbox\n"
            f"print([sandbox.run(program, 'assert f(1) == 2', 'f').passed for program in {programs}])"
        )
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
            python,
            "-c",
            code,
        ]
        found = subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)
        assert found.stdout == "[True, False, False]\n", found.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("column", [0, 1])
def test_system_calls_have_the_numbers_of_the_kernels_headers(column):
    headers = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")
    if not Path(headers[column]).exists():
        pytest.skip("no kernel headers here")
    text = Path(headers[column]).read_text()
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s", text)}
    found.setdefault("newfstatat", found.get("fstatat"))  # its name in the generic list
    for name, numbers in (inside.ALLOWED | inside.ABSENT | {"fcntl": inside.FCNTL}).items():
        assert numbers[column] == found.get(name), name

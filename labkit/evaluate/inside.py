"""What runs inside the sandbox: the walls, then either the program as a server of calls, or the test that calls it.

Started by `sandbox` as a script of its own, `python -I -S inside.py program|test FOLDER ...`; it imports nothing of
labkit. The walls are the kernel's and need no rights: Landlock (Linux 6.2) lets the process read Python's library and
read and write one flat folder; a seccomp filter lets it make the few harmless system calls below. Any other, native
code's included, kills it: no process, thread, program, socket, signal, mount, link, folder or change of owner.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import sys
from pathlib import Path

# bytes of memory, bytes of one file, files open at once: a deleted file keeps its bytes while it is open, so that the
# last two together bound what the look at the folder cannot see
MEMORY, FILE, OPEN_FILES = 512 * 2**20, 2**18, 16

# number of each system call on x86_64 and, None where it has none, on aarch64
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "open": (2, None), "openat": (257, 56), "close": (3, 57), "stat": (4, None), "lstat": (6, None), "fstat": (5, 80),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "getcwd": (79, 17),
    "faccessat2": (439, 439), "getdents64": (217, 61), "unlink": (87, None), "unlinkat": (263, 35),
    "ftruncate": (77, 46), "dup": (32, 23),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "brk": (12, 214), "futex": (202, 98), "getrandom": (318, 278), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "getrusage": (98, 165), "times": (100, 153), "getpid": (39, 172),
    "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "uname": (63, 160), "sysinfo": (99, 179), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "poll": (7, None), "ppoll": (271, 73), "exit": (60, 93),
    "exit_group": (231, 94),
}  # fmt: skip
ABSENT = {  # answered "no such call", after which libraries go on
    "ioctl": (16, 29), "prlimit64": (302, 261), "rseq": (334, 293), "readlink": (89, None), "readlinkat": (267, 78),
    "epoll_create": (213, None), "epoll_create1": (291, 20),
}  # fmt: skip
FCNTL = (72, 25)
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # duplicate, get and set close-on-exec, get status: F_SETOWN would send signals
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH of linux/audit.h
KILL, ALLOW, NO_SUCH_CALL = 0x80000000, 0x7FFF0000, 0x00050000 | 38  # SECCOMP_RET_*, ENOSYS

READ, LIST = 1 << 2, 1 << 3  # LANDLOCK_ACCESS_FS_*
FLAT_FOLDER = READ | LIST | 1 << 1 | 1 << 5 | 1 << 8 | 1 << 14  # and write, remove and make plain files, truncate
ALL_ACCESS = (1 << 15) - 1  # of Landlock's third version
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446  # the same on both machines


class Attribute(ctypes.Structure):
    _fields_ = [("handled", ctypes.c_uint64)]


class Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(Instruction))]


def raise_walls(folder: str) -> None:
    """Shut this process in, for good. Raises OSError where the kernel does not: nothing untrusted may run then."""
    libc = ctypes.CDLL(None, use_errno=True)
    for name in ("binascii", "zlib", "bz2", "lzma"):  # their libraries are elsewhere, out of reach later
        with contextlib.suppress(ImportError):
            __import__(name)

    def call(function, *arguments) -> int:
        found = function(*(ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments))
        if found < 0:
            raise OSError(ctypes.get_errno(), f"{function.__name__}{arguments[:1]} was refused")
        return found

    if platform.machine() not in MACHINES or sys.platform != "linux":
        raise OSError(f"no list of system calls for {sys.platform} on {platform.machine()}")
    limits = {"CORE": 0, "FSIZE": FILE, "NOFILE": OPEN_FILES, "AS": MEMORY, "MEMLOCK": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    call(libc.prctl, 1, 9)  # PR_SET_PDEATHSIG: killed with the process that started it
    call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS

    version = call(libc.syscall, LANDLOCK_CREATE, 0, 0, 1)
    if version < 3:
        raise OSError(f"Landlock has version {version} here, 3 is needed")
    rules = call(libc.syscall, LANDLOCK_CREATE, ctypes.byref(Attribute(ALL_ACCESS)), 8, 0)
    library = os.path.dirname(os.__file__)
    parts = [entry for entry in os.scandir(library) if entry.name not in ("site-packages", "dist-packages")]
    readable = [(entry.path, READ | LIST if entry.is_dir() else READ) for entry in parts]
    for path, rights in [(folder, FLAT_FOLDER), (library, LIST), *readable]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(libc.syscall, LANDLOCK_ADD, rules, 1, ctypes.byref(Beneath(rights, place)), 0)
        os.close(place)
    call(libc.syscall, LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)

    code = system_call_filter(*MACHINES[platform.machine()])
    program = Filter(len(code), (Instruction * len(code))(*code))
    call(libc.prctl, 22, 2, ctypes.byref(program), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def system_call_filter(column: int, machine: int) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (code, jump if equal, jump if not, value) of the kernel's classic BPF."""
    load, equal, give = 0x20, 0x15, 0x06  # a word of {number at 0, machine at 4, arguments from 16 on}
    code = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, KILL), (load, 0, 0, 0)]
    for calls, answer in ((ALLOWED, ALLOW), (ABSENT, NO_SUCH_CALL)):
        for numbers in calls.values():
            if numbers[column] is not None:
                code += [(equal, 0, 1, numbers[column]), (give, 0, 0, answer)]
    commands = [step for command in FCNTL_COMMANDS for step in ((equal, 0, 1, command), (give, 0, 0, ALLOW))]
    code += [(equal, 1, 0, FCNTL[column]), (give, 0, 0, KILL), (load, 0, 0, 24), *commands]
    return [*code, (give, 0, 0, KILL)]


def packed(value):
    """Plain data as JSON that tells tuples, sets and bytes apart. Raises TypeError for anything else.

    A subclass loses its class here, so that an object that claims to equal everything does not reach the test.
    """
    if value is None or isinstance(value, bool | int | float | str):
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    for kind, name in ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if isinstance(value, kind):
            return {name: [packed(one) for one in value]}
    if isinstance(value, dict):
        return {"dict": [[packed(key), packed(one)] for key, one in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")


def unpacked(value):
    """The opposite; ValueError, TypeError or KeyError for what `packed` cannot have made."""
    if not isinstance(value, dict):
        return value
    [(name, content)] = value.items()
    if name == "dict":
        return {unpacked(key): unpacked(one) for key, one in content}
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    kind = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[name]
    return kind(unpacked(one) for one in content)


def serve(source: str, name: str, asked, answers) -> None:
    """Run the program, then answer calls of the function that it defines, one JSON a line."""
    space = {"__name__": "program"}
    try:
        exec(compile(source, "program.py", "exec"), space)
        unfit = "" if callable(space.get(name)) else f"the program defines no function {name}"
    except Exception as error:
        unfit = f"{type(error).__name__}: {str(error)[:200]}"
    for line in asked:
        try:
            if unfit:
                answers.write(json.dumps({"unfit": unfit}) + "\n")
                return
            arguments, named = unpacked(json.loads(line))
            value = space[name](*arguments, **named)
        except Exception as error:
            answer = json.dumps({"raised": type(error).__name__, "text": str(error)[:200]})
        else:
            answer = answer_line(value)
        answers.write(answer + "\n")
        answers.flush()


def answer_line(value) -> str:
    """The value as JSON. One that cannot be sent is no error of the function: a test may wait for an error."""
    try:
        return json.dumps({"value": packed(value)})
    except Exception as error:  # TypeError, RecursionError, ValueError of a number of thousands of digits
        return json.dumps({"unfit": f"the answer cannot be sent: {type(error).__name__}: {str(error)[:200]}"})


class Unfit(BaseException):
    """The program cannot be tested any further; no Exception, so that a test which expects one is not satisfied."""


def proxy(asked, answers, most: int = 2**20):
    """A function that lets the program's process compute its value."""

    def function(*arguments, **named):
        try:
            asked.write(json.dumps(packed((arguments, named))) + "\n")
            asked.flush()
            line = answers.readline(most)
        except BrokenPipeError:
            line = ""
        if not line:
            raise Unfit("the program ended before it answered")
        try:
            answer = json.loads(line)
            if "value" in answer:
                return unpacked(answer["value"])
            if "unfit" in answer:
                raise Unfit(str(answer["unfit"])[:300])
            kind, text = answer["raised"], answer["text"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise Unfit("the program's answer could not be read") from error
        found = getattr(__import__("builtins"), str(kind), None)
        known = isinstance(found, type) and issubclass(found, Exception)
        raise (found if known else RuntimeError)(text)

    return function


def judge(setup: str, test: str, name: str, asked, answers) -> str:
    """The word passed, or why not. `setup` and `test` are trusted; the program's process does not hold them."""
    first = answers.readline(400)
    if first != "walls\n":
        return f"no walls: {first.strip()}"
    space = {"__name__": "test"}
    try:
        exec(compile(setup, "setup.py", "exec"), space)
        space[name] = proxy(asked, answers)
        exec(compile(test, "test.py", "exec"), space)
    except Unfit as error:  # its text is the program's: never a verdict
        return f"failed: {error}"
    except BaseException as error:
        return f"failed: {type(error).__name__}: {str(error)[:200]}"
    return "passed"


def main(role: str, folder: str, name: str, *pipes: str) -> None:
    """A process of the sandbox. pipes: file numbers to read from and to write to, for a test also the verdict's."""
    reads, writes, *verdict = (int(number) for number in pipes)
    text = Path(folder, "source").read_text(encoding="utf-8")
    os.chdir(folder)
    reader, writer = os.fdopen(reads, encoding="utf-8", errors="replace"), os.fdopen(writes, "w", encoding="utf-8")
    out = os.fdopen(verdict[0], "w", encoding="utf-8") if verdict else writer
    try:
        raise_walls(folder)
    except OSError as error:
        out.write(f"no walls: {error}\n")
        return
    if role == "program":
        writer.write("walls\n")
        writer.flush()
        serve(text, name, reader, writer)
    else:
        out.write(judge(*json.loads(text), name, writer, reader))


if __name__ == "__main__":
    main(*sys.argv[1:])

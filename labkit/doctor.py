"""The doctor: what this machine can do for the lab, what is missing, and what to do about it."""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from labkit.runs import runs_dir

ROOT = Path(__file__).resolve().parent.parent
NEEDED = (
    "torch transformers trl datasets tokenizers accelerate papermill nbformat ipykernel jupyterlab ipywidgets plotly"
)
MEMORY_GB, DISK_GB = 4.0, 2.0  # what the default course needs, with room to spare


def checks() -> list[tuple[str, str, str, str]]:
    """(level, name, what was found, what to do) of each check; level "MISSING" is needed, "missing" is not."""
    one_each = _memory, _cores, _disk, _bf16, _devices, _sandbox, _git, _chromium
    return [_python(), *_packages(), *(check() for check in one_each)]


def _python():
    level = "ok" if sys.version_info >= (3, 11) else "MISSING"
    return level, "python", f"{platform.python_version()} on {platform.platform()}", "Install Python 3.11 or newer."


def _packages():
    locked = {}
    lock = ROOT / "requirements.lock"
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.exists() else []:
        pin = re.match(r"([A-Za-z0-9_.-]+)==([^\s;\\]+)", line)
        if pin:
            locked[re.sub(r"[-_.]+", "-", pin[1]).lower()] = pin[2]
    checks = []
    for name in NEEDED.split():
        try:
            found = version(name)
        except PackageNotFoundError:
            checks.append(("MISSING", name, "not installed", "Run `make lab`, or install requirements.lock with pip."))
            continue
        want = locked.get(name, found)
        same = found.split("+")[0] == want.split("+")[0]  # 2.13.0+cpu is torch 2.13.0
        remedy = f"requirements.lock has {want}: the lab was tested with that. Run `make lab`."
        checks.append(("ok" if same else "differs", name, found, remedy))
    return checks


def _memory():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    remedy = f"The default course peaks near 3 GB; below {MEMORY_GB:.0f} GB lower batch_size or use model=smoke."
    return "ok" if total / 1e9 >= MEMORY_GB else "low", "memory", f"{total / 1e9:.1f} GB", remedy


def _cores():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (
        "ok" if cores >= 2 else "low",
        "cores",
        str(cores),
        "Times in the notebooks are for 2 cores: expect twice them.",
    )


def _disk():
    folder = next(one for one in (runs_dir(), *runs_dir().parents) if one.exists())
    free = shutil.disk_usage(folder).free / 1e9
    remedy = f"Free {DISK_GB:.0f} GB, or set LABKIT_RUNS to a folder on a larger disk."
    return "ok" if free >= DISK_GB else "MISSING", "free disk", f"{free:.1f} GB at {folder}", remedy


def _bf16():
    try:
        flags = set(re.findall(r"avx512_bf16|amx_bf16|\bbf16\b", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    except OSError:
        flags = {"apple silicon"} if platform.machine() == "arm64" else set()
    found = f"bfloat16 in hardware ({', '.join(sorted(flags))})" if flags else "no bfloat16 in hardware"
    return "ok" if flags else "slower", "bf16", found, "Nothing to do: float32 is used, at about half the speed."


def _devices():
    if importlib.util.find_spec("torch") is None:
        return "MISSING", "devices", "unknown without torch", "Run `make lab`."
    import torch

    found = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found += ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    return "ok", "devices", ", ".join(["CPU", *found]), ""


def _sandbox():
    from labkit.evaluate import sandbox

    found = sandbox.refusal()
    remedy = "Notebook 11 leaves out what runs generated code: pass@k, HumanEval, the task lab_functions."
    return "missing" if found else "ok", "sandbox", found or "isolates a program", remedy


def _git():
    found = shutil.which("git")
    return "ok" if found else "missing", "git", found or "not found", "Only contributing needs it: install git."


def _chromium():
    home = Path.home()
    caches = [
        os.environ.get("PLAYWRIGHT_BROWSERS_PATH"),
        home / ".cache/ms-playwright",
        home / "Library/Caches/ms-playwright",
    ]
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None) or next(
        (str(one) for cache in caches if cache for one in Path(cache).glob("chromium*")), None
    )
    remedy = "Only the browser tests need it: `playwright install chromium`."
    return "ok" if found else "missing", "chromium", found or "not found", remedy

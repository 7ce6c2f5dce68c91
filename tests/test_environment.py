"""pyproject.toml says what the lab needs, requirements.lock which versions, environment.yml and the Makefile install
them: here the four are held together, and to what is installed."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WANTED = {
    *("jupyterlab", "ipywidgets", "torch", "transformers", "peft"),
    *("trl", "bitsandbytes", "datasets", "plotly", "papermill"),
}
GPU_PACKAGE = re.compile(r"(nvidia|cuda|triton)")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]


def lock_lines() -> list[str]:
    """The lock's lines without comments and blanks."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s+)#.*", "", line).strip())]


@pytest.fixture(scope="module")
def lock() -> dict[str, Requirement]:
    """The lock as name -> pin."""
    return {canonicalize_name(pin.name): pin for pin in map(Requirement, lock_lines())}


def version_of(pin: Requirement) -> Version:
    (specifier,) = pin.specifier
    return Version(specifier.version)


def platforms() -> list[dict[str, str]]:
    """What markers see on each supported system and Python."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    macos = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"}
    return [
        {**default_environment(), **system, "python_version": python, "python_full_version": f"{python}.2"}
        for system in (linux, macos)
        for python in PYTHONS
    ]


def test_lock_holds_exact_pins_and_nothing_else():
    for line in lock_lines():
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*( ; .+)?", line), f"not an exact public pin: {line!r}"


def test_lock_names_no_address():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and "file:" not in text


def test_lock_names_each_package_once():
    names = [canonicalize_name(Requirement(line).name) for line in lock_lines()]
    assert sorted(names) == sorted(set(names))


def test_lock_leaves_gpu_packages_to_pip(lock):
    assert not [name for name in lock if GPU_PACKAGE.match(name)]


@pytest.mark.parametrize("requirement", RUNTIME + DEV, ids=str)
def test_direct_dependency_is_pinned_within_its_bounds(requirement, lock):
    assert [s for s in requirement.specifier if s.operator == ">="], f"{requirement} has no lower bound"
    pin = lock.get(canonicalize_name(requirement.name))
    assert pin, f"{requirement.name} is not in requirements.lock: run `make lock`"
    assert version_of(pin) in requirement.specifier, f"{pin} is outside {requirement}: run `make lock`"
    for environment in platforms():
        assert pin.marker is None or pin.marker.evaluate(environment), f"{pin} leaves out {environment}"


def test_torch_is_the_version_all_numbers_were_measured_with(lock):
    assert str(lock["torch"]) == "torch==2.13.0"


def test_named_packages_are_direct_dependencies():
    assert {canonicalize_name(requirement.name) for requirement in RUNTIME} >= WANTED


@pytest.mark.parametrize("environment", platforms(), ids=lambda it: f"{it['sys_platform']}-{it['python_version']}")
def test_lock_is_complete(environment, lock):
    """Whatever the locked packages require on a platform is locked for it too, within bounds; GPU packages apart."""
    locked = {name: pin for name, pin in lock.items() if pin.marker is None or pin.marker.evaluate(environment)}
    for name in locked:
        try:
            lines = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform than this one
        for needed in map(Requirement, lines):
            if needed.marker and not needed.marker.evaluate({**environment, "extra": ""}):
                continue
            pin = locked.get(canonicalize_name(needed.name))
            if not pin and GPU_PACKAGE.match(needed.name):
                continue
            assert pin, f"{name} needs {needed}, which is not in the lock: run `make lock`"
            assert needed.specifier.contains(version_of(pin), prereleases=True), f"{name} needs {needed}, got {pin}"


def test_installed_versions_are_the_locked_ones(lock):
    wrong = []
    for name, pin in lock.items():
        if pin.marker and not pin.marker.evaluate():
            continue
        try:
            found = Version(importlib.metadata.version(name)).public  # without a build tag such as +cpu
        except importlib.metadata.PackageNotFoundError:
            found = "nothing"
        if found != str(version_of(pin)):
            wrong.append(f"{pin}, found {found}")
    assert not wrong, "run `make env`, which installs the locked versions"


def test_conda_installs_the_lock_and_brings_nothing_but_python():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == PROJECT["name"]
    python, pip, through_pip = conda["dependencies"]
    assert python.startswith("python=") and pip == "pip"
    assert through_pip == {"pip": ["-r requirements.lock", "-e ."]}


def test_python_versions_agree():
    first, last = PYTHONS[0], PYTHONS[-1]
    beyond = f"3.{int(last.split('.')[1]) + 1}"
    assert PROJECT["requires-python"] == f">={first},<{beyond}"
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["dependencies"][0] == f"python={first}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    as_tuples = [f"({version.replace('.', ', ')})" for version in (first, beyond)]
    assert f"{as_tuples[0]} <= sys.version_info[:2] < {as_tuples[1]}" in makefile
    assert f"Python {first} to {last}" in makefile


def test_package_and_project_have_one_version():
    package = (ROOT / "labkit" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{PROJECT["version"]}"' in package


def test_make_and_commit_strip_notebooks_alike():
    options = re.compile(r"-m nbstripout( --.*)")
    made = options.search((ROOT / "Makefile").read_text(encoding="utf-8")).group(1)
    committed = options.search((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")).group(1)
    assert made == committed
    assert "--keep-id" in made

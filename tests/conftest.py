"""What all tests share: an empty run store, no network, and this checkout's labkit in subprocesses too."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session", autouse=True)
def session_store(tmp_path_factory):
    """The run store of the whole session: a temporary folder, never the reader's own runs/."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_RUNS", str(folder))
        patch.delenv("LABKIT_RECORD_DIR", raising=False)
        yield folder


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty run store for one test."""
    folder = tmp_path / "runs"
    monkeypatch.setenv("LABKIT_RUNS", str(folder))
    return folder

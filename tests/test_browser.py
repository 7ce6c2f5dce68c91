"""The first notebook in a real JupyterLab in a real Chromium: opened, run, and looked at."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "only-for-this-test"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a free port of the loopback address, on a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "LABKIT_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data"),
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--port={port}",
        f"--IdentityProvider.token={TOKEN}",
    ]
    command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [f"--ServerApp.root_dir={folder}"] + (["--allow-root"] if os.geteuid() == 0 else [])
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    else:
        process.kill()
        pytest.fail((folder / "log").read_text()[-2000:])
    yield f"http://127.0.0.1:{port}/lab", folder
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


def test_run_all_shows_the_tables_and_no_error(lab, browser, tmp_path):
    address, folder = lab
    notebook = folder / "notebooks" / "00_start_here.ipynb"
    notebook.write_text(re.sub(r'model = \\"nano\\"', r'model = \\"smoke\\"', notebook.read_text()))
    page = browser.new_page(viewport={"width": 1280, "height": 4000})
    page.goto(f"{address}/tree/notebooks/00_start_here.ipynb?token={TOKEN}", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    records = folder / "runs" / "notebooks" / "00_start_here"
    for _ in range(180):
        if list(records.glob("*/record.json")):
            break
        time.sleep(1)
    page.wait_for_timeout(1500)
    shots = Path(os.environ.get("LABKIT_SCREENSHOTS", tmp_path))
    page.screenshot(path=shots / "00_start_here.png")
    assert list(records.glob("*/record.json")), page.locator(".jp-OutputArea").all_inner_texts()[-3:]
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".jp-RenderedHTMLCommon table th", has_text="instruction").count() >= 1
    assert page.locator(".js-plotly-plot").count() >= 1

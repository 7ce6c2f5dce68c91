"""The notebooks in a real JupyterLab in a real Chromium: opened, run, trained in, chatted with, reloaded, restarted.

LABKIT_SCREENSHOTS=FOLDER keeps a picture of every notebook there.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from hostile import HOSTILE

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TOKEN = "only-for-this-test"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# Chromium's own complaints, and JupyterLab's about extensions that are not there or about its debugger's requests
# that a restart of the kernel cancels; none of them is a notebook's
NOISE = re.compile(
    r"favicon|Failed to load resource|WebSocket|font|ResizeObserver|DevTools|service worker|debugger state", re.I
)
# at the signal USR1 a kernel writes where each of its threads is
WHERE = """import faulthandler, pathlib, signal
faulthandler.register(signal.SIGUSR1, pathlib.Path(__file__).with_name("threads").open("a"))
"""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@contextlib.contextmanager
def jupyterlab(folder: Path, **settings: dict):
    """(address, folder) of a JupyterLab on the loopback address, on a copy of the notebooks set to the smoke model.

    settings: of JupyterLab, beside the test's own; a name stands for an extension's file of settings.
    """
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for file in (folder / "notebooks").glob("*.ipynb"):
        file.write_text(re.sub(r'model = \\"nano\\"', r'model = \\"smoke\\"', file.read_text()))
    # every cell is in the page, also one that is scrolled away
    settings["notebook-extension/tracker"] = {"windowingMode": "none", "kernelShutdown": True}
    for name, values in settings.items():
        file = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    (folder / "threads").touch()
    (folder / "sitecustomize.py").write_text(WHERE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "LABKIT_RUNS": str(folder / "runs"), "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data"),
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", f"--ServerApp.root_dir={folder}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/lab", folder
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with jupyterlab(tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Notebook:
    """A notebook that is open in the browser."""

    def __init__(self, browser, lab, name: str, height: int = 2400):
        self.address, self.folder = lab
        self.name, self.complaints = name, []
        self.page = browser.new_page(viewport={"width": 1280, "height": height})
        self.page.on("console", lambda message: self._hear(message.type, message.text))
        self.page.on("pageerror", lambda error: self._hear("error", str(error)))
        self.open()

    def _hear(self, kind: str, text: str) -> None:
        if kind == "error" and not NOISE.search(text):
            self.complaints.append(text)

    def open(self) -> None:
        """Load the page and wait for the kernel."""
        address = f"{self.address}/tree/notebooks/{self.name}.ipynb?token={TOKEN}&reset"
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        self.until("kernel && kernel.status === 'idle'", seconds=90)

    def evaluate(self, script: str):
        """JavaScript with `app`, the open `panel` and its `kernel` at hand."""
        about = "const app = window.jupyterapp; const panel = app.shell.currentWidget;"
        about += "const kernel = panel?.sessionContext?.session?.kernel;"
        return self.page.evaluate(f"async () => {{ {about} return {script}; }}")

    def until(self, script: str, seconds: float = 120):
        """Wait until the script gives something true, and return it."""
        end = time.monotonic() + seconds
        while not (found := self.evaluate(script)):
            if time.monotonic() > end:
                self.page.screenshot(path=self.folder / "late.png")
                for process in psutil.process_iter(["cmdline"]):
                    said = " ".join(process.info["cmdline"] or ())
                    if "ipykernel_launcher" in said and str(self.folder) in said:
                        process.send_signal(signal.SIGUSR1)
                time.sleep(2)
                log = (self.folder / "log").read_text()[-1500:] + (self.folder / "threads").read_text()[-8000:]
                logged = {str(f): f.read_bytes().count(b"\n") for f in self.folder.glob("runs/*/*/metrics.jsonl")}
                about = f"{self.texts()[-800:]}\n{logged}\n{self.complaints}\n{log}"
                pytest.fail(f"{self.name}: not within {seconds} s: {script}\n{about}")
            time.sleep(0.25)
        return found

    def run_all(self, seconds: float = 180) -> None:
        self.evaluate("app.commands.execute('notebook:run-all-cells').catch(() => 0) && true")
        cells = "[...panel.content.widgets].filter(c => c.model.type === 'code')"
        self.until(f"kernel.status === 'idle' && {cells}.every(c => c.model.executionCount !== null)", seconds)

    def execute(self, source: str) -> None:
        """Run code in the notebook's kernel, as a cell would; returns at once."""
        self.evaluate(f"void kernel.requestExecute({{code: {json.dumps(source)}}})")

    def run_cells(self, *parts: str) -> None:
        """Run, one after another, the code cells that hold these texts."""
        for part in parts:
            found = f"panel.content.widgets.findIndex(c => c.model.sharedModel.source.includes({json.dumps(part)}))"
            self.evaluate(f"(panel.content.activeCellIndex = {found}, panel.content.deselectAll(), true)")
            self.evaluate("app.commands.execute('notebook:run-cell').catch(() => 0) && true")
            self.until("kernel.status === 'idle'", 120)

    def errors(self) -> list:
        return self.evaluate(
            "panel.content.widgets.filter(c => c.model.type === 'code').flatMap(c => "
            "c.model.outputs.toJSON().filter(o => o.output_type === 'error' || o.name === 'stderr')"
            ".map(o => o.evalue || o.text))"
        )

    def texts(self) -> str:
        return "\n".join(self.page.locator(".jp-OutputArea").all_inner_texts())

    def long_training(self):
        """Run the open notebook down to its panel and set the knobs to a training that does not end by itself."""
        self.run_cells("model = ", "import labkit", "live.bench")
        panel = self.page.locator(".labkit-panel").first
        panel.wait_for(timeout=60_000)
        panel.get_by_label("steps", exact=False).first.fill("20000")
        panel.get_by_label("eval_every", exact=False).first.fill("10000")

    def status(self) -> str:
        return self.page.locator(".labkit-panel [role=status]").first.inner_text()

    def button(self, name: str):
        return self.page.locator(".labkit-panel").get_by_role("button", name=name, exact=True).first

    def shot(self, name: str = "") -> None:
        folder = os.environ.get("LABKIT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name or self.name}.png")

    def close(self) -> None:
        self.evaluate("panel.sessionContext.shutdown()")
        self.page.close()


@pytest.fixture
def open_notebook(browser, lab):
    opened: list[Notebook] = []

    def make(name: str, **options) -> Notebook:
        opened.append(Notebook(browser, lab, name, **options))
        return opened[-1]

    yield make
    for notebook in opened:
        notebook.close()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_run_all_gives_no_error(open_notebook, lab, name):
    notebook = open_notebook(name, height=5000)
    notebook.run_all()
    assert notebook.errors() == []
    assert notebook.complaints == []
    assert list((lab[1] / "runs" / "notebooks" / name).glob("*/record.json"))
    assert notebook.page.locator(".js-plotly-plot").count() >= 1
    notebook.page.wait_for_timeout(1000)
    notebook.shot()


def test_train_stop_reload_resume_restart(open_notebook):
    """The life of one training in the browser: nothing that the page or the kernel goes through loses it."""
    notebook = open_notebook("02_supervised_fine_tuning")
    notebook.long_training()
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('not trained yet')")
    notebook.button("Train").click()
    points = "(document.querySelector('.js-plotly-plot')?.data?.[0]?.x?.length || 0)"
    first = notebook.until(f"{points} >= 2 && {points}")
    notebook.until(f"{points} > {first}")  # the curve moves
    widths = [f"document.querySelector('{part}').clientWidth" for part in (".main-svg", ".labkit-panel")]
    notebook.until(f"{widths[1]} > 750 && {widths[0]} === {widths[1]}", 10)  # not plotly's 700 px
    notebook.execute("print('still usable')")
    notebook.evaluate("app.commands.execute('docmanager:save').then(() => true)")
    notebook.page.reload()  # the page is gone and comes back; the training has not noticed
    notebook.open()
    notebook.until("document.querySelector('.labkit-panel [role=status]')?.textContent.includes('left')", 60)
    more = notebook.until(f"{points} > {first + 1} && {points}")
    notebook.shot("live_training")
    notebook.button("Stop").click()
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('is kept')", 90)
    step = int(re.search(r"step (\d+) of", notebook.status())[1])
    notebook.button("Resume").click()
    notebook.until(f"{points} > {more}")
    notebook.evaluate("kernel.restart().then(() => true)")  # in the middle of it
    notebook.until("kernel.status === 'idle'", 90)
    notebook.long_training()
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('is kept')", 90)
    assert int(re.search(r"step (\d+) of", notebook.status())[1]) >= step
    assert notebook.button("Resume").is_enabled()
    assert notebook.complaints == []


def test_train_takes_the_knobs_as_they_stand(open_notebook):
    """A knob is turned and Train pressed in the same moment."""
    notebook = open_notebook("02_supervised_fine_tuning")
    notebook.run_cells("model = ", "import labkit", "live.bench")
    notebook.page.locator(".labkit-panel").first.wait_for(timeout=60_000)
    notebook.complaints.clear()  # of outputs that an earlier test's kernel left in the file
    seed = notebook.page.locator(".labkit-panel input[name=seed]").first
    seed.fill("12")  # knobs that nothing was trained with yet, whichever tests ran before this one
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent === 'not trained yet'")
    turned = "const box = document.querySelector(`.labkit-panel input[name=${name}]`); box.value = value;"
    turned += "box.dispatchEvent(new Event('input'));"
    train = "[...document.querySelectorAll('.labkit-panel button')].find(b => b.textContent === 'Train').click()"
    notebook.page.evaluate(
        f"() => {{ for (const [name, value] of [['steps', '20000'], ['eval_every', '10000']]) {{ {turned} }} {train} }}"
    )
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('of 20000')")
    notebook.button("Stop").click()
    notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('is kept')", 90)
    assert notebook.complaints == []


def test_train_and_stop_without_subshells(browser, tmp_path):
    """The widgets' messages go the kernel's one way, as with kernels that know no subshells."""
    plain = {"apputils-extension/kernels-settings": {"commsOverSubshells": "disabled"}}
    with jupyterlab(tmp_path, **plain) as lab:
        notebook = Notebook(browser, lab, "02_supervised_fine_tuning")
        notebook.long_training()
        assert notebook.evaluate("kernel.commsOverSubshells") == "disabled"
        notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('not trained yet')")
        notebook.button("Train").click()
        points = "(document.querySelector('.js-plotly-plot')?.data?.[0]?.x?.length || 0)"
        first = notebook.until(f"{points} >= 2 && {points}")
        notebook.execute("print('still usable')")
        notebook.until(f"{points} > {first}")
        notebook.button("Stop").click()
        notebook.until("document.querySelector('.labkit-panel [role=status]').textContent.includes('is kept')", 90)
        assert notebook.complaints == []
        notebook.close()


def test_a_wrong_value_is_shown_beside_its_control_and_training_waits(open_notebook):
    notebook = open_notebook("07_dpo")
    notebook.run_cells("model = ", "import labkit", "live.bench")
    panel = notebook.page.locator(".labkit-panel").first
    panel.wait_for(timeout=60_000)
    box = panel.locator("input[name=beta]")
    began = time.monotonic()
    box.fill("99")
    panel.get_by_text("beta must be").wait_for(timeout=5000)
    assert time.monotonic() - began < 2
    assert box.input_value() == "99" and not notebook.button("Train").is_enabled()
    box.fill("0.3")
    panel.get_by_text("beta must be").wait_for(state="hidden", timeout=5000)
    assert panel.locator("input[name=label_smoothing]").is_disabled()
    panel.locator("select[name=loss_type]").select_option("robust")
    notebook.until("!document.querySelector('.labkit-panel input[name=label_smoothing]').disabled", 10)


def test_nothing_serious_for_axe(open_notebook):
    from axe_playwright_python.sync_playwright import Axe

    notebook = open_notebook("02_supervised_fine_tuning")
    notebook.run_cells("model = ", "import labkit", "live.bench")
    notebook.page.locator(".labkit-panel").first.wait_for(timeout=60_000)
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.evaluate(f"app.commands.execute('apputils:change-theme', {{theme: '{theme}'}}).then(() => true)")
        notebook.page.wait_for_timeout(800)
        found = Axe().run(notebook.page, context=".labkit-panel").response["violations"]
        serious = [
            (row["id"], row["nodes"][0]["html"][:200]) for row in found if row["impact"] in ("serious", "critical")
        ]
        assert serious == [], theme
        notebook.shot("panel_" + theme.rsplit(" ", 1)[1].lower())


def test_chat_with_two_runs(open_notebook):
    """The question of the lab is one click away, and every column says why its answer ended."""
    notebook = open_notebook("00_start_here", height=6000)
    notebook.run_all()
    page = notebook.page
    page.get_by_role("button", name="Clear", exact=True).click()
    notebook.until("!document.body.innerText.includes('tokens/s')", 20)
    page.get_by_label("max new tokens").fill("8")
    page.get_by_role("button", name="What is an LLM?", exact=True).click()
    ended = "[...document.body.innerText.matchAll(/(stopped by itself|cut at \\d+ tokens).*tokens\\/s/g)].length"
    notebook.until(f"{ended} >= 3", 60)
    page.get_by_label("temperature").fill("-1")
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_text("temperature must be").wait_for(timeout=5000)
    notebook.shot("chat")


HOSTILE_VIEWS = """
import json, labkit
from labkit import data, models, runs
from labkit.config import SFTConfig
from labkit.evaluate.stream import Token
from labkit.ui import chat, compare, live, plots, tokens, vote
from labkit.ui.text import safe_html

P = [text.replace("alert(1)", "(window.pwned=1)") for text in json.loads(open("hostile.json").read())]
model, tokenizer = models.load("smoke")
###
plots.Table([{"text": p} for p in P])
###
plots.Tokens(tokenizer, data.chat_row(tokenizer, "".join(p[:200] for p in P[:17]), "x"))
###
whole = [p[:200].encode("utf-8", "replace").decode() for p in P]
chat.widgets.VBox([tokens.TokenView(tokenizer, [data.chat_row(tokenizer, p, "x")]) for p in whole])
###
talk = chat.Chat(["smoke"])
talk.columns[0].turns += [chat.Turn(p, [Token(p, 7, 0.5, ((p, 0.5),))], stop="length", note=p, error=p) for p in P]
talk.columns[0].show()
talk
###
said = [{name: [{"id": "0", "prompt": p, "text": p + name}] for name in ("x", "y")} for p in P]
chat.widgets.VBox([vote.Vote(one, labels={"x": P[1], "y": P[0]}) for one in said])
###
run = runs.open_run("sft", SFTConfig(model="smoke", steps=2))
run.finish(loss=1.0)
rows = [{"id": str(n), "split": "skill", "kind": "copy", "prompt": p[:5000], "text": p, "stopped": True, "correct": 0.0,
         "helpful": 0.0, "concise": 0.0, "safe": 1.0, "gold": 1.0} for n, p in enumerate(P)]
(run.path / "answers.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
rows = [{"step": n % 3, "prompt": p, "text": p} for n, p in enumerate(P)]
(run.path / "samples.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
runs.write_json(run.path / "run.json", {**run.info, "label": P[0]})
found = compare.Compare([run.id])
found.tab.selected_index = 3
found
###
bench = live.Bench("02_supervised_fine_tuning", SFTConfig(model="smoke", steps=2), ["x"])
bench.panel.values = {**bench.panel.values, "data": P[1], "learning_rate": P[0], "parent": P[4]}
bench._show_samples()
bench
"""


def test_hostile_text_is_text_in_every_view(open_notebook, lab):
    """Every payload goes through every view of a real browser; nothing runs, nothing becomes an element."""
    folder = lab[1] / "notebooks"
    (folder / "hostile.json").write_text(json.dumps(HOSTILE))
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in HOSTILE_VIEWS.split("###")]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), folder / "hostile.ipynb")
    notebook = open_notebook("hostile", height=3000)
    notebook.run_all(240)
    assert notebook.errors() == []
    notebook.page.wait_for_timeout(3000)
    assert notebook.page.evaluate("window.pwned") is None
    strange = ".jp-OutputArea :is(script, img[src=x], svg[onload], a[href^='javascript'], math, iframe[src^=data])"
    found = notebook.page.locator(strange).evaluate_all("all => all.map(element => element.outerHTML)")
    assert [html[:300] for html in found] == []
    shown = notebook.texts()
    assert shown.count("<script>(window.pwned=1)</script>") >= 3  # the text itself is there, to be read
    notebook.shot("hostile")


VOTING = """
from labkit.ui.vote import Vote

said = {
    name: [{"id": str(n), "prompt": f"Question {n}?", "text": f"<b>{name}</b> says\\n{n} " + "and more " * n}
           for n in range(20)]
    for name in ("sft", "dpo", "base")
}
view = Vote(said, goal=10)
view
"""


def test_votes_by_mouse_and_keyboard_are_counted_once(open_notebook, lab):
    """A vote by mouse, four by keys, a double click, a reload and a restart: the count is what was voted."""
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(VOTING.strip())], metadata=about)
    nbformat.write(book, lab[1] / "notebooks" / "voting.ipynb")
    notebook = open_notebook("voting", height=900)
    notebook.run_all()
    page, file = notebook.page, lab[1] / "runs" / "arena" / "votes.jsonl"
    before = len(file.read_text().splitlines()) if file.exists() else 0
    root = page.locator(".labkit-vote")
    root.wait_for(timeout=60_000)
    count = "document.querySelector('.labkit-vote .count').textContent"
    assert "told after" in root.get_by_role("status").inner_text()
    assert not root.locator(".name").all_inner_texts()[0].strip()  # blind
    assert "<b>" in root.locator(".text").first.inner_text()  # what a model wrote is text
    notebook.shot("vote_blind")
    root.get_by_role("button", name="A is better").dblclick()
    notebook.until(f"{count}.startsWith('1 of 10')", 20)
    assert "Kept: A is better" in root.get_by_role("status").inner_text()
    notebook.shot("vote_revealed")
    for number, key in enumerate(("b", "3", "x", "1"), 2):
        page.keyboard.press("n")
        notebook.until("document.querySelector('.labkit-vote [role=status]').textContent.includes('told after')", 20)
        page.keyboard.press(key)
        notebook.until(f"{count}.startsWith('{number} of 10')", 20)
    assert notebook.evaluate("panel.content.widgets.length") == 1  # a, b and x are JupyterLab's elsewhere
    lines = [json.loads(line) for line in file.read_text().splitlines()][before:]
    assert [vote["choice"] for vote in lines] == ["a", "b", "tie", "both_bad", "a"]
    assert len({vote["id"] for vote in lines}) == 5 and {vote["voter"] for vote in lines} == {"human"}
    notebook.evaluate("app.commands.execute('docmanager:save').then(() => true)")
    page.reload()
    notebook.open()
    notebook.until(f"document.querySelector('.labkit-vote') && {count}.startsWith('5 of 10')", 60)
    notebook.evaluate("app.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'}).then(() => true)")
    page.wait_for_timeout(800)
    notebook.shot("vote_dark")
    notebook.evaluate("kernel.restart().then(() => true)")
    notebook.until("kernel.status === 'idle'", 90)
    notebook.run_all()
    notebook.until(f"{count}.startsWith('5 of 10')", 60)
    page.locator(".jp-InputArea-editor").first.click()  # the focus is elsewhere: keys are no votes
    page.keyboard.press("Escape")
    page.keyboard.press("b")  # JupyterLab's: a cell below
    notebook.until("panel.content.widgets.length === 2", 10)
    assert len(file.read_text().splitlines()) - before == 5
    assert notebook.complaints == []


def test_nothing_serious_for_axe_in_the_vote(open_notebook, lab):
    from axe_playwright_python.sync_playwright import Axe

    about = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(VOTING.strip())], metadata=about)
    nbformat.write(book, lab[1] / "notebooks" / "voting_axe.ipynb")
    notebook = open_notebook("voting_axe", height=900)
    notebook.run_all()
    notebook.page.locator(".labkit-vote").wait_for(timeout=60_000)
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        notebook.evaluate(f"app.commands.execute('apputils:change-theme', {{theme: '{theme}'}}).then(() => true)")
        notebook.page.wait_for_timeout(800)
        found = Axe().run(notebook.page, context=".labkit-vote").response["violations"]
        serious = [
            (row["id"], row["nodes"][0]["html"][:200]) for row in found if row["impact"] in ("serious", "critical")
        ]
        assert serious == [], theme

"""A training in a background thread, and a reader of what it logs.

The thread writes nothing but the run's folder; whoever wants to show the training reads that folder. So a page that is
reloaded, a second notebook and a kernel that was restarted all see the same.
"""

import atexit
import json
import threading
from pathlib import Path

from labkit import pipeline, runs
from labkit.config import Config
from labkit.errors import LabError, TrainingError
from labkit.evaluate import answers


class Training:
    """One training, in the background (`start`) or in the caller's thread (`go`); it writes only the run's folder."""

    now: "Training | None" = None  # the one of this process

    def __init__(self, stage: str, config: Config, asked: list[str], say=None):
        self.stage, self.config, self.asked, self.say = stage, config, asked, say
        self.stopping, self.alive, self.error, self.said = threading.Event(), False, "", ""
        self.thread: threading.Thread | None = None

    def claim(self) -> None:
        """Become the training of this process. Raises TrainingError where there is one."""
        now = Training.now
        if now is not None and now is not self and now.alive:
            raise TrainingError(
                "a training is running in this kernel already",
                got=f"{now.stage} of {now.config.model}",
                remedy="Stop it, or wait for its end: two at once would both crawl.",
            )
        Training.now, self.alive = self, True

    def go(self) -> runs.Run:
        """Train and return the run; raises what the stage raises."""
        self.claim()
        try:
            return pipeline.train_stage(self.stage, self.config, say=self._say, stop=self.stopping, at_look=self._look)
        finally:
            self.alive = False

    def start(self) -> None:
        def quietly() -> None:
            try:
                self.go()
            except LabError as error:
                self.error = str(error)
            except Exception as error:  # a thread has nobody above it to tell
                self.error = f"{type(error).__name__}: {error}"

        self.claim()
        self.thread = threading.Thread(target=quietly, daemon=True, name=f"training-{self.stage}")
        self.thread.start()

    def _say(self, line: str) -> None:
        self.said = line
        if self.say is not None:
            self.say(line)

    def _look(self, run: runs.Run, model, tokenizer) -> None:
        """The same few questions at every look at held-out data, kept beside the curves."""
        if self.stopping.is_set():
            return
        put = answers.complete if self.stage == "pretrain" else answers.ask
        rows = put(model, tokenizer, self.asked, max_new_tokens=32)
        step = run.history()[-1]["step"] if run.history() else 0
        with (run.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            for prompt, row in zip(self.asked, rows, strict=True):
                file.write(json.dumps({"step": step, "prompt": prompt, **row}) + "\n")
        model.train()


@atexit.register
def _keep_what_was_learned() -> None:
    """A kernel that shuts down or restarts stops its training first, so that it can be resumed from this very step."""
    if Training.now is not None and Training.now.thread is not None:
        Training.now.stopping.set()
        Training.now.thread.join(timeout=4)  # Jupyter kills the kernel after five seconds


class Log:
    """A run's metrics.jsonl, read on from where the last look ended; anew where it was rewound."""

    def __init__(self, path: Path):
        self.path, self.rows, self._end, self._file = path / "metrics.jsonl", [], 0, None

    def read(self) -> list[dict]:
        if not self.path.exists():
            self.rows, self._end, self._file = [], 0, None
            return self.rows
        about = self.path.stat()
        if (about.st_ino, about.st_size < self._end) != (self._file, False):
            self.rows, self._end, self._file = [], 0, about.st_ino
        with self.path.open("rb") as file:
            file.seek(self._end)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.rows += [json.loads(line) for line in whole.splitlines()]
        self._end += len(whole) + len(newline)
        return self.rows

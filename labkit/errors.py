"""The errors of the lab: what was wrong, what was got, what to do.

Every error that the lab raises on purpose is a `LabError`, so that a caller can catch one name and a reader is never
left with half of the story. The message is always in one shape:

    steps must be a whole number from 1 to 1000000 steps; got 'three'. Write for example steps = 1500.
"""

MISSING = object()  # nothing was got at all, which is not the same as None
LONGEST_GOT = 200  # characters of a value shown in a message; the whole value stays in `LabError.got`


class LabError(Exception):
    """Something that the user can put right.

    what: the argument and what it must be, without a full stop ("beta must be a number from 0.001 to 10").
    got: the value that came instead; left out where there was none.
    remedy: what to do about it, as a sentence.
    Raises TypeError where `what` or `remedy` is empty: an error without them helps nobody.
    """

    def __init__(self, what: str, *, got: object = MISSING, remedy: str):
        if not (what and what.strip()) or not (remedy and remedy.strip()):
            raise TypeError("LabError needs what was wrong and a remedy, both as text")
        self.what, self.got, self.remedy = what, got, remedy
        shown = "got nothing" if got is MISSING else f"got {_short(got)}"
        super().__init__(f"{what}; {shown}. {remedy}")

    def __reduce__(self):
        """Keep the error whole when a worker process hands it over (pickle calls with positional arguments only)."""
        return _rebuild, (
            type(self),
            self.what,
            None if self.got is MISSING else self.got,
            self.got is MISSING,
            self.remedy,
        )


def _rebuild(kind: type, what: str, got: object, missing: bool, remedy: str) -> LabError:
    return kind(what, got=MISSING if missing else got, remedy=remedy)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a broken repr must not hide the error that it was to illustrate
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST_GOT else text[: LONGEST_GOT - 3] + "..."


class ConfigError(LabError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


class DataError(LabError):
    """A data file or row cannot be used."""


class ModelError(LabError):
    """A model or tokenizer cannot be loaded or does not fit."""


class RunError(LabError):
    """A run in the run store is missing, ambiguous, unreadable or used wrongly."""


class TrainingError(LabError):
    """Training cannot start, or went wrong."""


class NotebookError(LabError):
    """A notebook failed, or did not record what it found."""


class Stopped(Exception):
    """The reader pressed Stop where no trainer asks for it: in a look at held-out data, or before the first step."""

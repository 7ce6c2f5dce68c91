"""The fields of a Config: what each may hold, said once for the parameter check, the widgets and the docs.

A field's metadata (help, range, choices, unit) is the single source for the check of papermill's parameters, for the
widgets' labels, ranges and tooltips, and for the docs. Every problem is a ConfigError that names the parameter, the
value got and the values allowed.
"""

import contextlib
import dataclasses
import datetime
import json
import math
from difflib import get_close_matches

from labkit.errors import ConfigError


def option(default, help, *, low=None, high=None, choices=None, unit="", identity=True, needs=None, usual=None):
    """A field of a Config: its default, one sentence of help and the values it may take.

    low, high: smallest and largest number allowed, both included. choices: the only texts allowed. unit: what the
    number counts. identity=False: the value does not change the result, so it stays out of a run's identity.
    needs: (another field, the values it must have) for this one to leave its default. usual: the largest value that is
    tried as a rule, where the default does not tell: a slider ends there.
    """
    about = {"help": help, "low": low, "high": high, "choices": choices, "unit": unit, "identity": identity}
    about |= {"needs": needs, "usual": usual}
    return dataclasses.field(default=default, metadata=about)


def why_disabled(field: dataclasses.Field, values: dict) -> str:
    """Why a field has no effect beside these values ("needs loss_type = 'robust'"), or "" where it has."""
    if None is not field.metadata["low"] == field.metadata["high"]:
        return f"is always {field.metadata['low']:g} here"
    other, wanted = field.metadata["needs"] or ("", ())
    if not other or values[other] in wanted:
        return ""
    return f"needs {other} = {' or '.join(map(repr, wanted))}"


def slider(field: dataclasses.Field) -> dict | None:
    """{low, high, log, whole} of a number's slider, whose thousand places are fine around the default; or None.

    Its ends are not those of the field: the box beside it takes the rest. A field that cannot be 0 and spans powers of
    ten reaches from a twentieth of its default to twenty times it; one that can, from 0 to twenty times it, or to
    `usual` where the default is 0. The default, and 0 where it is allowed, are places of their own.
    """
    low, high, whole, default = (field.metadata["low"], field.metadata["high"], field.type is int, field.default)
    if field.type not in (int, float) or low is None or high is None or low == high or field.name == "seed":
        return None
    log = low > 0 and high / low > 100
    top = (field.metadata["usual"] or 20 * default) if low >= 0 else high
    if log and default:
        return {"low": max(low, default / 20), "high": min(high, default * 20), "log": True, "whole": whole}
    return {"low": low, "high": min(high, top) or high, "log": log, "whole": whole}


def allowed(field: dataclasses.Field) -> str:
    """The values that a field may take, in words ("a whole number from 1 to 4096 rows")."""
    about = field.metadata
    if about["choices"]:
        return "one of " + ", ".join(about["choices"])
    if field.type in (int, float):
        kind = "a whole number" if field.type is int else "a number"
        low, high = about["low"], about["high"]
        limits = f" from {low} to {high}" if None not in (low, high) else f" >= {low}" if low is not None else ""
        limits = limits or (f" <= {high}" if high is not None else "")
        return f"{kind}{limits} {about['unit']}".rstrip()
    return "True or False" if field.type is bool else "text"


def check_names(kind: type, values: dict) -> None:
    """Raise ConfigError for the first name that `kind` does not have, with the near miss and all names allowed."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            listing = "; ".join(f"{field.name} ({allowed(field)})" for field in known.values())
            raise ConfigError(f"{name} is not a parameter here", got=values[name], remedy=f"{hint}Allowed: {listing}.")


def checked(field: dataclasses.Field, value):
    """The value, an int turned into a float where the field is one. Raises ConfigError where it is not allowed."""
    about, kind, wrong = field.metadata, field.type, False
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is not kind:
        wrong = True
    elif kind in (int, float):
        too_low = about["low"] is not None and value < about["low"]
        wrong = not _finite(value) or too_low or (about["high"] is not None and value > about["high"])
    elif kind is str:
        wrong = (about["choices"] and value not in about["choices"]) or (field.default != "" and not value.strip())
    if not wrong:
        return value
    raise ConfigError(f"{field.name} must be {allowed(field)}", got=value, remedy=_suggest(field, value))


WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def typed(field: dataclasses.Field, value):
    """The value in the field's own type where it says the same: what a shell or YAML made of it does not decide.

    "100" and 1000.0 are whole numbers, "1e-3" is a number, "yes" and 1 are True, 3 and [4, 8] are the texts "3" and
    "4,8", None is no text. Anything else comes back as it is, for `checked` to refuse.
    """
    kind = field.type
    if kind is bool:
        return WORDS.get(str(value).strip().lower(), value) if type(value) in (str, int) else value
    if kind in (int, float) and isinstance(value, str):
        for read in (int, float):
            with contextlib.suppress(ValueError):
                value = read(value.strip())
                break
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if kind is str and isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if kind is str and value == "None":
        value = None
    if kind is str and not isinstance(value, (str, bool)):
        if isinstance(value, (list, tuple)):
            return ",".join(map(str, value))
        if value is None:
            return "" if field.default == "" else value
        return str(value) if isinstance(value, (int, float, datetime.date)) else value
    return value


def _finite(value: int | float) -> bool:
    return type(value) is int or math.isfinite(value)  # isfinite() itself overflows on a very long int


def _suggest(field: dataclasses.Field, value) -> str:
    """What to write instead: the nearest allowed value where one is near, else the default."""
    best = field.default
    if field.type is int and type(value) is float and value.is_integer():
        best = int(value)
    elif field.type is bool and str(value).lower() in ("true", "false", "1", "0", "yes", "no"):
        best = str(value).lower() in ("true", "1", "yes")
    elif field.type in (int, float) and type(value) in (int, float) and _finite(value):
        low, high = field.metadata["low"], field.metadata["high"]
        best = low if low is not None and value < low else high if high is not None and value > high else best
    elif field.metadata["choices"] and isinstance(value, str):
        near = get_close_matches(value.lower(), field.metadata["choices"], n=1, cutoff=0.5)
        if near:
            return f"Did you mean {field.name} = {near[0]!r}?"
    return f"Write for example {field.name} = {best!r}. {field.metadata['help']}"

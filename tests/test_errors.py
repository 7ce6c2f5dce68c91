"""Every error says what was wrong, what was got and what to do."""

import pickle

import pytest

from labkit import errors
from labkit.errors import ConfigError, LabError


def test_message_has_argument_value_and_remedy():
    error = LabError("beta must be positive", got=-1, remedy="Write beta = 0.1.")
    assert str(error) == "beta must be positive; got -1. Write beta = 0.1."
    assert (error.what, error.got, error.remedy) == ("beta must be positive", -1, "Write beta = 0.1.")


def test_nothing_got_differs_from_none():
    assert "got nothing" in str(LabError("seed must be set", remedy="Set it."))
    assert "got None" in str(LabError("seed must be set", got=None, remedy="Set it."))


def test_an_error_without_a_remedy_is_refused():
    with pytest.raises(TypeError):
        LabError("seed must be set", got=1, remedy=" ")


def test_long_and_broken_values_stay_readable():
    class Broken:
        def __repr__(self):
            raise ValueError("no repr")

    assert len(str(LabError("rows must be few", got="x" * 10_000, remedy="Cut."))) < 300
    assert "<Broken>" in str(LabError("value must be shown", got=Broken(), remedy="Mend it."))


@pytest.mark.parametrize(
    "name", ["ConfigError", "DataError", "ModelError", "RunError", "TrainingError", "NotebookError"]
)
def test_the_family_is_caught_by_one_name(name):
    with pytest.raises(LabError):
        raise getattr(errors, name)("x must be y", got=1, remedy="Do z.")


@pytest.mark.parametrize("got", [{"got": 3}, {}])
def test_survives_the_way_from_a_worker_process(got):
    error = ConfigError("steps must be more", remedy="Write 5.", **got)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ConfigError and str(again) == str(error)

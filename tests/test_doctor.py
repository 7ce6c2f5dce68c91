"""The doctor: it names what is missing, and fails only for what the lab needs."""

from typer.testing import CliRunner

from labkit import __main__ as cli
from labkit import doctor
from labkit.evaluate import sandbox

runner = CliRunner()


def test_doctor_tells_what_is_here_and_fails_only_for_what_is_needed(store, monkeypatch):
    monkeypatch.setattr(doctor, "_devices", lambda: ("ok", "devices", "CPU", ""))
    monkeypatch.setattr(doctor, "_chromium", lambda: ("missing", "chromium", "not found", "Install it."))
    monkeypatch.setattr(sandbox, "refusal", lambda: "SandboxError: no walls")
    here = runner.invoke(cli.app, ["doctor"])
    names = "python torch transformers papermill memory cores disk bf16 devices sandbox git chromium".split()
    assert all(name in here.stdout for name in names), here.stdout
    assert here.exit_code == 0 and "everything needed is here" in here.stdout and "-> Install it." in here.stdout
    assert "no walls" in here.stdout and "Notebook 11 leaves out" in here.stdout
    monkeypatch.setattr(doctor, "NEEDED", "torch no-such-package")
    gone = runner.invoke(cli.app, ["doctor"])
    assert gone.exit_code == 1 and "MISSING no-such-package" in gone.stdout and "make lab" in gone.stdout
    assert "needed and missing: no-such-package" in gone.stdout


def test_doctor_compares_with_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "NEEDED", "torch typer")
    (tmp_path / "requirements.lock").write_text("torch==1.0.0 ; sys_platform == 'linux'\n# note\n")
    levels = {name: (level, remedy) for level, name, _, remedy in doctor._packages()}
    assert levels["torch"][0] == "differs" and "1.0.0" in levels["torch"][1] and levels["typer"][0] == "ok"
    torch = doctor.version("torch").split("+")[0]
    (tmp_path / "requirements.lock").write_text(f"torch=={torch}\n")
    assert doctor._packages()[0][0] == "ok"


def test_doctor_finds_the_devices():
    level, _, found, _ = doctor._devices()
    assert level == "ok" and found.startswith("CPU")

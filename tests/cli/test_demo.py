"""`make demo`: what it looks at first, what it does, and what it leaves when it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from ducat_serve.cli.commands.demo import _ducat, _free_folder, _require_success
from ducat_serve.cli.main import run
from ducat_serve.errors import DucatError, InterruptedRun
from ducat_serve.output import Output
from tests.conftest import PROJECT
from tests.support.documents import SMALL, blocks
from training.signals import StopSignal


def test_the_demo_looks_for_its_packages_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "bentoml" else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run(["demo"]) == 1
    captured = capsys.readouterr()
    assert "'bentoml', which is not installed" in captured.err
    assert "ducat train" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_keeps_its_model_in_a_folder_of_its_own(tmp_path: Path) -> None:
    assert _free_folder(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert _free_folder(tmp_path) == tmp_path / "demo-3"


def test_what_a_command_of_the_demo_said_is_said_once_and_keeps_its_exit_code() -> None:
    with pytest.raises(DucatError) as error:
        _require_success("ducat train", 2, StopSignal())
    assert error.value.exit_code == 2
    assert "above" in str(error.value.next_step)


@pytest.mark.slow
def test_make_demo_does_the_whole_job(tmp_path: Path) -> None:
    """README's first block. Asked for JSON, so that what it found can be looked at."""
    [block] = [block for block in blocks(PROJECT / "README.md") if block.code == "make demo"]
    folder = tmp_path / "run"
    # Below `make test` it would be a make below another, which says on stdout where it works.
    environment = {
        name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"
    }
    done = subprocess.run(
        ["bash", "-e", "-c", block.code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
        env={**environment, **SMALL, "DUCAT_DEMO_OUT": str(folder), "DUCAT_DEMO_JSON": "1"},
    )
    said_by_make, _, document = done.stdout.partition("\n{")
    assert said_by_make.endswith("ducat demo")
    result = json.loads("{" + document)
    assert result["http_images"] == 8
    assert 0 <= result["worst_case_accuracy"] <= result["clean_accuracy"] <= 1
    assert "The server has stopped." in done.stderr
    assert '{"event": "epoch"' not in done.stderr, "people read along with what the demo runs"
    assert {"model.safetensors", "model.onnx", "metrics.csv"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in sorted((folder / "samples").iterdir())][9] == "digit-9.png"
    assert "--samples" in done.stderr.splitlines()[-1]


# Stands for `python -P -m ducat_serve ...`: counts signals, takes a while to save after the first, and leaves a process
# behind that holds on to its streams.
COMMAND = """#!{python}
import signal, subprocess, sys, time
came = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: came.append(number))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
open("started", "w").close()
while not came:
    time.sleep(0.01)
time.sleep(0.5)
open("saved", "w").write(str(len(came)))
sys.exit(128 + came[0])
"""


@pytest.fixture
def slow_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which it writes `started` and, in the end, `saved`."""
    script = tmp_path / "python"
    script.write_text(COMMAND.format(python=sys.executable))
    script.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(script))
    return tmp_path


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_what_was_done_is_saved(
    number: signal.Signals, slow_command: Path
) -> None:
    def interrupt() -> None:
        while not (slow_command / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(InterruptedRun, match="interrupted in `ducat train --out 'a b'`") as caught:
        _ducat(Output(silent=True), "train", "--out", "a b")
    assert caught.value.exit_code == 128 + number
    assert (slow_command / "saved").read_text() == "1"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("code", "error", "exit_code"),
    [(130, InterruptedRun, 130), (143, InterruptedRun, 143), (4, DucatError, 4)],
)
def test_a_command_that_was_interrupted_itself_ends_the_demo_as_if_it_had_been(
    code: int, error: type[DucatError], exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexit {code}\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(error) as caught:
        _ducat(Output(silent=True), "evaluate", "runs/demo")
    assert caught.value.exit_code == exit_code

"""`ducat evaluate package.module:callable --resume`: goes on with the same evaluation, and with no other."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ducat_serve.cli.main import run
from ducat_serve.errors import command_line
from ducat_serve.report import AttackResult
from tests.support.interrupted import stop_in
from tests.support.somebodys_nets import DIGITS, REPORT, SOURCE, write_and_enter
from training.attacks.base import Attack
from training.evaluation.attack_run import AttackRun

ASKED = [*DIGITS, "--max-examples", "30"]
ASKED += ["--eps", "0.05", "--eps", "0.1", "--attack", "pgd", "--attack", "apgd-ce"]
STATE = f"{REPORT}.evaluation-"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_and_enter(tmp_path, monkeypatch)
    return tmp_path


def report_in(file: Path) -> dict[str, Any]:
    """Without how long it took and when."""
    return {**json.loads(file.read_text()), "seconds": None, "created": None}


def test_an_interrupted_evaluation_is_gone_on_with(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ASKED) == 0
    whole = report_in(here / REPORT)
    (here / REPORT).unlink()
    with monkeypatch.context() as patch:
        stop_in(patch, "apgd-ce", eps=0.1)
        assert run(ASKED) == 130
    said = capsys.readouterr().err
    assert f"Next: {command_line('ducat', 'evaluate', '--resume', *ASKED[1:])}\n" in said
    assert not (here / REPORT).exists()
    assert list(here.glob(f"{STATE}*"))

    ran: list[tuple[str, float]] = []
    real = AttackRun._run

    def watched(attack_run: AttackRun, attack: Attack) -> AttackResult:
        ran.append((attack.name, attack_run.runner.ball.eps))
        return real(attack_run, attack)

    monkeypatch.setattr(AttackRun, "_run", watched)
    assert run([*ASKED, "--resume"]) == 0
    assert ran == [("apgd-ce", 0.1)]
    assert report_in(here / REPORT) == whole
    assert not list(here.glob(f"{STATE}*"))


@pytest.mark.parametrize(
    ("was", "now", "changed"),
    [
        ("manual_seed(0)", "manual_seed(1)", "function, weights changed"),
        (
            "torch.nn.Flatten()",
            "torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Flatten())",
            ": function changed",
        ),
    ],
    ids=["weights", "code"],
)
def test_another_model_does_not_go_on_with_it(
    was: str,
    now: str,
    changed: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Two versions of a file of one size and second would share their bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with monkeypatch.context() as patch:
        stop_in(patch, "apgd-ce")
        assert run(ASKED) == 130
    (here / "somebodys_nets.py").write_text(SOURCE.replace(was, now))
    monkeypatch.delitem(sys.modules, "somebodys_nets")
    importlib.invalidate_caches()
    assert run([*ASKED, "--resume"]) == 2
    assert changed in capsys.readouterr().err
    assert list(here.glob(f"{STATE}*"))


def test_other_images_are_not_taken_for_another_function(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function is known by its answers to the first images, which are others with another seed."""
    with monkeypatch.context() as patch:
        stop_in(patch, "apgd-ce")
        assert run(ASKED) == 130
    assert run([*ASKED, "--seed", "3", "--resume"]) == 2
    assert ": data, seed changed" in capsys.readouterr().err


def test_a_server_is_not_gone_on_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del here
    server = ["--url", "http://127.0.0.1:1/v1/predict", "--query-budget", "10"]
    assert run(["evaluate", *server, "--dataset", "digits", "--eps", "0.1", "--resume"]) == 2
    assert "a server may answer otherwise by now" in capsys.readouterr().err

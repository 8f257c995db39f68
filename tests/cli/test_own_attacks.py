"""`ducat evaluate --attack package.module:function`: an attack of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ducat_serve import Output, evaluate
from ducat_serve.cli.main import run
from ducat_serve.networks import allowed
from tests.support.interrupted import stop_in
from tests.support.somebodys_nets import DIGITS, write_and_enter

SOURCE = """
import random
import torch

def one_step(model, images, labels, threat_model):
    images.requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    step = torch.autograd.grad(loss, images)[0].sign()
    return (images.detach() + threat_model.eps * step).clamp(0, 1)

def too_far(model, images, labels, threat_model):
    return (images + 2 * threat_model.eps).clamp(0, 1)

def broken(model, images, labels, threat_model):
    return random.choice([])

NUMBER = 3
"""
FEW = ["--max-examples", "40", "--batch-size", "20"]
OURS = ["evaluate", "digits-small", *FEW]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(allowed, "_names", set())  # as in a process of its own
    monkeypatch.setattr(allowed, "_folders", [])
    write_and_enter(tmp_path, monkeypatch)
    return tmp_path


def attacked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_it_finds_what_the_function_finds_in_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*OURS, "--attack", "mine:one_step", "--attack", "mine:one_step", "--import-from", "."]
    report = attacked(command, capsys)
    assert [attack["name"] for attack in report["attacks"]] == ["own:one_step"]
    assert 0 < report["worst_case_accuracy"] < report["clean_accuracy"]

    function = sys.modules["mine"].one_step
    in_python = evaluate(
        "digits-small.safetensors",
        attacks=function,
        max_examples=40,
        batch_size=20,
        store=False,
        output=Output(silent=True),
    )
    assert in_python.worst_case_accuracy == report["worst_case_accuracy"]


def test_it_stands_beside_others_on_a_model_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*DIGITS, *FEW, "--eps", "0.1", "--attack", "pgd", "--attack", "mine:one_step"]
    report = attacked(command, capsys)
    assert [attack["name"] for attack in report["attacks"]] == ["pgd", "own:one_step"]


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("mine:nothing", "mine has no callable named nothing"),
        ("mine:NUMBER", "mine has no callable named NUMBER"),
        ("their:attack", "there is no module their"),
        ("mine:too_far", "own:too_far returned an image at a distance of 0.4 in linf; eps is 0.2"),
        ("mine:broken", "mine.py, line 15): IndexError"),
    ],
)
def test_what_cannot_be_is_refused(attack: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*OURS, "--attack", attack, "--import-from", "."]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_nothing_is_imported_from_here_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*OURS, "--attack", "pgd", "--import-from", "."]) == 2
    assert "--network or --attack" in capsys.readouterr().err
    monkeypatch.setattr(allowed, "_folders", [])
    assert run([*OURS, "--attack", "mine:one_step"]) == 2
    assert "--import-from ." in capsys.readouterr().err
    assert "mine" not in sys.modules
    assert run([*OURS, "--attack", "torchvision:resnet50"]) == 2
    assert "Unknown attack 'torchvision:resnet50'" in capsys.readouterr().err


@pytest.mark.parametrize("model", [OURS, [*DIGITS, *FEW, "--eps", "0.1"]])
def test_it_is_not_resumed_and_nobody_says_so(
    model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*model, "--attack", "pgd", "--attack", "mine:one_step", "--import-from", "."]
    with monkeypatch.context() as patch:
        stop_in(patch, "own:one_step", eps=0.1 if "--eps" in model else 0.2)
        assert run(command) == 130
    assert "--resume" not in capsys.readouterr().err
    assert not list(Path().glob("*.partial"))
    assert run([*command, "--resume"]) == 2
    assert "cannot be told" in capsys.readouterr().err
    assert run(command) == 0, "what nobody can go on with is in nobody's way"

"""`ducat evaluate their.onnx --input ... --scale ...`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from ducat_serve.cli.main import run
from ducat_serve.networks import allowed
from tests.support.foreign_onnx import linear_onnx

TWINS = """
import torch
from tests.support.foreign_onnx import Linear

def twin():
    return Linear()

def stranger():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))

def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7))
"""
DECLARED = ["--input", "NCHW", "--scale", "1"]
FEW = ["--dataset", "digits", "--eps", "0.1", "--max-examples", "16"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "twins_of_theirs", raising=False)  # of the test before
    monkeypatch.setattr(allowed, "_names", set())  # as in a process of its own
    linear_onnx(tmp_path / "their.onnx", ("batch", 3, "h", "w"))
    return tmp_path


def test_scores_alone_and_what_a_twin_adds(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "twins_of_theirs.py").write_text(TWINS)
    assert run(["evaluate", "their.onnx", *DECLARED, *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert "leaves height, width open: measured with 3 channels and 8 x 8 pixels" in captured.err
    assert (report["artefact"], [a["name"] for a in report["attacks"]]) == ("onnx", ["square"])
    assert report["weights_digest"] == hashlib.sha256((here / "their.onnx").read_bytes()).hexdigest()
    assert report == json.loads((here / "their.robustness.json").read_text())
    card = (here / "their.robustness.md").read_text()
    assert f"File: SHA-256 `{report['weights_digest']}`" in card
    assert "Attacks saw only the scores" in card

    twin = ["--twin", "twins_of_theirs:twin", "--import-from", "."]
    assert run(["evaluate", "their.onnx", *DECLARED, *FEW, *twin, "--json"]) == 0
    captured = capsys.readouterr()
    with_twin = json.loads(captured.out)
    assert [a["name"] for a in with_twin["attacks"]] == ["transfer", "square"]
    assert with_twin["attacks"][0]["gradient_steps"] == 0  # of the file itself
    assert "may transfer badly" not in captured.err
    stranger = ["--twin", "twins_of_theirs:stranger", "--import-from", "."]
    assert run(["evaluate", "their.onnx", *DECLARED, *FEW, *stranger]) == 0
    assert "may transfer badly" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["their.onnx", *FEW], 4, "--input NCHW --scale 1"),
        (["their.onnx", "--input", "NCHW", *FEW], 2, "does not say what its pixels are"),
        (["their.onnx", "--input", "NCHW", "--scale", "7", *FEW], 2, "none of 1, 255 and MEAN/STD"),
        (["their.onnx", *DECLARED, "--eps", "0.1"], 2, "--dataset"),
        (["their.onnx", *DECLARED, "--dataset", "digits"], 2, "needs --eps"),
        (["their.onnx", *DECLARED, *FEW, "--attack", "apgd-ce"], 2, "there are only scores"),
        (["their.onnx", *DECLARED, *FEW, "--attack", "transfer"], 2, "--twin package.module:callable"),
        (["their.onnx", *DECLARED, *FEW, "--suite", "quik"], 2, "Did you mean 'quick'?"),
        (
            ["their.onnx", *DECLARED, *FEW, "--fold", "max"],
            2,
            "--fold is for a package.module:callable MODEL",
        ),
        (["their.onnx", *DECLARED, *FEW, "--import-from", "."], 2, "--import-from is for"),
        (["their.onnx", *DECLARED, *FEW, "--checkpoint", "a"], 2, "for a .onnx MODEL of ours"),
        (
            ["their.onnx", *DECLARED, *FEW, "--suite", "standard", "--bar", "worst_case=0"],
            2,
            "follow gradients",
        ),
        (
            ["their.onnx", *DECLARED, *FEW, "--suite", "standard", "--export", "robustbench"],
            2,
            "follow gradients",
        ),
        (["nowhere.onnx", *DECLARED, *FEW], 4, "Cannot read nowhere.onnx"),
        (["json:loads", "--scale", "1", *FEW], 2, "--scale is for a .onnx MODEL of others"),
    ],
)
def test_what_is_missing_or_does_not_go_together_is_named(
    arguments: list[str], code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", *arguments]) == code
    assert message in capsys.readouterr().err
    assert [file.name for file in here.iterdir()] == ["their.onnx"]


def test_a_twin_of_other_classes_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "twins_of_theirs.py").write_text(TWINS)
    twin = ["--twin", "twins_of_theirs:narrow", "--import-from", "."]
    assert run(["evaluate", "their.onnx", *DECLARED, *FEW, *twin]) == 2
    assert "--twin returns 7 logits, and the model 10" in capsys.readouterr().err


def test_a_file_of_ours_says_itself_what_it_takes(
    onnx_model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(onnx_model), *DECLARED, *FEW]) == 2
    assert "was written by ducat and says itself what it takes" in capsys.readouterr().err

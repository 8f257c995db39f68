"""`ducat evaluate package.module:callable`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ducat_serve.cli.main import run

SOURCE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))

def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "somebodys_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "somebodys_nets", raising=False)  # of the test before
    return tmp_path


def test_report_and_card_of_somebody_elses_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "somebodys_nets:make",
        "--import-from",
        ".",
        "--dataset",
        "digits",
        "--eps",
        "0.05",
    ]
    command += ["--eps", "0.1", "--max-examples", "40", "--attack", "pgd", "--export", "robustbench"]
    command += ["--per-image", "rows.csv"]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((here / "make.robustness.json").read_text())
    assert [point["eps"] for point in report["curve"]] == [0.05, 0.1]
    assert report["worst_case_accuracy"] <= report["curve"][0]["worst_case_accuracy"]
    card = (here / "make.robustness.md").read_text()
    assert "somebodys" in card
    assert report["weights_digest"] in card
    assert len((here / "rows.csv").read_text().splitlines()) == 41
    assert (here / "make.robustness.robustbench.json").is_file()
    assert (here / "accuracy-over-eps.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--eps", "0.1"], "there is no module somebodys_nets"),
        (["--import-from", ".", "--eps", "0.1"], "--dataset"),
        (["--import-from", ".", "--dataset", "digits"], "needs --eps"),
        (["--import-from", ".", "--dataset", "digits", "--eps", "0.1", "--resume"], "--resume"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(["evaluate", "somebodys_nets:make", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_logits_of_another_width_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "somebodys_nets:narrow",
        "--import-from",
        ".",
        "--dataset",
        "digits",
        "--eps",
        "0.1",
    ]
    assert run(command) == 2
    assert "returns 7" in capsys.readouterr().err
    assert {file.name for file in here.iterdir()} - {"__pycache__"} == {"somebodys_nets.py"}

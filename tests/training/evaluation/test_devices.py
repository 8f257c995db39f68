"""Several processes that evaluate one model: what they find is what one finds, image by image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.cli.main import run
from ducat_serve.output import Output
from tests.support.interrupted import stop_in
from training.distributed.processes import ProcessGroup
from training.evaluation.runner import Batches

DUCAT = [sys.executable, "-P", "-m", "ducat_serve"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Batches of 3 make several for each process, and a different number of them after every attack.
ASKED = ["--max-examples", "12", "--batch-size", "3", "--attack", "pgd", "--attack", "square-warm"]


THEIR_NETS = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
"""


def evaluate(folder: Path, *arguments: str, command: list[str] = DUCAT) -> dict[str, Any]:
    """The report of a command in a process of its own, without what differs from one run to the next."""
    done = subprocess.run(
        [*command, "evaluate", *arguments, "--out", str(folder / "report.json"), "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    report = report_in(folder)
    # One document, of one process.
    assert json.loads(done.stdout)["weights_digest"] == report["weights_digest"]
    return report


def report_in(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    for timed in (report, *report["attacks"]):
        del timed["seconds"]
    return report


@pytest.fixture(scope="module")
def alone(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(run_folder, folder / "run")
    kept = ["--per-image", str(folder / "rows.csv"), "--save-adversarial", str(folder / "broken")]
    assert run(["evaluate", str(folder / "run"), *ASKED, *kept, "--out", str(folder / "report.json")]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.integration
def test_two_processes_find_what_one_finds(alone: Path, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    kept = ["--per-image", "rows.csv", "--save-adversarial", "broken"]
    assert evaluate(tmp_path, "run", *ASKED, *kept, "--devices", "2") == report_in(alone)
    for name in ("rows.csv", "broken/adversarial.safetensors", "run/examples.json"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name
    assert not list((tmp_path / "run").glob("*.partial*"))


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.extended
def test_an_evaluation_is_resumed_by_more_processes(
    alone: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    stop_in(monkeypatch, "square-warm")
    # Images are kept by both or by neither: what is kept is a part of what is resumed.
    kept = ["--save-adversarial", str(tmp_path / "broken")]
    assert run(["evaluate", str(tmp_path / "run"), *ASKED, *kept]) == 130
    assert evaluate(tmp_path, "run", *ASKED, *kept, "--devices", "2", "--resume") == report_in(alone)
    found = "broken/adversarial.safetensors"
    assert (tmp_path / found).read_bytes() == (alone / found).read_bytes()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.extended
def test_torchrun_joins_on_a_model_of_others(tmp_path: Path) -> None:
    (tmp_path / "their_nets.py").write_text(THEIR_NETS)
    asked = ["their_nets:make", "--import-from", ".", "--dataset", "digits", "--eps", "0.05", "--eps", "0.1"]
    asked += ["--max-examples", "24", "--batch-size", "8", "--attack", "apgd-ce"]
    once = evaluate(tmp_path, *asked)
    assert evaluate(tmp_path, *asked, command=[*TORCHRUN, "-m", "ducat_serve"]) == once


def test_a_server_is_asked_by_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--url", "http://127.0.0.1:9/v1/predict", "--query-budget", "9", "--dataset", "digits"]
    assert run(["evaluate", *asked, "--eps", "0.1", "--devices", "2"]) == 2
    assert "a server is asked by one process" in capsys.readouterr().err


class _Waits(Exception):
    """A process that would wait for the others here."""


class InTurn(ProcessGroup):
    """A process of three that run one after the other: the last one gets what all of them had."""

    def meet(self) -> None: ...

    def gather(self, mine: Any) -> list[Any]:
        PARTS.append(mine)
        if self.rank < self.size - 1:
            raise _Waits
        return PARTS


PARTS: list[Any] = []


def test_batches_are_dealt_out_whole() -> None:
    """Whichever process has a batch, it is the same one, and results come back in order."""
    index, took = torch.arange(100, 121), dict[int, list[int]]()

    def dealt(rank: int) -> list[tuple[int, list[int]]]:
        def work(start: int, batch: torch.Tensor) -> tuple[int, list[int]]:
            took.setdefault(rank, []).append(start)
            return start, batch.tolist()

        return Batches(4, Output(), InTurn(rank, 3)).over(index, work)

    for rank in range(2):
        with pytest.raises(_Waits):
            dealt(rank)
    alone = Batches(4, Output()).over(index, lambda start, batch: (start, batch.tolist()))
    assert dealt(2) == alone
    assert took == {0: [0, 12], 1: [4, 16], 2: [8, 20]}

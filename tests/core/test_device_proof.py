"""The checks of `ducat doctor --gpu`, run on the CPU: the same code finds a device that computes something else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ducat_serve.cli.main import run
from ducat_serve.library.device_proof import proof, runtime, training
from ducat_serve.library.device_proof.items import Check, Figures, Item, Proof, Skipped, run_checks
from ducat_serve.library.device_proof.training import Case, training_checks
from ducat_serve.predictor import Predictions, Predictor

CPU = torch.device("cpu")
TINY = Case("resnet-small", size=8, batch=4, repeats=1)
# A compiled step takes a minute of a C++ compiler's time.
TRAINING = [check for check in training_checks(CPU, TINY) if "compiled" not in check.name]
RUNTIME = runtime.runtime_checks("cpu", repeats=1)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_BUCKETS", (1, 8))


def skipping() -> Figures:
    raise Skipped("no such thing here")


def failing() -> Figures:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_item_passes_fails_or_is_skipped_and_none_stops_the_others() -> None:
    checks = [Check("a", failing), Check("b", skipping), Check("c", lambda: {"figure": 1.5})]
    a, b, c = run_checks(checks)
    assert (a.state, a.reason) == ("failed", "OutOfMemoryError: CUDA out of memory")
    assert (b.state, b.reason) == ("skipped", "no such thing here")
    assert (c.state, c.reason, c.figures) == ("passed", "", {"figure": 1.5})


def test_no_check_begins_after_the_time_is_over() -> None:
    clock = itertools.count(0.0, 100.0)  # a hundred seconds pass whenever somebody looks
    items = run_checks([Check(str(n), dict) for n in range(5)], seconds=600, clock=lambda: next(clock))
    assert [item.state for item in items] == ["passed"] * 3 + ["skipped"] * 2
    assert items[-1].reason == "the 600 s are over"


@pytest.mark.parametrize("check", [*RUNTIME, *TRAINING], ids=lambda check: check.name)
def test_on_a_cpu_every_check_passes(check: Check) -> None:
    (item,) = run_checks([check])
    if check.name == "onnx-tensorrt":
        assert (item.state, item.reason) == ("skipped", "this onnxruntime has no TensorRT provider")
    else:
        assert item.state == "passed", item.reason
        assert item.figures


def only(name: str) -> Item:
    (item,) = run_checks([check for check in (*RUNTIME, *TRAINING) if check.name == name])
    return item


def test_a_runtime_that_computes_something_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Predictor.__call__

    def wrong(self: Predictor, images: Any) -> Predictions:
        answer = original(self, images)
        return answer._replace(logits=answer.logits * np.float32(1 + 0.1 * images.mean() / 255))

    opened: list[Predictor] = []

    def of_one_runtime(self: Predictor, images: Any) -> Predictions:
        opened.append(self)
        return (wrong if self is opened[0] else original)(self, images)

    monkeypatch.setattr(Predictor, "__call__", of_one_runtime)
    assert only("onnx-parity").state == "failed"


def test_a_graph_on_another_provider_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where CUDA does not start and ONNX Runtime takes the CPU without a word."""
    session = runtime._session
    monkeypatch.setitem(runtime.PROVIDERS, "cpu", "CUDAExecutionProvider")
    assert "runs on CPUExecutionProvider, not on CUDAExecutionProvider" in only("onnx-provider").reason

    def unnoticed(*arguments: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(runtime.PROVIDERS, "cpu", "CPUExecutionProvider")
            return session(*arguments)

    monkeypatch.setattr(runtime, "_session", unnoticed)
    assert "ran on another provider" in only("onnx-provider").reason


@pytest.mark.parametrize("half", ["attack", "update"])
def test_a_step_that_computes_something_else_fails(half: str, monkeypatch: pytest.MonkeyPatch) -> None:
    halves, calls = training._halves, itertools.count()

    def wrong(*arguments: Any) -> Any:
        attack, update = halves(*arguments)
        if next(calls) == 0:
            return attack, update
        if half == "attack":
            return (lambda: attack() + 0.01), update
        return attack, lambda adversarial: update(adversarial) * 1.01

    monkeypatch.setattr(training, "_halves", wrong)
    item = only("torch-parity")
    assert item.state == "failed"
    assert ("pixels" if half == "attack" else "loss") in item.reason


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "gpu.json"
    assert run(["doctor", "--gpu", "--out", str(out)]) == 1
    assert "There is no GPU that torch can use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert run(["doctor", "--out", str(out)]) == 2


def test_the_command_writes_one_document_and_fails_where_a_check_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = [Check("good", lambda: {"images/s": 12.5}), Check("absent", skipping)]

    def on_a_gpu() -> Proof:
        return Proof(device="a GPU", machine={"memory, MiB": 1}, items=run_checks(checks))

    monkeypatch.setattr(proof, "prove_gpu", on_a_gpu)
    out = tmp_path / "gpu.json"
    assert run(["doctor", "--gpu", "--out", str(out), "--json"]) == 0
    written = json.loads(out.read_text())
    assert written == json.loads(capsys.readouterr().out)
    assert [item["state"] for item in written["items"]] == ["passed", "skipped"]
    checks.append(Check("bad", failing))
    assert run(["doctor", "--gpu", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "1 of 3 checks failed, first bad: OutOfMemoryError" in said.err
    assert "good" in said.out
    assert json.loads(out.read_text())["items"][2]["state"] == "failed"
    assert run(["doctor", "--gpu", "--out", str(tmp_path / "none" / "gpu.json")]) == 1


def test_a_proof_can_be_printed_for_a_bug_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    item = Item(name="arithmetic", state="passed", figures={"error": "1e-6"})
    found = Proof(device="a GPU", machine={}, items=(item,))
    monkeypatch.setattr(proof, "prove_gpu", lambda: found)
    assert run(["doctor", "--gpu", "--markdown"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a GPU\n\n| | check | found |\n")
    assert "| passed | arithmetic | error 1e-6 |" in out

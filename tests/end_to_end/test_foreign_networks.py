"""Somebody else's networks, as they are: torchvision's ResNet with random weights, and trained on digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ducat_serve.cli.main import run

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FEW = ["--dataset", "digits", "--eps", "16/255", "--max-examples", "30", "--attack", "apgd-ce"]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.extended
def test_torchvisions_resnet_through_its_own_callable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_nets", raising=False)
    reports = {}
    for net in ("torchvision_resnet", "torchvision_resnet_on_digits"):
        command = ["evaluate", f"foreign_nets:{net}", "--import-from", str(BENCHMARKS), *FEW, "--json"]
        assert run(command) == 0
        reports[net] = json.loads(capsys.readouterr().out)
    trained, untrained = reports["torchvision_resnet_on_digits"], reports["torchvision_resnet"]
    assert untrained["clean_accuracy"] < 0.5 < trained["clean_accuracy"]
    assert trained["worst_case_accuracy"] < trained["clean_accuracy"]
    assert trained["weights_digest"] != untrained["weights_digest"]
    assert trained["attacks"][0]["gradient_steps"] > 0

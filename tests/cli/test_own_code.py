"""A network of the user's own code may do what makes figures doubtful, as a model of others may."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ducat_serve.cli.main import run

SOURCE = """
import torch

class Network(torch.nn.Module):
    def __init__(self, channels, outputs, noise):
        super().__init__()
        torch.manual_seed(0)
        self.flat, self.head, self.noise = torch.nn.Flatten(), torch.nn.Linear(64 * channels, outputs), noise

    def forward(self, images):
        logits = self.head(self.flat(images))
        return logits + self.noise * torch.randn_like(logits)

def plain(channels, outputs): return Network(channels, outputs, 0)
def noisy(channels, outputs): return Network(channels, outputs, 1)
"""


@pytest.mark.parametrize(("factory", "expected"), [("plain", []), ("noisy", ["random answers"])])
def test_what_makes_figures_doubtful_has_a_name(
    factory: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "of_ones_own.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "of_ones_own", raising=False)
    network = f"of_ones_own:{factory}"
    assert (
        run(["import", network, "--import-from", ".", "--dataset", "digits", "--out", "m.safetensors"]) == 0
    )
    capsys.readouterr()
    command = ["evaluate", "m.safetensors", "--network", network, "--import-from", ".", "--eps", "0.1"]
    assert run([*command, "--attack", "pgd", "--max-examples", "20", "--json"]) == 0
    said = capsys.readouterr()
    assert [doubt.partition(":")[0] for doubt in json.loads(said.out)["doubts"]] == expected
    assert all(name in said.err for name in expected)

"""A module of somebody else, which makes models, in a folder that commands run in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SOURCE = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))

def three():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)).eval()

def ready():
    return make().eval()

def narrow():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 7))

class Strange(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = make(), kind
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images):
        logits = self.net(images)
        if self.kind == "changing":
            self.calls += 1
        return {"nan": logits * float("nan"), "pair": (logits, images)}.get(self.kind, logits)

def nan():
    return Strange("nan")

def pair():
    return Strange("pair")

def changing():
    return Strange("changing")

def no_module():
    return "a model"

def broken():
    raise RuntimeError("no weights here")
"""

DIGITS = ["evaluate", "somebodys_nets:make", "--import-from", ".", "--dataset", "digits"]
REPORT = "somebodys_nets.make.robustness.json"


def write_and_enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the module to ``folder``, the current one from now on; what an earlier test imported is forgotten."""
    (folder / "somebodys_nets.py").write_text(SOURCE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "somebodys_nets", raising=False)

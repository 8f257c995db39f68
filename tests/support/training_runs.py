"""Small training runs on digits, and what they are compared by."""

from __future__ import annotations

import csv
import itertools
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.errors import DucatError
from ducat_serve.networks.allowed import allow
from ducat_serve.output import Output
from ducat_serve.spec import ModelSpec
from tests.support import tiny_network
from training.data import load_dataset
from training.provenance import Provenance
from training.resolve import resolve
from training.run.folder import RunFolder
from training.run.metrics import EpochRow
from training.trainer import Trainer

PROJECT = Path(__file__).parent.parent.parent

# Small enough for seconds, with both phases: epochs 1 and 2 adversarial, 3 and 4 with dummies; 5 steps each.
TINY = {
    "network": tiny_network.NAME,
    "epochs": 4,
    "ducat_start": 3,
    "attack_steps": 1,
    "batch_size": 256,
    "precision": "float32",
}
TINY_FLAGS = [a for k, v in TINY.items() for a in (f"--{k.replace('_', '-')}", str(v))]
# A command in a process of its own has to be told again whose code it may import, and where it is.
IMPORT_FROM = ["--import-from", str(PROJECT)]
RESUME_FLAGS = ["--network", tiny_network.NAME, *IMPORT_FROM]


def trainer(folder: Path, **changes: object) -> Trainer:
    """A trainer of a new run in ``folder``, or of the one that is there."""
    allow(tiny_network.NAME)
    config = resolve("digits", {**TINY, **changes})
    run_folder = RunFolder(folder)
    data = load_dataset("digits")
    if not run_folder.config.exists():
        run_folder.create(config, None, data.digest, Provenance())
    return Trainer(config, data, run_folder, torch.device("cpu"), Output())


def resumed(folder: Path, **changes: object) -> Trainer:
    """A trainer that took up the state in ``folder``."""
    subject = trainer(folder, **changes)
    subject.resume()
    return subject


def around_steps(subject: Trainer, around: Callable[[int, Callable[[], Tensor]], Tensor]) -> None:
    """From now on step number n of this process, counted from 1, is ``around(n, step)``."""
    count, original = itertools.count(1), subject.train_step

    def train_step(order: Tensor, epoch: int, step: int) -> Tensor:
        return around(next(count), lambda: original(order, epoch, step))

    subject.train_step = train_step  # type: ignore[method-assign]


def fill_weights(subject: Trainer, value: float) -> None:
    """Make one tensor of a model's weights useless."""
    with torch.no_grad():
        next(subject.classifier.parameters()).fill_(value)


def run_until(subject: Trainer, number: int) -> DucatError:
    """Run, and be told to stop as step ``number`` of this process begins; returns the error of the end."""

    def stopping(n: int, step: Callable[[], Tensor]) -> Tensor:
        if n == number:
            subject.stop.received = signal.SIGTERM
        return step()

    around_steps(subject, stopping)
    with pytest.raises(DucatError, match="Interrupted") as caught:
        subject.run()
    return caught.value


def rows(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that time."""
    with (folder / "metrics.csv").open() as file:
        return [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, bit for bit, and the same measurements."""
    for name in ("model.safetensors", "last.safetensors", "pre_dummy.safetensors"):
        assert (one / name).exists() == (other / name).exists(), name
        if (one / name).exists():
            assert _without_provenance(one / name) == _without_provenance(other / name), name
    assert rows(one) == rows(other)


def _without_provenance(file: Path) -> ModelSpec:
    """What the file says, the digest of its weights included; a run of `trainer` here was begun by no command."""
    spec, _ = read_checkpoint(file)
    return spec.model_copy(update={"training": {**spec.training, **asdict(Provenance())}})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def epoch_row(epoch: int = 1, **measured: float | None) -> EpochRow:
    """A row whose measurements are those given; the others say nothing."""
    values: dict[str, Any] = {
        "phase": "adversarial",
        "learning_rate": 0.1,
        "loss": 2.0,
        "val_clean_accuracy": 0.9,
        "val_pgd_accuracy": 0.5,
        "val_legacy_accuracy": None,
        "val_fgsm_accuracy": None,
        "dummy_share_clean": None,
        "dummy_share_adversarial": None,
        "images_per_second": 1.0,
        "seconds": 1.0,
    }
    return EpochRow(epoch=epoch, **{**values, **measured})

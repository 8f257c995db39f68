"""Start weights of which nobody knows what they were trained on: it is said, whichever way they are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.output import Output
from tests.support.checkpoints import SPEC, forged, untrained
from training.config import TrainConfig
from training.data import Dataset, load_dataset
from training.initial import InitialWeights, StartWeights
from training.pretrained import Pretrained
from training.resolve import resolve
from training.run.folder import RunFolder
from training.run.start import Run, opened

IMPORTED = {"recipe": {"method": "imported", "dataset": "digits"}}
OURS = {"recipe": {"method": "pgd-at", "dataset": "digits", "seed": 0}}
SAYS = "may have learnt images that are held out as val or test here"


def checkpoint(folder: Path, training: dict[str, Any]) -> Path:
    """Of a network for digits."""
    spec = SPEC.model_copy(update={"num_classes": 10, "labels": tuple("0123456789")})
    changes = {"num_classes": 10, "labels": spec.labels, "training": training}
    return forged(folder / "model.safetensors", untrained(spec), **changes)


def both_ways(file: Path) -> tuple[StartWeights, StartWeights]:
    """By `--initial-checkpoint` and by `--pretrained`."""
    return InitialWeights.read(file), Pretrained.read(file)


def on(dataset: str) -> tuple[TrainConfig, Dataset]:
    config = resolve("digits", {"ducat": "off", "network": "resnet-small"})
    return config.model_copy(update={"dataset": dataset}), load_dataset("digits")


@pytest.mark.parametrize("dataset", ["digits", "folder:photos"])
def test_an_imported_checkpoint_is_doubted_on_its_own_data_set(tmp_path: Path, dataset: str) -> None:
    """Neither way holds out what it has not learnt, so neither is refused in favour of the other."""
    for start in both_ways(checkpoint(tmp_path, IMPORTED)):
        start.require_fit(*on(dataset))
        doubt = start.doubt(*on(dataset))
        if dataset == "digits":
            assert doubt is not None
            assert SAYS in doubt
        else:
            assert doubt is None


def test_a_run_of_ours_is_not_doubted(tmp_path: Path) -> None:
    for start in both_ways(checkpoint(tmp_path, OURS)):
        assert start.doubt(*on("digits")) is None


@pytest.mark.parametrize("way", [0, 1])
def test_the_doubt_is_said_before_the_training(
    tmp_path: Path, way: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = on("digits")
    start = both_ways(checkpoint(tmp_path, IMPORTED))[way]
    config = config.model_copy(update={"initial_weights": start.digest})
    run = Run(config, RunFolder(tmp_path / "run"), initial=start)
    with opened(run, torch.device("cpu"), Output(), only_look=True):
        pass
    assert SAYS in " ".join(capsys.readouterr().err.split())

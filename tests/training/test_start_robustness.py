"""Start weights are asked whether they are robust, and eps grows slowly where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ducat_serve.cli.main import run
from tests.support.image_folders import write_colours
from training.config import TrainConfig
from training.resolve import resolve
from training.start_robustness import is_robust, settings_of_the_head
from training.validation import ValidationResult

SOURCE = """
from torch import nn

def make(outputs):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.Linear(8, outputs))
"""


@pytest.mark.parametrize(
    ("clean", "pgd", "robust"),
    [
        (0.7, 0.0, False),
        (0.7, 0.17, False),
        (0.7, 0.18, True),
        (0.25, 0.25, False),  # always naming one class is as accurate, and as robust
    ],
)
def test_what_is_called_robust(clean: float, pgd: float, robust: bool) -> None:
    assert is_robust(ValidationResult(clean, pgd, class_sizes=(25, 25, 25, 25))) is robust


def test_who_says_what_the_start_weights_are_is_not_asked_again() -> None:
    def settings(recipe: str, **given: Any) -> tuple[int | None, bool]:
        config = resolve("folder:photos", given, recipe)
        return config.eps_ramp, config.measure_start

    assert settings("folder-finetune") == (10, True)
    assert settings("folder-finetune", eps_ramp=10) == (10, False)
    assert settings("folder-finetune-robust") == (1, False)
    assert settings("folder-finetune", epochs=20) == (4, True)
    assert settings("folder-finetune", epochs=5) == (1, True)  # the ramp would be longer than the run
    assert "measure_start" not in resolve("digits", {}).model_dump()


EVERYTHING_SET: list[tuple[str, dict[str, object]]] = [
    ("folder-finetune", {}),
    ("cifar10-hours", {"ema_warmup": True, "awp_gamma": 0.005, "clean_share": 0.5}),
    ("cifar10", {"method": "trades", "beta": 4.0, "ducat": "folded", "split_weight": 0.2, "warmup": 5}),
    ("cifar10", {"norm": "l2", "eps_ramp": 10, "schedule": "one-cycle", "epochs": 30, "accumulate": 4}),
]


@pytest.mark.parametrize(("recipe", "given"), EVERYTHING_SET)
def test_an_epoch_of_the_head_alone_is_a_valid_run_on_the_same_images(
    recipe: str, given: dict[str, object]
) -> None:
    run = resolve("folder:photos", {"val_fraction": 0.2, "seed": 7, **given}, recipe)
    head = settings_of_the_head(run)
    assert TrainConfig.model_validate(head.model_dump()) == head
    assert (head.epochs, head.backbone_lr, head.phase(1)) == (1, 0.0, "standard")
    assert (head.warmup, head.ema_decay, head.awp_gamma, head.eps_ramp) == (None, None, None, None)
    same = ("selection", "threat_model", "attack_steps", "step_size", "network", "lr", "batch_size", "seed")
    for name in (*same, "accumulate", "normalisation", "precision", "crop_padding", "flip", "optimizer"):
        assert getattr(head, name) == getattr(run, name)


@pytest.fixture(scope="module")
def own_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module of one's own: a process imports one of its name."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mean_colours.py").write_text(SOURCE)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize(("eps", "robust"), [("2/255", True), ("0.5", False)])
def test_weights_are_measured_at_the_eps_of_the_run(
    eps: str, robust: bool, own_network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mean colours tell the classes apart under small changes, and not under large ones."""
    write_colours(tmp_path / "photos", train=40, size=8)
    torch.manual_seed(0)
    weights = {"2.weight": 4 * torch.randn(8, 3), "2.bias": torch.zeros(8)}
    torch.save({**weights, "3.weight": torch.randn(9, 8), "3.bias": torch.zeros(9)}, tmp_path / "weights.pth")
    data = [
        "--dataset",
        f"folder:{tmp_path / 'photos'}",
        "--network",
        "mean_colours:make",
        "--import-from",
        str(own_network),
    ]
    some = ["--ducat", "off", "--epochs", "10", "--batch-size", "8", "--attack-steps", "5", "--lr", "0.1"]
    some += ["--precision", "float32"]
    sizes = ["--eps", eps, "--step-size", eps, "--val-fraction", "0.25", "--seed", "0", "--threads", "1"]
    out = ["--pretrained", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "run"), "--json"]
    # At an eps of 0.5 nothing can be learnt.
    assert run(["train", *data, *some, *sizes, *out]) == (0 if robust else 1)
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    (said,) = [event for event in events if event["event"] == "start-robustness"]
    assert said["clean_accuracy"] > 0.8
    assert (said["robust"], said["eps_ramp"]) == (robust, 1 if robust else 2)
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["eps_ramp"] == said["eps_ramp"]
    assert "measure_start" not in config

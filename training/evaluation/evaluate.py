"""Evaluate the deployed function: clean images first, then each attack on what is still right."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ducat_serve import __version__
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.report import AttackResult, RobustnessReport
from ducat_serve.spec import ThreatModel
from training.attacks.ball import Ball
from training.attacks.frozen import frozen
from training.attacks.pgd import pgd
from training.batches import DeviceSplit
from training.evaluation.intervals import wilson
from training.randomness import stream


@dataclass(frozen=True)
class PgdStage:
    """PGD on the cross entropy of the deployed logits; the step is a quarter of eps."""

    steps: int = 20
    name: str = "pgd"

    @property
    def settings(self) -> dict[str, int | float | str]:
        return {"loss": "cross entropy of the deployed logits", "steps": self.steps, "step_over_eps": 0.25}

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor:
        return pgd(model, images, labels, ball, steps=self.steps, step_size=ball.eps / 4, generator=generator)


@dataclass(frozen=True)
class Subject:
    """What is measured: which weights, on which images."""

    weights_digest: str
    dataset: str
    split: Literal["val", "test"]
    num_classes: int


def evaluate(
    model: nn.Module,
    data: DeviceSplit,
    subject: Subject,
    threat_model: ThreatModel,
    stages: Sequence[PgdStage],
    *,
    seed: int,
    batch_size: int,
    output: Output,
) -> RobustnessReport:
    """Accuracy per example: right on the clean image AND under every attack that was run.

    Args:
        model: the deployed function, float images in [0, 1] to C logits; run in float32, eval mode.
        data: the images to measure on.

    Raises:
        UsageError: the model's output does not have C columns (a raw 2C model, say).
    """
    require_deployed(model, data, subject.num_classes)
    ball = Ball.of(threat_model)
    with frozen(model):
        right = torch.cat([_correct(model, images, labels) for images, labels in data.in_order(batch_size)])
        clean = right.float().mean().item()
        results = []
        for stage in stages:
            attacked = right.nonzero().squeeze(1)
            with output.progress(stage.name, len(attacked)) as advance:
                for start in range(0, len(attacked), batch_size):
                    index = attacked[start : start + batch_size]
                    images, labels = data.images[index].float() / 255, data.labels[index]
                    generator = stream(seed, stage.name, start, device=labels.device)
                    adversarial = stage(model, images, labels, ball, generator)
                    right[index] = _correct(model, adversarial, labels)
                    advance(len(index))
            left = int(right.sum())
            results.append(
                AttackResult(
                    name=stage.name,
                    settings=stage.settings,
                    examples=len(attacked),
                    accuracy=left / len(attacked) if len(attacked) else 0.0,
                    worst_case_accuracy=left / len(data),
                )
            )
    survivors = int(right.sum())
    return RobustnessReport(
        weights_digest=subject.weights_digest,
        dataset=subject.dataset,
        split=subject.split,
        examples=len(data),
        norm=threat_model.norm,
        eps=threat_model.eps,
        seed=seed,
        clean_accuracy=clean,
        worst_case_accuracy=survivors / len(data),
        worst_case_interval=wilson(survivors, len(data)),
        attacks=tuple(results),
        versions={
            "ducat-serve": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def require_deployed(model: nn.Module, data: DeviceSplit, num_classes: int) -> None:
    """Raise UsageError unless the model maps images to C logits."""
    with frozen(model), torch.no_grad():
        width = model(data.images[:1].float() / 255).shape[1]
    if width != num_classes:
        raise UsageError(
            f"Only the deployed function may be evaluated: {num_classes} logits, but this model returns {width}. "
            "Attacks on raw 2C logits say nothing about what is deployed.",
            "load the model with ducat_serve.load(path), which folds the dummies",
        )


@torch.no_grad()
def _correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits.argmax(dim=1) == labels

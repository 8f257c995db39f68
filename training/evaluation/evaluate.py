"""Evaluate the deployed function: clean images first, then each attack on what is still right."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ducat_serve import __version__
from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.recovery import recover
from ducat_serve.report import AttackResult, ClassResult, RobustnessReport
from ducat_serve.spec import ThreatModel
from training.attacks.ball import Ball
from training.attacks.frozen import frozen
from training.attacks.search import right as right_decision
from training.batches import DeviceSplit
from training.evaluation.detector import Detector
from training.evaluation.intervals import wilson
from training.evaluation.stages import Stage
from training.evaluation.stages import stage as build_stage
from training.randomness import stream


@dataclass(frozen=True)
class Subject:
    """What is measured: which weights, on which images."""

    weights_digest: str
    dataset: str
    split: Literal["val", "test"]
    labels: tuple[str, ...]  # names of the C classes


def evaluate(
    model: Deployed,
    data: DeviceSplit,
    subject: Subject,
    threat_model: ThreatModel,
    stages: Sequence[Stage],
    *,
    seed: int,
    batch_size: int,
    output: Output,
) -> RobustnessReport:
    """Accuracy per example: right on the clean image AND under every attack that was run.

    Args:
        model: the deployed function, float images in [0, 1] to C logits; run in float32, eval mode.
        data: the images to measure on.
        stages: attacks, in the order in which they run; only what is still right goes on to the next.

    Raises:
        UsageError: the model's output does not have C columns (a raw 2C model, say), or a label is not one of C.
    """
    require_deployed(model, data, subject)
    ball = Ball.of(threat_model)
    with frozen(model):
        batches = data.in_order(batch_size)
        clean = torch.cat([_correct(model, images, labels) for images, labels in batches])
        right = clean.clone()
        detector = Detector(model, data, batch_size)
        results = [
            _run(stage, model, data, right, detector, ball, seed=seed, batch_size=batch_size, output=output)
            for stage in stages
        ]
        legacy = None
        if model.fold != "none":
            legacy = legacy_2c_accuracy(model, data, ball, seed=seed, batch_size=batch_size, output=output)
    survivors = int(right.sum())
    return RobustnessReport(
        weights_digest=subject.weights_digest,
        dataset=subject.dataset,
        split=subject.split,
        examples=len(data),
        norm=threat_model.norm,
        eps=threat_model.eps,
        seed=seed,
        clean_accuracy=int(clean.sum()) / len(data),
        worst_case_accuracy=survivors / len(data),
        worst_case_interval=wilson(survivors, len(data)),
        legacy_2c_accuracy=legacy,
        dummy_mass=detector.result(clean),
        per_class=_per_class(subject.labels, data.labels, clean, right),
        attacks=tuple(results),
        versions={
            "ducat-serve": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def legacy_2c_accuracy(
    model: Deployed, data: DeviceSplit, ball: Ball, *, seed: int, batch_size: int, output: Output
) -> float:
    """The paper's own measure: APGD-CE on raw 2C logits against y, then recovery. Not a robustness claim.

    The attack takes a win of y's own dummy for a success and stops there; recovery reads it as correct.
    """
    unaware = Deployed(model.classifier, "none")
    attack = build_stage("apgd-ce", "none", 2 * model(data.images[:1].float() / 255).shape[1]).attack
    recovered = 0
    with output.progress("legacy 2C (non-adaptive)", len(data)) as advance:
        for start in range(0, len(data), batch_size):
            images = data.images[start : start + batch_size].float() / 255
            labels = data.labels[start : start + batch_size]
            generator = stream(seed, "legacy", start, device=labels.device)
            adversarial = attack(unaware, images, labels, ball, generator)
            with torch.no_grad():
                recovered += int((recover(model.classifier(adversarial)) == labels).sum())
            advance(len(labels))
    return recovered / len(data)


def require_deployed(model: Deployed, data: DeviceSplit, subject: Subject) -> None:
    """Raise UsageError unless the model maps images to C logits and every label is one of C."""
    classes = len(subject.labels)
    with frozen(model), torch.no_grad():
        width = model(data.images[:1].float() / 255).shape[1]
    if width != classes:
        raise UsageError(
            f"Only the deployed function may be evaluated: {classes} logits, but this model returns {width}. "
            "Attacks on raw 2C logits say nothing about what is deployed.",
            "load the model with ducat_serve.load(path), which folds the dummies",
        )
    if not (int(data.labels.min()) >= 0 and int(data.labels.max()) < classes):
        raise UsageError(f"Labels must be 0 to {classes - 1}, found {int(data.labels.max())}.")


def _run(
    stage: Stage,
    model: Deployed,
    data: DeviceSplit,
    right: Tensor,
    detector: Detector,
    ball: Ball,
    *,
    seed: int,
    batch_size: int,
    output: Output,
) -> AttackResult:
    """Run one attack on what is still right, and mark in ``right`` what no longer is."""
    attacked = right.nonzero().squeeze(1)
    started = time.monotonic()
    with output.progress(stage.name, len(attacked)) as advance:
        for start in range(0, len(attacked), batch_size):
            index = attacked[start : start + batch_size]
            images, labels = data.images[index].float() / 255, data.labels[index]
            generator = stream(seed, stage.name, start, device=labels.device)
            adversarial = stage.attack(model, images, labels, ball, generator)
            right[index] = _correct(model, adversarial, labels)
            detector.saw(index, adversarial)
            advance(len(index))
    left, seconds = int(right.sum()), time.monotonic() - started
    output.say(
        f"{stage.name:<14} attacked {len(attacked):>5}, worst case now {left / len(data):.1%}  ({seconds:.0f} s)"
    )
    return AttackResult(
        name=stage.name,
        settings=stage.settings,
        examples=len(attacked),
        accuracy=left / len(attacked) if len(attacked) else 0.0,
        worst_case_accuracy=left / len(data),
        seconds=round(seconds, 2),
    )


def _per_class(
    names: tuple[str, ...], labels: Tensor, clean: Tensor, right: Tensor
) -> tuple[ClassResult, ...]:
    results = []
    for index, name in enumerate(names):
        mine = labels == index
        count = int(mine.sum())
        results.append(
            ClassResult(
                label=name,
                examples=count,
                clean_accuracy=int(clean[mine].sum()) / max(count, 1),
                worst_case_accuracy=int(right[mine].sum()) / max(count, 1),
            )
        )
    return tuple(results)


@torch.no_grad()
def _correct(model: Deployed, images: Tensor, labels: Tensor) -> Tensor:
    return right_decision(model(images), labels)

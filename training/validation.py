"""What is measured on val after each epoch: the deployed function, clean and under PGD, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ducat_serve.deployed import Deployed
from ducat_serve.recovery import dummy_share
from training.attacks.ball import Ball
from training.attacks.frozen import frozen
from training.attacks.pgd import pgd
from training.batches import DeviceSplit
from training.config import TrainConfig
from training.randomness import stream

VALIDATION_BATCH = 256


@dataclass(frozen=True)
class ValidationResult:
    """Accuracies in [0, 1]; mean dummy shares of the label's pair, None without dummies."""

    clean_accuracy: float
    pgd_accuracy: float
    dummy_share_clean: float | None
    dummy_share_adversarial: float | None


def validate(deployed: Deployed, val: DeviceSplit, config: TrainConfig) -> ValidationResult:
    """Clean and PGD accuracy of the deployed function, and where the pair's mass sits."""
    clean = robust = share_clean = share_adversarial = 0.0
    ball = Ball(config.norm, config.eps)
    generator = stream(config.seed, "validation", device=val.labels.device)
    with frozen(deployed), torch.no_grad():
        for images, labels in val.in_order(VALIDATION_BATCH):
            adversarial = pgd(
                deployed,
                images,
                labels,
                ball,
                steps=config.attack_steps,
                step_size=config.step_size,
                generator=generator,
            )
            clean += (deployed(images).argmax(dim=1) == labels).sum().item()
            robust += (deployed(adversarial).argmax(dim=1) == labels).sum().item()
            if deployed.fold != "none":
                share_clean += dummy_share(deployed.classifier(images), labels).sum().item()
                share_adversarial += dummy_share(deployed.classifier(adversarial), labels).sum().item()
    count = len(val)
    if deployed.fold == "none":
        return ValidationResult(clean / count, robust / count, None, None)
    return ValidationResult(clean / count, robust / count, share_clean / count, share_adversarial / count)

"""What is measured on val after each epoch, in float32: the deployed function, clean and under PGD."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.recovery import dummy_share, recover
from training.attacks.ball import Ball
from training.attacks.criteria import misclassified, right
from training.attacks.frozen import frozen
from training.attacks.pgd import pgd
from training.batches import DeviceSplit
from training.config import TrainConfig
from training.randomness import stream

VALIDATION_BATCH = 128


@dataclass(frozen=True)
class ValidationResult:
    """Accuracies in [0, 1]; mean dummy shares of the label's pair, None without dummies.

    ``legacy_accuracy`` is the paper's own measure, None where it is not needed: PGD on the raw 2C logits,
    recovery applied afterwards. Non-adaptive, not a robustness claim.
    """

    clean_accuracy: float
    pgd_accuracy: float
    dummy_share_clean: float | None = None
    dummy_share_adversarial: float | None = None
    legacy_accuracy: float | None = None


def validate(
    deployed: Deployed,
    val: DeviceSplit,
    config: TrainConfig,
    *,
    legacy: bool,
    between_batches: Callable[[], None],
) -> ValidationResult:
    """Clean and PGD accuracy of the deployed function, and where the pair's mass sits.

    Args:
        legacy: also measure the legacy accuracy of a model with dummies.
        between_batches: called before each batch; it may raise to stop.
    """
    counts: dict[str, float] = defaultdict(float)
    generator = stream(config.seed, "validation", device=val.labels.device)
    with frozen(deployed), torch.no_grad():
        for images, labels in val.in_order(VALIDATION_BATCH):
            between_batches()
            adversarial = _attack(deployed, images, labels, config, generator)
            counts["clean_accuracy"] += right(deployed(images), labels).sum().item()
            counts["pgd_accuracy"] += right(deployed(adversarial), labels).sum().item()
            if deployed.fold != "none":
                raw = deployed.classifier
                counts["dummy_share_clean"] += dummy_share(raw(images), labels).sum().item()
                counts["dummy_share_adversarial"] += dummy_share(raw(adversarial), labels).sum().item()
                if legacy:
                    unaware = _attack(Deployed(raw, "none"), images, labels, config, generator)
                    counts["legacy_accuracy"] += (recover(raw(unaware)) == labels).sum().item()
    return ValidationResult(**{name: count / len(val) for name, count in counts.items()})


def _attack(
    model: Deployed, images: Tensor, labels: Tensor, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    return pgd(
        model,
        images,
        labels,
        Ball(config.norm, config.eps),
        misclassified(model.fold),
        steps=config.attack_steps,
        step_size=config.step_size,
        generator=generator,
    )

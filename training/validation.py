"""What is measured on val after each epoch, in float32: the deployed function, clean and under PGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import dummy_share, recover
from training.attacks.ball import Ball
from training.attacks.criteria import misclassified, right
from training.attacks.frozen import frozen
from training.attacks.pgd import PGD, ascend_loss
from training.batches import DeviceSplit
from training.config import TrainConfig
from training.distributed.processes import World
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
    fgsm_accuracy: float | None = None


def validate(
    deployed: Deployed,
    val: DeviceSplit,
    config: TrainConfig,
    *,
    legacy: bool,
    one_step: bool = False,
    between_batches: Callable[[], None] = lambda: None,
    world: World | None = None,
) -> ValidationResult:
    """Clean and PGD accuracy of the deployed function, and where the pair's mass sits.

    Args:
        legacy: also measure the legacy accuracy of a model with dummies.
        one_step: also measure accuracy under FGSM.
        between_batches: called before each batch; it may raise to stop.
        world: the processes that share the batches; each gets the result over all of them.
    """
    world = world or World()
    names = _measured(deployed, legacy=legacy, one_step=one_step)
    counts: dict[str, float] = dict.fromkeys(names, 0.0)
    with frozen(deployed), torch.no_grad():
        for number, (images, labels) in enumerate(val.in_order(VALIDATION_BATCH)):
            if number % world.size != world.rank:
                continue
            between_batches()
            # Noise by batch, so that it is the same however many processes share the batches.
            generator = stream(config.seed, "validation", number, device=labels.device)
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
            if one_step:
                fgsm = _one_step(deployed, images, labels, config)
                counts["fgsm_accuracy"] += right(deployed(fgsm), labels).sum().item()
    totals = world.total(torch.tensor([counts[name] for name in names], dtype=torch.float64)).tolist()
    return ValidationResult(**{name: total / len(val) for name, total in zip(names, totals, strict=True)})


def _measured(deployed: Deployed, *, legacy: bool, one_step: bool) -> list[str]:
    names = ["clean_accuracy", "pgd_accuracy"]
    if deployed.fold != "none":
        names += ["dummy_share_clean", "dummy_share_adversarial"]
        names += ["legacy_accuracy"] if legacy else []
    return names + (["fgsm_accuracy"] if one_step else [])


def _attack(
    model: Deployed, images: Tensor, labels: Tensor, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    attack = PGD(config.attack_steps, config.step_size)
    ball = Ball(config.norm, config.eps)
    return attack(model, images, labels, ball, misclassified(model.fold), generator=generator)


def _one_step(deployed: Deployed, images: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """FGSM (Goodfellow et al. 2015, arXiv 1412.6572): one step of eps from the image itself."""
    return ascend_loss(
        lambda x: F.cross_entropy(deployed(x), labels, reduction="none"),
        images,
        Ball(config.norm, config.eps),
        start=images,
        steps=1,
        step_size=config.eps,
    )

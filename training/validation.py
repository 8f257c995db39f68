"""What is measured on val after each epoch, in float32: the deployed function, clean and under PGD."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import dummy_share, recover
from training.attacks.ball import Ball
from training.attacks.criteria import misclassified, right
from training.attacks.frozen import frozen
from training.attacks.inner import ascend_loss
from training.attacks.pgd import PGD
from training.batches import DeviceSplit
from training.config import TrainConfig
from training.distributed.processes import ProcessGroup
from training.randomness import stream
from training.signals import StopSignal

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


@dataclass(frozen=True)
class Validation:
    """Measures a model on val with the attack of training; several processes share the batches.

    A signal received by ``stop`` gives it up before the next batch (`Stopped`).
    """

    val: DeviceSplit
    config: TrainConfig
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    stop: StopSignal = field(default_factory=StopSignal)

    def __call__(self, deployed: Deployed, *, legacy: bool, one_step: bool = False) -> ValidationResult:
        """Clean and PGD accuracy of the deployed function, and where the pair's mass sits, over all processes.

        Args:
            legacy: also measure the legacy accuracy of a model with dummies.
            one_step: also measure accuracy under FGSM.
        """
        names = _measured(deployed, legacy=legacy, one_step=one_step)
        counts: dict[str, float] = dict.fromkeys(names, 0.0)
        with frozen(deployed), torch.no_grad():
            for number, (images, labels) in enumerate(self.val.in_order(VALIDATION_BATCH)):
                if number % self.processes.size != self.processes.rank:
                    continue
                self.stop.raise_if_received()
                for name, value in self._measure(deployed, number, images, labels, names).items():
                    counts[name] += value
        totals = self.processes.total(torch.tensor([counts[name] for name in names], dtype=torch.float64))
        means = {name: total / len(self.val) for name, total in zip(names, totals.tolist(), strict=True)}
        return ValidationResult(**means)

    def _measure(
        self, deployed: Deployed, number: int, images: Tensor, labels: Tensor, names: list[str]
    ) -> dict[str, float]:
        """Sums over one batch."""
        # Noise by batch, so that it is the same however many processes share the batches.
        generator = stream(self.config.seed, "validation", number, device=labels.device)
        adversarial = self._attack(deployed, images, labels, generator)
        sums = {
            "clean_accuracy": right(deployed(images), labels).sum().item(),
            "pgd_accuracy": right(deployed(adversarial), labels).sum().item(),
        }
        raw = deployed.classifier
        if "dummy_share_clean" in names:
            sums["dummy_share_clean"] = dummy_share(raw(images), labels).sum().item()
            sums["dummy_share_adversarial"] = dummy_share(raw(adversarial), labels).sum().item()
        if "legacy_accuracy" in names:
            unaware = self._attack(Deployed(raw, "none"), images, labels, generator)
            sums["legacy_accuracy"] = (recover(raw(unaware)) == labels).sum().item()
        if "fgsm_accuracy" in names:
            sums["fgsm_accuracy"] = right(deployed(self._fgsm(deployed, images, labels)), labels).sum().item()
        return sums

    def _attack(self, model: Deployed, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        attack = PGD(self.config.attack_steps, self.config.step_size)
        ball = Ball(self.config.norm, self.config.eps)
        return attack(model, images, labels, ball, misclassified(model.fold), generator=generator)

    def _fgsm(self, deployed: Deployed, images: Tensor, labels: Tensor) -> Tensor:
        """FGSM (Goodfellow et al. 2015, arXiv 1412.6572): one step of eps from the image itself."""
        return ascend_loss(
            lambda x: F.cross_entropy(deployed(x), labels, reduction="none"),
            images,
            Ball(self.config.norm, self.config.eps),
            start=images,
            steps=1,
            step_size=self.config.eps,
        )


def _measured(deployed: Deployed, *, legacy: bool, one_step: bool) -> list[str]:
    names = ["clean_accuracy", "pgd_accuracy"]
    if deployed.fold != "none":
        names += ["dummy_share_clean", "dummy_share_adversarial"]
        names += ["legacy_accuracy"] if legacy else []
    return names + (["fgsm_accuracy"] if one_step else [])

"""What is measured on val after each epoch, in float32: the deployed function, clean and under PGD."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import dummy_share, fold_logits, recover
from ducat_serve.spec import Fold
from training.attacks.ball import Ball
from training.attacks.base import Task
from training.attacks.criteria import Criterion, misclassified, right
from training.attacks.frozen import frozen
from training.attacks.inner import ascend_loss
from training.attacks.pgd import PGD
from training.batches import at_a_time
from training.config import TrainConfig
from training.distributed.processes import ProcessGroup
from training.randomness import stream
from training.signals import StopSignal
from training.streamed import StreamedSplit

_BATCH = 128
_CLASS_IMAGES = 10  # fewer say nothing of a class
# Of PGD at least: the one or two steps of fast training flatter exactly those runs that overfit to them.
_STEPS = 10


@dataclass(frozen=True)
class ValidationResult:
    """Accuracies in [0, 1]; mean dummy shares of the label's pair, None without dummies.

    ``legacy_accuracy`` is the paper's own measure, None where it is not needed: PGD on the raw 2C logits that takes
    all its steps, recovery applied to the last image. Non-adaptive, not a robustness claim.
    """

    clean_accuracy: float
    pgd_accuracy: float
    dummy_share_clean: float | None = None
    dummy_share_adversarial: float | None = None
    legacy_accuracy: float | None = None
    fgsm_accuracy: float | None = None
    # Clean accuracy of each class and how many images it has in val; a class without images has accuracy 0.
    class_accuracies: tuple[float, ...] = ()
    class_sizes: tuple[int, ...] = ()
    attack: str = ""  # what measured robust accuracy, e.g. pgd-10

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean of the accuracies of those classes that val has images of; None where there are none."""
        known = [a for a, size in zip(self.class_accuracies, self.class_sizes, strict=True) if size]
        return sum(known) / len(known) if known else None

    @property
    def lost_classes(self) -> list[int]:
        """Classes with images enough in val to say so, of which not one is classified right."""
        pairs = zip(self.class_accuracies, self.class_sizes, strict=True)
        return [index for index, (a, size) in enumerate(pairs) if size >= _CLASS_IMAGES and a == 0]


@dataclass(frozen=True)
class Validation:
    """Measures a model on val under PGD with steps of eps / 4; several processes share the batches.

    A signal received by ``stop`` gives it up before the next batch (`Stopped`).
    """

    val: StreamedSplit
    config: TrainConfig
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    stop: StopSignal = field(default_factory=StopSignal)

    @property
    def attack(self) -> PGD:
        """As many steps as training's own attack takes, but at least 10, so that fast runs compare with others."""
        return PGD(max(_STEPS, self.config.attack_steps))

    @property
    def batch_size(self) -> int:
        """Images at a time: 128, and of large ones as many as a training step takes, clean and adversarial."""
        of_a_step = 2 * self.config.batch_size // self.config.portions
        return min(_BATCH, max(of_a_step, at_a_time(_BATCH, *self.val.split.shape[1:3])))

    def __call__(self, deployed: Deployed, *, legacy: bool, one_step: bool = False) -> ValidationResult:
        """Clean and PGD accuracy of the deployed function, and where the pair's mass sits, over all processes.

        Args:
            legacy: also measure the legacy accuracy of a model with dummies.
            one_step: also measure accuracy under FGSM.
        """
        names = _measured(deployed, legacy=legacy, one_step=one_step)
        counts: dict[str, float] = dict.fromkeys(names, 0.0)
        sizes = torch.bincount(self.val.labels).double().cpu()
        right_of = torch.zeros_like(sizes)
        with frozen(deployed), torch.no_grad():
            for number, (images, labels) in enumerate(self.val.in_order(self.batch_size)):
                if number % self.processes.size != self.processes.rank:
                    continue
                self.stop.raise_if_received()
                sums, is_right = self._measure(deployed, number, images, labels, names)
                for name, value in sums.items():
                    counts[name] += value
                right_of += torch.bincount(labels[is_right], minlength=len(sizes)).double().cpu()
        found = torch.cat([torch.tensor([counts[name] for name in names], dtype=torch.float64), right_of])
        totals = self.processes.total(found)
        means = {
            name: total / len(self.val)
            for name, total in zip(names, totals[: len(names)].tolist(), strict=True)
        }
        return ValidationResult(
            **means,
            attack=f"{self.attack.name}-{self.attack.steps}",
            class_accuracies=tuple((totals[len(names) :] / sizes.clamp_min(1)).tolist()),
            class_sizes=tuple(sizes.long().tolist()),
        )

    def _measure(
        self, deployed: Deployed, number: int, images: Tensor, labels: Tensor, names: list[str]
    ) -> tuple[dict[str, float], Tensor]:
        """Sums over one batch, and which of its clean images are right."""
        # Noise by batch, so that it is the same however many processes share the batches.
        generator = stream(self.config.seed, "validation", number, device=labels.device)
        task = Task(deployed, images, labels, self._ball, self.success(deployed.fold), generator)
        clean, adversarial = deployed.classifier(images), deployed.classifier(self.attack(task))
        is_right = right(fold_logits(clean, deployed.fold), labels)
        sums = {
            "clean_accuracy": is_right.sum().item(),
            "pgd_accuracy": right(fold_logits(adversarial, deployed.fold), labels).sum().item(),
        }
        if "dummy_share_clean" in names:
            sums["dummy_share_clean"] = dummy_share(clean, labels).sum().item()
            sums["dummy_share_adversarial"] = dummy_share(adversarial, labels).sum().item()
        if "legacy_accuracy" in names:
            unaware = deployed.classifier(self._published(deployed, images, labels, generator))
            sums["legacy_accuracy"] = (recover(unaware) == labels).sum().item()
        if "fgsm_accuracy" in names:
            sums["fgsm_accuracy"] = right(deployed(self._fgsm(deployed, images, labels)), labels).sum().item()
        return sums, is_right

    def success(self, fold: Fold) -> Criterion:
        """What the attack looks for; it leaves an image alone where it has found that."""
        return misclassified(fold)

    @property
    def _ball(self) -> Ball:
        return Ball(self.config.norm, self.config.eps)

    def _published(
        self, deployed: Deployed, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The last image of PGD on the raw logits, as published.

        One that stopped at its first success would stop where the label's own dummy wins, which recovery forgives, and
        so leave more images right than the published measure.
        """
        return ascend_loss(
            lambda x: F.cross_entropy(deployed.classifier(x), labels, reduction="none"),
            images,
            self._ball,
            start=self._ball.random_start(images, generator),
            steps=self.attack.steps,
            step_size=self.config.eps / 4,
        )

    def _fgsm(self, deployed: Deployed, images: Tensor, labels: Tensor) -> Tensor:
        """FGSM (Goodfellow et al. 2015, arXiv 1412.6572): one step of eps from the image itself."""
        return ascend_loss(
            lambda x: F.cross_entropy(deployed(x), labels, reduction="none"),
            images,
            self._ball,
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

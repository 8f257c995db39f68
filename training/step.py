"""One training step: craft adversarial images, update the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Classifier
from ducat_serve.errors import DucatError
from training.attacks.ball import Ball
from training.attacks.inner import noisy, step_once
from training.attacks.pgd import ascend_loss
from training.batches import TrainingBatches
from training.config import TrainConfig
from training.device import LAYOUT
from training.distributed.processes import World
from training.fused_classifier import FusedTwin
from training.objectives import create_objective
from training.objectives.ducat import Ducat
from training.objectives.objective import in_float
from training.randomness import stream

_BACKEND = "inductor"


class TrainingStep:
    """What a step needs: the classifier, its objective and optimizer, and this process's part of every batch."""

    def __init__(
        self,
        config: TrainConfig,
        classifier: Classifier,
        batches: TrainingBatches,
        device: torch.device,
        world: World,
    ) -> None:
        self.config, self.batches, self.device, self.world = config, batches, device, world
        self.classifier = classifier
        self.twin = FusedTwin(classifier)
        compiled = _compile if config.compile else _as_it_is
        self.attacked = compiled(self.twin.model, device)
        self.updated = world.wrap(compiled(classifier, device), device)
        self.objective = create_objective(
            config.method, Ducat(config.ducat, config.split_weight), config.beta
        )
        self.ball = Ball(config.norm, config.eps)
        self.optimizer = torch.optim.SGD(
            classifier.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        # Called before each step of the attack; it may raise to give the whole training step up.
        self.between: Callable[[], None] = lambda: None

    def __call__(self, order: Tensor, epoch: int, step: int, *, one_step_attack: bool = False) -> Tensor:
        """Craft, update. Returns the mean loss over the whole batch, a scalar on the device.

        Args:
            order: of the images in this epoch.
            one_step_attack: craft by N-FGSM instead of PGD.
        """
        images, labels = self.batches.batch(order, epoch, step, self.objective.views)
        images = images.contiguous(memory_format=LAYOUT)
        dummy_phase = self.config.is_dummy_phase(epoch)
        generator = stream(self.config.seed, "attack", epoch, step, device=self.device)
        if one_step_attack:
            start = noisy(images, self.config.eps, generator)
        else:
            start = self.objective.start(images, self.ball, generator)
        images, start, labels = (self._part(tensor) for tensor in (images, start, labels))
        adversarial = self.craft(
            images, start, labels, dummy_phase=dummy_phase, one_step_attack=one_step_attack
        )
        weight = self.world.weight(self.config.batch_size)
        with self._autocast():
            loss = weight * self.objective.loss(self.updated, images, adversarial, labels, dummy_phase)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.world.average(self.classifier.buffers())
        return self.world.total(loss.detach()) / self.world.size

    def craft(
        self,
        images: Tensor,
        start: Tensor,
        labels: Tensor,
        *,
        dummy_phase: bool,
        one_step_attack: bool = False,
    ) -> Tensor:
        """The inner attack from ``start``, on the classifier in eval mode and without weight gradients."""
        self.twin.refresh()
        with self._autocast():
            reference = self.objective.reference(self.attacked, images)

            def loss(x: Tensor) -> Tensor:
                self.between()
                logits = in_float(self.attacked(x))
                return self.objective.attack_loss(logits, labels, reference, dummy_phase)

            if one_step_attack:
                return step_once(loss, start, self.config.eps)
            return ascend_loss(
                loss,
                images,
                self.ball,
                start=start,
                steps=self.config.attack_steps,
                step_size=self.config.step_size,
            )

    def _part(self, tensor: Tensor) -> Tensor:
        """This process's images of a batch, of every view."""
        if self.world.size == 1:
            return tensor
        views = tensor.chunk(self.objective.views)
        mine = self.world.part(self.config.batch_size)
        return torch.cat([view[mine] for view in views])

    def _autocast(self) -> torch.autocast:
        """Perturbations and weights stay float32; only the network's arithmetic is bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _as_it_is(module: nn.Module, _device: torch.device) -> nn.Module:
    return module


def _compile(module: nn.Module, device: torch.device) -> Any:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise DucatError(
            "--compile needs a C++ compiler on CPUs, and there is none.",
            "install g++, or train without --compile",
        )
    return torch.compile(module, backend=_BACKEND)

"""One training step: craft adversarial images, update the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Classifier
from ducat_serve.errors import DucatError
from training.activation_checkpoints import checkpoint_blocks
from training.attacks.ball import Ball
from training.attacks.inner import InnerAttack
from training.batches import TrainingBatches
from training.config import TrainConfig
from training.device import LAYOUT, exact_float32
from training.distributed.processes import ProcessGroup
from training.fused_classifier import FusedClassifier, fused_if_equal, probe_of
from training.objectives import create_objective
from training.objectives.ducat import PLAIN, Ducat
from training.objectives.objective import Batch, Objective, in_float
from training.optimizer import create_optimizer, freeze_below_head, set_rate
from training.randomness import seed_torch, stream
from training.schedules import ramp_factor
from training.signals import StopSignal
from training.weight_perturbation import WeightPerturbation, backward

_BACKEND = "inductor"


class TrainingStep:
    """What a step needs: the classifier, its objectives and optimizer, and this process's part of every batch.

    ``attack_model`` is what crafts, in eval mode and without weight gradients; ``train_model`` is what is updated.
    A signal received by ``stop`` gives a step up between two steps of its attack (`Stopped`).
    """

    def __init__(
        self,
        config: TrainConfig,
        classifier: Classifier,
        batches: TrainingBatches,
        device: torch.device,
        processes: ProcessGroup,
        stop: StopSignal,
    ) -> None:
        self.config, self.batches, self.device = config, batches, device
        self.processes, self.stop = processes, stop
        self.classifier = classifier
        freeze_below_head(config, classifier)
        if config.checkpoint_activations:
            checkpoint_blocks(classifier.network, config.network)
        self.fused = _fused(config, classifier, device)
        compiled = _compile if config.compile else _as_it_is
        self.attack_model = compiled(self.fused.model, device)
        self.train_model = processes.wrap(compiled(classifier, device), device)
        settings = config.model_dump()
        smoothing = config.label_smoothing
        self._plain = create_objective(config.method, replace(PLAIN, label_smoothing=smoothing), settings)
        self._with_dummies = create_objective(
            config.method, Ducat(config.ducat, config.split_weight, smoothing), settings
        )
        self.optimizer = create_optimizer(config, classifier)
        self.perturbation = (
            None if config.awp_gamma is None else WeightPerturbation(classifier, config.awp_gamma)
        )

    def objective_of(self, epoch: int) -> Objective:
        """The plain method before the dummy phase, and the method with dummies in it."""
        return self._with_dummies if self.config.is_dummy_phase(epoch) else self._plain

    def is_one_step(self, epoch: int) -> bool:
        """Whether the attack of ``epoch`` has one step; such attacks are given up where they overfit."""
        chosen = self.config.inner_attack == "n-fgsm" and not self.config.is_dummy_phase(epoch)
        return chosen or self.objective_of(epoch).attacks_in_one_step

    def attack_of(self, epoch: int, step: int, *, one_step: bool) -> InnerAttack:
        """What crafts in a step: in one step of eps if ``one_step``, else by the method's own inner attack."""
        config, objective = self.config, self.objective_of(epoch)
        factor = ramp_factor(config.eps_ramp, epoch, step, self.batches.steps)
        ball = Ball(config.norm, factor * config.eps)
        if one_step:
            return objective.one_step_attack(ball)
        return objective.inner_attack(ball, config.attack_steps, factor * config.step_size)

    def __call__(self, order: Tensor, epoch: int, step: int, attack: InnerAttack) -> Tensor:
        """Craft, update. Returns the mean loss over the whole batch, a scalar on the device.

        Args:
            order: of the images in this epoch, [N].
        """
        objective = self.objective_of(epoch)
        images, labels = self.batches.batch(order, epoch, step, objective.views)
        images = images.contiguous(memory_format=LAYOUT)
        generator = stream(self.config.seed, "attack", epoch, step, device=self.device)
        # Drawn for the whole batch, so that the number of processes changes no noise.
        start = attack.start(images, generator)
        losses = []
        # All portions are crafted before the first is learnt from, which would move statistics of BatchNorm.
        self.fused.refresh()
        portions = self.processes.portions(self.config.batch_size, self.config.portions)
        for portion in portions:
            of_it = [_part(t, portion, objective.views) for t in (images, labels, start)]
            batch = Batch(of_it[0], of_it[1], epoch, (epoch - 1) * self.batches.steps + step)
            adversarial = self.craft(objective, batch, attack, of_it[2])
            weight = self.processes.weight(portion, self.config.batch_size)
            is_last = portion == portions[-1]
            losses.append(self.loss_of(objective, batch, adversarial, weight, is_last=is_last))
        # For networks with dropout or stochastic depth; ours draw nothing here. Each process drops for itself.
        seed_torch(self.config.seed, "dropout", epoch, step, self.processes.rank)
        value = self.backward(losses)
        set_rate(self.optimizer, self.config.learning_rate(epoch, step, self.batches.steps))
        self.optimizer.step()
        self.processes.average(self.classifier.buffers())
        return self.processes.total(value) / self.processes.size

    def loss_of(
        self,
        objective: Objective,
        batch: Batch,
        adversarial: Tensor,
        weight: float = 1.0,
        *,
        is_last: bool = True,
    ) -> Callable[[], Tensor]:
        """What computes ``weight`` times the loss of `train_model`, a scalar, in the arithmetic of the run.

        Processes exchange the gradients of all portions of a batch at once, after the ``is_last`` of them.
        """

        def loss() -> Tensor:
            with self._autocast(), self.processes.exchanging(self.train_model, now=is_last):
                return weight * objective.loss(self.train_model, batch, adversarial)

        return loss

    def backward(self, losses: list[Callable[[], Tensor]]) -> Tensor:
        """Leave the gradient of a sum of losses in the weights, one graph at a time; returns its value.

        Each loss may be computed twice (`WeightPerturbation`). `optimizer` then updates the weights.
        """
        if self.perturbation is not None:
            return self.perturbation.backward(losses)
        self.optimizer.zero_grad(set_to_none=True)
        return backward(losses)

    def craft(self, objective: Objective, batch: Batch, attack: InnerAttack, start: Tensor) -> Tensor:
        """The inner attack on a batch from ``start``, through `fused` as it was refreshed last. Raises Stopped."""
        with self._autocast():
            reference = objective.reference(self.attack_model, batch)

            def loss(x: Tensor) -> Tensor:
                self.stop.raise_if_received()
                return objective.attack_loss(in_float(self.attack_model(x)), batch, reference)

            return attack.ascend(loss, batch.images, start)

    def _autocast(self) -> torch.autocast:
        """Perturbations and weights stay float32; only the network's arithmetic is bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")


def _fused(config: TrainConfig, classifier: Classifier, device: torch.device) -> FusedClassifier:
    # In a graph that BatchNorm is folded out of, blocks are no modules any more that could be computed again.
    if config.checkpoint_activations:
        return FusedClassifier(classifier, fold=False)
    with exact_float32():  # as the run itself: TF32 would hide small differences
        return fused_if_equal(classifier, probe_of(classifier).to(device))


def _part(tensor: Tensor, part: slice, views: int) -> Tensor:
    """Those images of a batch, of every view; the batch itself where they are all."""
    if part == slice(0, len(tensor) // views):
        return tensor
    return torch.cat([view[part] for view in tensor.chunk(views)])


def _as_it_is(module: nn.Module, _device: torch.device) -> nn.Module:
    return module


def _compile(module: nn.Module, device: torch.device) -> Any:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise DucatError(
            "--compile needs a C++ compiler on CPUs, and there is none.",
            "install g++, or train without --compile",
        )
    return torch.compile(module, backend=_BACKEND)

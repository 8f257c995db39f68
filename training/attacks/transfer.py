"""Transfer: images made on another model, the surrogate, and shown to this one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from training.attacks.apgd import APGD
from training.attacks.base import Attack, Best, Settings, TargetModel, Task, value
from training.attacks.criteria import misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, margin


@dataclass(frozen=True)
class Transfer(Attack):
    """APGD on the surrogate, to the highest cross entropy and to the highest margin; the better of both.

    The model itself is only asked for scores, two times per image. The surrogate's own decision stops nothing:
    a higher loss transfers better.
    """

    name: ClassVar[str] = "transfer"
    needs_gradient: ClassVar[bool] = False
    steps: int = 100
    surrogate: Deployed | None = field(default=None, repr=False)

    def applies(self, target: TargetModel) -> bool:
        return target.surrogate is not None

    def fitted(self, target: TargetModel) -> Self:
        if target.surrogate is None:
            raise UsageError(
                "The transfer attack needs pre_dummy.safetensors beside the model, and there is none.",
                "choose other attacks, or evaluate the run folder of a model with dummies",
            )
        return replace(self, surrogate=target.surrogate)

    def settings(self) -> Settings:
        """Without the surrogate: it is weights, not a setting."""
        return super().settings() if self.surrogate is None else replace(self, surrogate=None).settings()

    def __call__(self, task: Task) -> Tensor:
        surrogate = self.surrogate
        if surrogate is None:
            raise ValueError("a transfer attack without a surrogate; see `fitted`")
        model, images, labels, ball = task.model, task.images, task.labels, task.ball
        # Steps on the surrogate may be finer than what is shown.
        unquantised = replace(ball, eight_bit=False)
        on_surrogate = replace(
            task, model=surrogate, ball=unquantised, criterion=misclassified(surrogate.fold)
        )
        best = Best(images)
        index = torch.arange(len(images), device=images.device)
        margin_loss = margin(model.fold)
        for loss in (cross_entropy, margin):
            found = APGD(loss, self.steps)(on_surrogate, keep_going=True)
            with frozen(model):
                shown = ball.project(images, found)
                best.offer(index, shown, value(model, shown, labels, labels, margin_loss, task.criterion))
        return best.images

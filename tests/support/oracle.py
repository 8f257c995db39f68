"""Networks on which attacks have a known answer: linear logits, whose nearest boundary is known in closed form."""

from __future__ import annotations

import torch
from torch import nn

from ducat_serve.deployed import Deployed
from ducat_serve.threat_model import Norm
from training.attacks.ball import Ball
from training.attacks.base import TargetModel, Task
from training.attacks.criteria import misclassified
from training.evaluation.stages import attack_named
from training.randomness import stream

WRONG = misclassified("none")


class Linear(nn.Module):
    """C linear logits; the distance to the nearest boundary is known in closed form."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 27, generator=stream(3, "weights")))
        self.norm = nn.BatchNorm1d(classes, affine=False)  # must stay in eval mode: the identity

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.norm((images.flatten(1) - 0.5) @ self.weight.T)
        return logits


class WithIdleDummies(nn.Module):
    """2C logits whose dummies follow their originals a little below: the deployed decision is the same."""

    def __init__(self, originals: nn.Module) -> None:
        super().__init__()
        self.originals = originals

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.originals(images)
        return torch.cat([logits, logits - 1], dim=1)


def oracle(
    norm: Norm, classes: int = 5, count: int = 120
) -> tuple[Deployed, torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Images near grey (pixel bounds out of reach), their labels, exact distances and their median."""
    model = Linear(classes).eval()
    images = 0.5 + 0.05 * torch.randn(count, 3, 3, 3, generator=stream(4, "images"))
    with torch.no_grad():
        logits = model(images)
        labels = logits.argmax(dim=1)
        gaps = logits.gather(1, labels.unsqueeze(1)) - logits
        slopes = model.weight[labels].unsqueeze(1) - model.weight
        dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
        distances = gaps / torch.linalg.vector_norm(slopes, dual, dim=2)
        distances.scatter_(1, labels.unsqueeze(1), torch.inf)
    nearest = distances.amin(dim=1)
    return Deployed(model, "none"), images, labels, nearest, nearest.median().item()


def run(
    name: str,
    model: Deployed,
    images: torch.Tensor,
    labels: torch.Tensor,
    ball: Ball,
    classes: int,
    surrogate: Deployed | None = None,
) -> torch.Tensor:
    attack = attack_named(name, TargetModel(model.fold, classes, surrogate))
    return attack(Task(model, images, labels, ball, misclassified(model.fold), stream(0, "t")))

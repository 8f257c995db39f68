"""PGD adversarial training with dummies as public implementations do it: the yardstick of our own step.

Float32, NCHW, an attack that calls `loss.backward()` through trainable weights, one forward pass for clean and one for
adversarial images.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Textbook:
    """A copy of ``model`` and how it is trained."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        lr: float = 0.1,
    ) -> None:
        self.model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        self.eps, self.step_size, self.steps = eps, step_size, steps

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model.eval()
        adversarial = images + torch.empty_like(images).uniform_(-self.eps, self.eps)
        for _ in range(self.steps):
            adversarial = adversarial.detach().requires_grad_(True)
            F.cross_entropy(self.model(adversarial), labels).backward()  # type: ignore[no-untyped-call]
            assert adversarial.grad is not None
            moved = adversarial.detach() + self.step_size * adversarial.grad.sign()
            adversarial = torch.min(torch.max(moved, images - self.eps), images + self.eps).clamp(0, 1)
        return adversarial.detach()

    def step(self, images: Tensor, labels: Tensor, dummies: bool) -> None:
        adversarial = self.attack(images, labels)
        self.model.train()
        self.optimizer.zero_grad()
        if dummies:
            clean = self.model(images)
            classes = clean.shape[1] // 2
            eye = torch.eye(2 * classes, device=clean.device)
            soft = 0.75 * eye[labels] + 0.25 * eye[labels + classes]
            attacked = F.cross_entropy(self.model(adversarial), labels + classes)
            loss = (F.cross_entropy(clean, soft) + attacked) / 2
        else:
            loss = F.cross_entropy(self.model(adversarial), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

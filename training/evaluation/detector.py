"""Dummy mass as a detector: how well it tells the attacks' images from clean ones."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.recovery import dummy_mass
from ducat_serve.report import DummyMass
from training.batches import DeviceSplit


class Detector:
    """Remembers the dummy mass of every clean image and of the last adversarial one made from it."""

    def __init__(self, model: Deployed, data: DeviceSplit, batch_size: int) -> None:
        self.model = model
        self.clean = torch.zeros(len(data), device=data.labels.device)
        self.adversarial = torch.full_like(self.clean, torch.nan)  # nan: never attacked
        if model.fold != "none":
            self.clean = torch.cat([self._mass(images) for images, _ in data.in_order(batch_size)])

    def saw(self, index: Tensor, adversarial: Tensor) -> None:
        """Record the images that an attack made from the examples ``index``."""
        if self.model.fold != "none":
            self.adversarial[index] = self._mass(adversarial)

    def result(self, right: Tensor) -> DummyMass | None:
        """Over the examples that were ``right`` when clean; None without dummies or without attacks."""
        attacked = right & ~self.adversarial.isnan()
        if self.model.fold == "none" or not attacked.any():
            return None
        clean, adversarial = self.clean[attacked].cpu(), self.adversarial[attacked].cpu()
        truth = torch.cat([torch.zeros_like(clean), torch.ones_like(adversarial)])
        return DummyMass(
            clean_mean=clean.mean().item(),
            adversarial_mean=adversarial.mean().item(),
            auroc=float(roc_auc_score(truth.numpy(), torch.cat([clean, adversarial]).numpy())),
        )

    @torch.no_grad()
    def _mass(self, images: Tensor) -> Tensor:
        return dummy_mass(self.model.classifier(images))

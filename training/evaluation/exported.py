"""An exported file as a model that can be attacked by its scores: what is really deployed, 8-bit images and all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.predictor import Predictor


class ExportedClassifier(nn.Module):
    """ONNX Runtime behind the interface of a classifier. No gradient goes through it."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1], rounded to 8 bits, to folded logits [N, C]."""
        levels = (images.detach() * 255).round().clamp(0, 255).byte()
        answer = self.predictor(levels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        return torch.from_numpy(answer.logits).to(images.device)


def exported(predictor: Predictor) -> Deployed:
    """The deployed function of an ONNX file; its fold is inside the graph, so there is none left to apply."""
    return Deployed(ExportedClassifier(predictor), "none").eval()

"""Two classifiers side by side: the original logits of one, the dummy logits of the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TwoTowers(nn.Module):
    """Pixels to 2C logits: those of the standard tower first, then those of the robust one.

    Args:
        standard, robust: float images [N, channels, H, W] in [0, 1] to C logits each.
    """

    def __init__(self, standard: nn.Module, robust: nn.Module) -> None:
        super().__init__()
        self.standard, self.robust = standard, robust

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to logits [N, 2C]."""
        return torch.cat([self.standard(images), self.robust(images)], dim=-1)

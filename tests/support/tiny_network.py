"""A network that computes a twentieth of resnet-small, for tests of what goes on around a network."""

from __future__ import annotations

from torch import Tensor, nn

NAME = "tests.support.tiny_network:make"


class Tiny(nn.Module):
    """Two convolutions with BatchNorm and a shortcut around the second, and a head: [N, C, H, W] to [N, outputs]."""

    def __init__(self, outputs: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 24, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(24 * 4, outputs)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.relu(features + self.bn2(self.conv2(features)))
        logits: Tensor = self.fc(self.pool(features).flatten(1))
        return logits


def make(outputs: int, channels: int) -> nn.Module:
    """What `--network tests.support.tiny_network:make` builds."""
    return Tiny(outputs, channels)

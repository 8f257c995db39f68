"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation blocks, no dropout."""

from __future__ import annotations

from torch import Tensor, nn

from ducat_serve.networks.initial import draw_convolutions


class WideBlock(nn.Module):
    """BN-ReLU-conv twice, with a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, features: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(features)
        self.conv1 = nn.Conv2d(features, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            None if features == planes else nn.Conv2d(features, planes, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        residual: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """Three stages of ``(depth - 4) / 6`` blocks at widths 16, 32, 64 times the widen factor."""

    def __init__(self, depth: int, widen: int, *, channels: int, stem_stride: int, outputs: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, stride=stem_stride, padding=1, bias=False)
        layers: list[nn.Module] = []
        features = 16
        for stage, planes in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for index in range(blocks):
                layers.append(WideBlock(features, planes, stride=2 if stage > 0 and index == 0 else 1))
                features = planes
        self.blocks = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(features)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(features, outputs)
        draw_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, channels, H, W] to logits [N, outputs]."""
        x = self.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def wrn_28_10(*, channels: int, stem_stride: int, outputs: int) -> WideResNet:
    return WideResNet(28, 10, channels=channels, stem_stride=stem_stride, outputs=outputs)

"""ResNets (He et al. 2015) with the CIFAR stem: one 3x3 convolution, no max pooling.

The residual blocks are torchvision's, layer for layer and name for name. They are written out here because importing
torchvision loads the compiler of torch as well, which doubles the time until a command starts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ducat_serve.networks.initial import draw_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, whose result is added to ``x`` or to ``downsample`` of it."""

    expansion = 1

    def __init__(self, features: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 ones; the 3x3 one has the stride, as in ResNet v1.5."""

    expansion = 4

    def __init__(self, features: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out)
        return result


class ResNet(nn.Module):
    """A stem of ``stem`` channels, then stages of two residual blocks; every stage but the first halves the resolution.

    ``widths`` are the channels of the stages, and ``first_stride`` 2 halves the resolution in the first one too.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        stem: int,
        widths: Sequence[int],
        *,
        first_stride: int = 1,
        channels: int,
        stem_stride: int,
        outputs: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, stem, 3, stride=stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        features = stem
        for name, planes in zip(self.stages, widths, strict=True):
            stride = first_stride if name == "layer1" else 2
            self.add_module(name, _stage(block, features, planes, stride))
            features = planes * block.expansion
        self.fc = nn.Linear(features, outputs)
        draw_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N, channels, H, W] to logits [N, outputs]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in self.stages:
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(block: type[BasicBlock | Bottleneck], features: int, planes: int, stride: int) -> nn.Sequential:
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or features != out:
        shortcut = nn.Sequential(nn.Conv2d(features, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(block(features, planes, stride, shortcut), block(out, planes, 1, None))


def resnet14(*, channels: int, stem_stride: int, outputs: int) -> ResNet:
    return ResNet(
        BasicBlock,
        16,
        (48, 96, 160),
        first_stride=2,
        channels=channels,
        stem_stride=stem_stride,
        outputs=outputs,
    )


def resnet_small(*, channels: int, stem_stride: int, outputs: int) -> ResNet:
    return _doubling(BasicBlock, 16, channels=channels, stem_stride=stem_stride, outputs=outputs)


def resnet18(*, channels: int, stem_stride: int, outputs: int) -> ResNet:
    return _doubling(BasicBlock, 64, channels=channels, stem_stride=stem_stride, outputs=outputs)


def resnet26(*, channels: int, stem_stride: int, outputs: int) -> ResNet:
    return _doubling(Bottleneck, 64, channels=channels, stem_stride=stem_stride, outputs=outputs)


def _doubling(
    block: type[BasicBlock | Bottleneck], width: int, *, channels: int, stem_stride: int, outputs: int
) -> ResNet:
    """Four stages; the width doubles where the resolution halves."""
    widths = [width * 2**stage for stage in range(4)]
    return ResNet(block, width, widths, channels=channels, stem_stride=stem_stride, outputs=outputs)

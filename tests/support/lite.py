"""EfficientNet-Lite0 as a network of one's own: the one with ImageNet weights that a package index carries."""

from __future__ import annotations

from torch import nn

from ducat_serve.networks.allowed import allow

LITE = "tests.support.lite:lite0"


def lite0(outputs: int, image_size: tuple[int, int]) -> nn.Module:
    """The network of the package `efficientnet-lite-pytorch`, which pads for one size of images."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name(
        "efficientnet-lite0", num_classes=outputs, image_size=image_size[0]
    )
    # As its weights were trained (the reference implementation of EfficientNet-Lite): (pixels - 127) / 128.
    network.normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)  # type: ignore[assignment]
    return network


def allow_lite() -> None:
    """Let this process import it as a network."""
    allow(LITE)

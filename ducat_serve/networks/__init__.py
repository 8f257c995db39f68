"""Networks by name. Each takes images of any size from 8x8 up, 1 or 3 channels, and returns raw logits.

A name with a colon is a network of others (`foreign.py`): `torchvision:NAME`, `timm:NAME`, `package.module:factory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ducat_serve.errors import UsageError, unknown_name
from ducat_serve.spec import MAX_IMAGE_SIZE

if TYPE_CHECKING:
    from torch import nn

MIN_IMAGE_SIZE = 8
LIBRARIES = ("torchvision", "timm")
FOREIGN_FORMS = ("torchvision:NAME", "timm:NAME", "package.module:factory")


@dataclass(frozen=True)
class NetworkInfo:
    """One line of `ducat networks`. ``parameters`` is at 3 channels and 10 outputs."""

    name: str
    parameters: int
    summary: str


NETWORKS: dict[str, NetworkInfo] = {
    info.name: info
    for info in (
        NetworkInfo(
            "resnet14", 1_214_714, "BasicBlock [2, 2, 2] from half the resolution on; wide, for CPUs"
        ),
        NetworkInfo("resnet-small", 701_466, "ResNet-18 at a quarter of its width; for CPUs"),
        NetworkInfo("resnet18", 11_173_962, "BasicBlock [2, 2, 2, 2], CIFAR stem; the paper's network"),
        NetworkInfo(
            "resnet26", 13_958_986, "Bottleneck [2, 2, 2, 2]: what the paper's public code runs as resnet18"
        ),
        NetworkInfo("wrn-28-10", 36_479_194, "Wide ResNet, depth 28, widen factor 10"),
    )
}


def is_foreign(name: str) -> bool:
    """Whether a name is that of a network of others."""
    return ":" in name


def is_own(name: str) -> bool:
    """Whether building a network runs code of the user's own."""
    return is_foreign(name) and name.partition(":")[0] not in LIBRARIES


def require_name(name: str) -> None:
    """Raise UsageError for a name that is neither one of ours nor of the form of the others'."""
    if not is_foreign(name) and name not in NETWORKS:
        error = unknown_name("network", name, [*NETWORKS, *FOREIGN_FORMS])
        error.next_step = f"{error.next_step}; those of torchvision and timm: torchvision:{name}, timm:{name}"
        raise error


def create_network(name: str, *, channels: int, image_size: tuple[int, int], outputs: int) -> nn.Module:
    """Build a network with freshly initialised weights.

    Args:
        name: a key of `NETWORKS`, or the name of a network of others.
        channels: 1 or 3.
        image_size: (H, W) in pixels; from 64 up the stem has stride 2.
        outputs: width of the head.

    Raises:
        UsageError: unknown name, or an image size that the network cannot take.
    """
    require_name(name)
    height, width = image_size
    if min(image_size) < MIN_IMAGE_SIZE or max(image_size) > MAX_IMAGE_SIZE:
        raise UsageError(
            f"{name} takes images from {MIN_IMAGE_SIZE}x{MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}x{MAX_IMAGE_SIZE}, "
            f"not {height}x{width}.",
            "resize the data set with --image-size 64",
        )
    if channels not in (1, 3):
        raise UsageError(f"{name} takes 1 or 3 channels, not {channels}.")
    if is_foreign(name):
        from ducat_serve.networks.foreign import create

        return create(name, channels=channels, image_size=image_size, outputs=outputs)
    return _builder(name)(channels=channels, stem_stride=2 if min(image_size) >= 64 else 1, outputs=outputs)


def _builder(name: str) -> Callable[..., nn.Module]:
    # Imported here so that `ducat networks` and `ducat --help` stay free of torch.
    from ducat_serve.networks import resnet, wide_resnet

    return {
        "resnet14": resnet.resnet14,
        "resnet-small": resnet.resnet_small,
        "resnet18": resnet.resnet18,
        "resnet26": resnet.resnet26,
        "wrn-28-10": wide_resnet.wrn_28_10,
    }[name]

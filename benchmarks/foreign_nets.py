"""Networks of other packages, as their authors publish them: for `ducat evaluate foreign_nets:NAME`.

Each callable returns a `torch.nn.Module` from digits (8 x 8 pixels in [0, 1]) to 10 logits. All that is ours around the
network is what one writes for any data set of another size: an upsampling, and ImageNet's normalisation.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import DeviceSplit
from training.data import load_dataset

_SIZE = 32
_EPOCHS = 3
_BATCH = 64


class Upsampled(nn.Module):
    """A network for larger images than it is given."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, 3, H, W] in [0, 1] to logits [N, 10]."""
        large = F.interpolate(images, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
        logits: Tensor = self.network((large - self.mean) / self.std)
        return logits


def torchvision_resnet() -> nn.Module:
    """torchvision's ResNet-18 with random weights."""
    torch.manual_seed(0)
    return Upsampled(torchvision.models.resnet18(num_classes=10))


def torchvision_resnet_on_digits() -> nn.Module:
    """The same, trained on digits for a few seconds: plain training, so right on clean images and not robust."""
    return _trained(torchvision_resnet())


def timm_vit_on_digits() -> nn.Module:
    """timm's smallest vision transformer, trained on digits for a minute."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=_SIZE, patch_size=4, depth=4, num_classes=10)
    return _trained(Upsampled(network))


def timm_convnext() -> nn.Module:
    """timm's smallest ConvNeXt with random weights."""
    import timm

    torch.manual_seed(0)
    return Upsampled(timm.create_model("convnext_atto", num_classes=10))


def _trained(model: nn.Module) -> nn.Module:
    """Adam with a constant rate on the training images of digits."""
    data = DeviceSplit.of(load_dataset("digits").train, torch.device("cpu"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    shuffled = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(data), generator=shuffled)
        for batch in torch.split(order, _BATCH):
            optimiser.zero_grad()
            logits = model(data.images[batch].float() / 255)
            F.cross_entropy(logits, data.labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model

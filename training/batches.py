"""Images on the device: a whole data set that is measured on, or shuffled and augmented batches to train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.errors import UsageError
from training.data.cache import Split
from training.randomness import stream
from training.streamed import StreamedSplit

_PIXELS = 64 * 64


@dataclass(frozen=True)
class DeviceSplit:
    """Images uint8 [N, channels, H, W] and labels int64 [N] on the device. Raises UsageError for others.

    Evaluation also takes float32 images in [0, 1].
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4:
            raise UsageError(
                "Images must be uint8, or float32 in [0, 1], [N, channels, H, W], "
                f"not {images.dtype} {list(images.shape)}."
            )
        if images.is_floating_point() and len(images) and not (images.min() >= 0 and images.max() <= 1):
            raise UsageError(f"Pixels must be in [0, 1], found {images.min():g} to {images.max():g}.")
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise UsageError(
                f"Labels must be int64 [N], not {self.labels.dtype} {list(self.labels.shape)}.",
                "labels.long().flatten(), where they are the numbers of classes",
            )
        if len(self.images) != len(self.labels):
            raise UsageError(f"{len(self.images)} images and {len(self.labels)} labels.")

    @classmethod
    def of(cls, split: Split, device: torch.device) -> DeviceSplit:
        """Copy a split to the device, channels first."""
        images = torch.from_numpy(np.ascontiguousarray(split.images.transpose(0, 3, 1, 2)))
        return cls(images.to(device), torch.from_numpy(split.labels.copy()).to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of float images in [0, 1] and labels, in order; the last one may be smaller."""
        for start in range(0, len(self), batch_size):
            yield to_pixels(self.images[start : start + batch_size]), self.labels[start : start + batch_size]


@dataclass(frozen=True)
class TrainingBatches:
    """Shuffled, augmented batches. Every batch depends only on (seed, epoch, step), never on the last one."""

    split: StreamedSplit
    batch_size: int
    seed: int
    crop_padding: int
    flip: bool
    balanced: bool = False

    @property
    def steps(self) -> int:
        """Steps per epoch; images that do not fill a last batch wait for another epoch's order."""
        return len(self.split) // self.batch_size

    def order(self, epoch: int) -> Tensor:
        """The order of images in an epoch, [N], on the CPU; ``balanced`` draws every class as often, rare ones more."""
        generator = stream(self.seed, "order", epoch)
        if self.balanced:
            labels = self.split.labels.cpu()
            weights = 1.0 / torch.bincount(labels).double()[labels]
            return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
        return torch.randperm(len(self.split), generator=generator)

    def batch(self, order: Tensor, epoch: int, step: int, views: int = 1) -> tuple[Tensor, Tensor]:
        """Float images [views * B, channels, H, W] in [0, 1] and labels of one step.

        Each view is augmented on its own: all first views come first, then all second ones.
        """
        index = self._index(order, step)
        then = self._index(order, step + 1) if step + 1 < self.steps else None
        generator = stream(self.seed, "augment", epoch, step, device=self.split.device)
        images, labels = self.split.at(index, then), self.split.labels[index]
        augmented = [augment(images, self.crop_padding, self.flip, generator) for _ in range(views)]
        return to_pixels(torch.cat(augmented)), labels.repeat(views)

    def _index(self, order: Tensor, step: int) -> Tensor:
        return order[step * self.batch_size : (step + 1) * self.batch_size]


def at_a_time(most: int, height: int, width: int) -> int:
    """How many images go through a network at a time: ``most`` up to 64x64 pixels, and fewer where they are larger.

    A photo of 224x224 pixels takes the memory of twelve images of 64x64 under attack.
    """
    return min(most, max(1, most * _PIXELS // (height * width)))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]; float32 stays, as a copy."""
    return images.clone() if images.is_floating_point() else images.float().div_(255)


def to_levels(images: Tensor) -> NDArray[np.uint8]:
    """Float images [N, channels, H, W] in [0, 1] as an exported model takes them: uint8 [N, H, W, channels]."""
    levels = (images.detach() * 255).round().clamp(0, 255).byte()
    as_taken: NDArray[np.uint8] = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return as_taken


def augment(images: Tensor, crop_padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random crop from a zero-padded image and random horizontal flip, drawn for each image on its own.

    Args:
        images: uint8 [N, channels, H, W].
        crop_padding: pixels of padding on each side; 0 turns cropping off.
    """
    count, _, height, width = images.shape
    device = images.device
    if crop_padding:
        padded = F.pad(images, [crop_padding] * 4)
        top = torch.randint(2 * crop_padding + 1, (count, 1), generator=generator, device=device)
        left = torch.randint(2 * crop_padding + 1, (count, 1), generator=generator, device=device)
        rows = (top + torch.arange(height, device=device))[:, None, :, None]
        columns = (left + torch.arange(width, device=device))[:, None, None, :]
        batch = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
        images = padded[batch, channel, rows, columns]
    if flip:
        flipped = torch.rand(count, generator=generator, device=device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    return images

"""Corruptions that torchvision (and Pillow, for JPEG) makes of clean images, where no published archive is at hand.

They carry the names of the benchmark's families (Hendrycks and Dietterich 2019, arXiv 1903.12261) that torchvision has
the means for, with the strengths that CIFAR-10-C was made with where its operation is the same. They are NOT those
images: brightness multiplies instead of adding, elastic_transform and zoom_blur move pixels in another way, and
weather, glass, motion and defocus are missing. So a figure on them is comparable only with others on them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from training.data.cache import Split
from training.randomness import stream

_CHUNK = 256  # images that share one random stream
_CIFAR_SIDE = 32  # pixels; larger images are blurred in proportion, as those of ImageNet-C are

# Pixels float32 [N, 3, H, W] in [0, 1] and a severity from 0 to 4 to the same, not yet in [0, 1].
_Operation = Callable[[Tensor, int], Tensor]


def _gaussian_noise(images: Tensor, severity: int) -> Tensor:
    corrupted: Tensor = F.gaussian_noise(images, sigma=(0.04, 0.06, 0.08, 0.09, 0.10)[severity], clip=True)
    return corrupted


def _shot_noise(images: Tensor, severity: int) -> Tensor:
    photons = (500, 250, 100, 75, 50)[severity]
    return torch.poisson(images * photons) / photons


def _impulse_noise(images: Tensor, severity: int) -> Tensor:
    hit = torch.rand_like(images) < (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    return torch.where(hit, (torch.rand_like(images) < 0.5).to(images.dtype), images)


def _gaussian_blur(images: Tensor, severity: int) -> Tensor:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity] * max(1.0, min(images.shape[-2:]) / _CIFAR_SIDE)
    radius = min(max(1, round(4 * sigma)), min(images.shape[-2:]) - 1)
    corrupted: Tensor = F.gaussian_blur(images, kernel_size=[2 * radius + 1] * 2, sigma=[sigma] * 2)
    return corrupted


def _zoom_blur(images: Tensor, severity: int) -> Tensor:
    factors = torch.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity], 0.01).tolist()
    zoomed = [
        F.affine(images, 0, [0, 0], factor, [0, 0], interpolation=InterpolationMode.BILINEAR)
        for factor in factors
    ]
    return torch.stack([images, *zoomed]).mean(dim=0)


def _brightness(images: Tensor, severity: int) -> Tensor:
    corrupted: Tensor = F.adjust_brightness(images, (1.1, 1.2, 1.3, 1.4, 1.6)[severity])
    return corrupted


def _contrast(images: Tensor, severity: int) -> Tensor:
    corrupted: Tensor = F.adjust_contrast(images, (0.75, 0.5, 0.4, 0.3, 0.15)[severity])
    return corrupted


def _saturate(images: Tensor, severity: int) -> Tensor:
    corrupted: Tensor = F.adjust_saturation(images, (0.3, 0.1, 1.5, 2.0, 2.5)[severity])
    return corrupted


def _elastic_transform(images: Tensor, severity: int) -> Tensor:
    side = min(images.shape[-2:])
    move = v2.ElasticTransform(alpha=(0.125, 0.2, 0.275, 0.35, 0.425)[severity] * side, sigma=0.04 * side)
    return torch.stack([move(image) for image in images])


def _pixelate(images: Tensor, severity: int) -> Tensor:
    size = list(images.shape[-2:])
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]
    small = F.resize(images, [max(1, int(share * side)) for side in size], antialias=True)
    corrupted: Tensor = F.resize(small, size, interpolation=InterpolationMode.NEAREST)
    return corrupted


def _jpeg_compression(images: Tensor, severity: int) -> Tensor:
    levels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    packed = [_through_jpeg(image, (80, 65, 58, 50, 40)[severity]) for image in levels]
    return torch.from_numpy(np.stack(packed)).permute(0, 3, 1, 2).to(images.dtype) / 255


def _through_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


_OPERATIONS: dict[str, _Operation] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "gaussian_blur": _gaussian_blur,
    "zoom_blur": _zoom_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}


@dataclass(frozen=True)
class GeneratedCorruptions:
    """Corruptions of ``clean``; the same images for every model, since ``seed``, family and severity decide them."""

    clean: Split
    seed: int
    title: str

    @property
    def families(self) -> tuple[str, ...]:
        return tuple(_OPERATIONS)

    @property
    def generated_by(self) -> str:
        return f"torchvision {torchvision.__version__.split('+')[0]} and Pillow {PIL.__version__}"

    def at(self, family: str, severity: int) -> Split:
        """Images uint8 [N, H, W, 3] and labels of one family at a severity of 1 to 5."""
        corrupted = [self._chunk(family, severity, start) for start in range(0, len(self.clean), _CHUNK)]
        return Split(np.concatenate(corrupted), self.clean.labels)

    def _chunk(self, family: str, severity: int, start: int) -> NDArray[np.uint8]:
        images = torch.from_numpy(np.ascontiguousarray(self.clean.images[start : start + _CHUNK]))
        pixels = images.permute(0, 3, 1, 2).float() / 255
        seed = stream(self.seed, "corruption", family, severity, start).initial_seed()
        with torch.random.fork_rng(devices=()):  # torchvision draws from torch's own stream
            torch.manual_seed(seed)
            found = _OPERATIONS[family](pixels, severity - 1)
        return (found.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

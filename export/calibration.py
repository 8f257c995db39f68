"""The images that fix the ranges of an int8 model's activations."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """Train images of the model's data set, uint8 [N, H, W, channels]: some as they are, some attacked.

    Args:
        attacked: how many of them were attacked.
        seed: what chose and attacked them.
    """

    images: NDArray[np.uint8]
    attacked: int
    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels in their order."""
        return hashlib.sha256(np.ascontiguousarray(self.images).tobytes()).hexdigest()

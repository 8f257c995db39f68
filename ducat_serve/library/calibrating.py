"""Calibration images for int8: train images of the model's data set, half of them attacked."""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from export.calibration import Calibration
from training.attacks.ball import Ball
from training.attacks.base import Task
from training.attacks.criteria import misclassified
from training.attacks.pgd import PGD
from training.batches import DeviceSplit, to_pixels
from training.data.cache import Split
from training.data.splits import choose_images
from training.randomness import stream

IMAGES = 256
_STEPS = 10
_BATCH = 64
_SEED = 0


def calibration_images(model: Deployed, train: Split, output: Output) -> Calibration:
    """Some images of a train split, every second one attacked by PGD on the deployed function.

    Attacked images reach activations that clean ones do not, and what a range cuts off is lost. Choice and attack are
    seeded, so that the same checkpoint and data give the same file.

    Args:
        model: the float32 model, on the CPU.
        train: at least one image of the model's size.
    """
    chosen, _ = choose_images(train, IMAGES, _SEED)
    data = DeviceSplit.of(chosen, torch.device("cpu"))
    images = data.images.clone()
    attacked = torch.arange(0, len(images), 2)
    with output.progress("calibration", len(attacked)) as advance:
        for start in range(0, len(attacked), _BATCH):
            batch = attacked[start : start + _BATCH]
            images[batch] = _attack(model, data.images[batch], data.labels[batch], start)
            advance(len(batch))
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    return Calibration(pixels, attacked=len(attacked), seed=_SEED)


def _attack(model: Deployed, images: Tensor, labels: Tensor, start: int) -> Tensor:
    """Images after PGD in the ball of the model's threat model; uint8 [N, channels, H, W] as they came."""
    task = Task(
        model,
        to_pixels(images),
        labels,
        Ball.of(model.spec.threat_model, eight_bit=True),
        misclassified(model.fold),
        stream(_SEED, "calibration", start),
    )
    found = PGD(steps=_STEPS)(task)
    return (found * 255).round().byte()

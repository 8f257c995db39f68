"""What validation measures, against the closed form that a linear model has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from training.data.cache import Split
from training.resolve import resolve
from training.streamed import StreamedSplit
from training.validation import Validation

EPS = 0.01


class Linear(nn.Module):
    """Two logits of images [N, 1, 8, 8]; their difference is `weights` times the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.randn(64, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        difference = (images.flatten(1) - 0.5) @ self.weights
        return torch.stack([difference, -difference], dim=1)


def images_and_labels(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Images far from black and white, so that clipping never helps; half of the labels are right."""
    random = np.random.default_rng(0)
    images = random.integers(80, 175, (count, 8, 8, 1), dtype=np.uint8)
    return images, random.integers(0, 2, count)


@pytest.mark.parametrize("attack_steps", [1, 2, 10, 20])
def test_validation_finds_the_worst_case_of_a_linear_model_whatever_steps_training_takes(
    attack_steps: int,
) -> None:
    images, labels = images_and_labels()
    config = resolve("digits", {"ducat": "off", "eps": EPS, "attack_steps": attack_steps})
    val = StreamedSplit(Split(images, labels), torch.device("cpu"))
    model = Linear()

    found = Validation(val, config)(Deployed(model, "none"), legacy=False)

    pixels, weights = images.reshape(len(images), -1) / 255 - 0.5, model.weights.numpy()
    margins = np.where(labels == 0, 1, -1) * (pixels @ weights)
    assert found.clean_accuracy == pytest.approx(np.mean(margins > 0))
    # The worst image of a linear model moves every pixel by eps against its weight (Goodfellow et al. 2015).
    worst_case = np.mean(margins > EPS * np.abs(weights).sum())
    assert 0.02 < worst_case < found.clean_accuracy - 0.1
    assert found.pgd_accuracy == pytest.approx(worst_case)


class SinkOnTheWay(nn.Module):
    """Four logits of two classes, by how dark an image is: first the dummy of class 0 wins, in the end class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        darker = (0.5 - images.flatten(1).mean(dim=1)) / EPS  # 1 at the edge of the ball
        class_1 = 10 * (darker - 0.75)
        return torch.stack([0 * darker, class_1, 2 * darker, class_1 - 9], dim=1)


def test_the_legacy_measure_takes_all_steps_and_every_image_is_judged_once() -> None:
    """Recovery forgives where the label's own dummy wins: an attack that stopped there would leave all images right."""
    images = np.full((4, 8, 8, 1), 127, dtype=np.uint8)
    val = StreamedSplit(Split(images, np.zeros(4, dtype=np.int64)), torch.device("cpu"))
    model = SinkOnTheWay()

    found = Validation(val, resolve("digits", {"eps": EPS}))(Deployed(model, "max"), legacy=True)

    assert found.clean_accuracy == 1
    assert found.legacy_accuracy == 0
    clean = model.seen[0]
    assert sum(torch.equal(images, clean) for images in model.seen) == 2  # PGD looks at them too

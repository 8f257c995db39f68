"""Batches and augmentation: drawn for each image on its own, and repeatable from any step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import TrainingBatches, at_a_time, augment, to_pixels
from training.data.cache import Split
from training.randomness import stream
from training.streamed import StreamedSplit

CPU = torch.device("cpu")


def random_images(count: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 7, 3), dtype=np.uint8)


def split(count: int = 50) -> StreamedSplit:
    return StreamedSplit(Split(random_images(count), np.arange(count)), CPU)


def all_of(data: StreamedSplit) -> Tensor:
    return data.at(torch.arange(len(data)))


def test_an_epoch_visits_no_image_twice_and_orders_differ() -> None:
    batches = TrainingBatches(split(), batch_size=8, seed=0, crop_padding=0, flip=False)
    assert batches.steps == 6
    seen = torch.cat([batches.batch(batches.order(1), 1, step)[1] for step in range(6)])
    assert len(set(seen.tolist())) == 48
    assert not torch.equal(batches.order(1), batches.order(2))


def test_balanced_batches_have_every_class_as_often() -> None:
    """90 images of one class and 10 of another: half of what is drawn is of each, at every resumption."""
    data = StreamedSplit(Split(random_images(100), (np.arange(100) >= 90).astype(np.int64)), CPU)
    batches = TrainingBatches(data, batch_size=10, seed=0, crop_padding=0, flip=False, balanced=True)
    drawn = torch.cat([data.labels[batches.order(epoch)] for epoch in range(1, 11)])
    assert 0.45 < drawn.double().mean() < 0.55
    assert torch.equal(batches.order(3), batches.order(3))


def test_a_batch_depends_on_its_place_alone() -> None:
    """Asking for step 5 first or last gives the same images: resuming needs no random state."""
    batches = TrainingBatches(split(), batch_size=8, seed=3, crop_padding=2, flip=True)
    order = batches.order(4)
    in_order = [batches.batch(order, 4, step)[0] for step in range(6)]
    assert torch.equal(batches.batch(order, 4, 5)[0], in_order[5])
    assert not torch.equal(in_order[0], in_order[1])


def test_images_and_labels_stay_together() -> None:
    data = split()
    batches = TrainingBatches(data, batch_size=8, seed=0, crop_padding=0, flip=False)
    images, labels = batches.batch(batches.order(1), 1, 2)
    assert torch.equal(images, to_pixels(all_of(data)[labels]))
    assert images.max() <= 1


def test_crop_gives_shifted_windows_of_the_padded_image_each_its_own() -> None:
    images = all_of(split(64))
    cropped = augment(images, 2, False, stream(0, "t"))
    padded = torch.nn.functional.pad(images, [2] * 4)
    offsets = set()
    for image, canvas in zip(cropped, padded, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(image, canvas[:, top : top + 6, left : left + 7])
        ]
        assert matches
        offsets.update(matches)
    assert len(offsets) > 15


def test_flip_is_drawn_for_each_image() -> None:
    images = all_of(split(200))
    flipped = augment(images, 0, True, stream(0, "t"))
    same = (flipped == images).flatten(1).all(dim=1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 70 < same.sum() < 130


def test_in_order_covers_everything_once() -> None:
    labels = torch.cat([labels for _, labels in split(50).in_order(16)])
    assert torch.equal(labels, torch.arange(50))


def test_streams_differ_by_every_part_of_the_place() -> None:
    places: list[tuple[int, *tuple[int | str, ...]]] = [
        (0, "a", 1, 2),
        (1, "a", 1, 2),
        (0, "b", 1, 2),
        (0, "a", 2, 2),
        (0, "a", 1, 3),
        (0, "a", 12),
    ]
    draws = {torch.rand(1, generator=stream(seed, *where)).item() for seed, *where in places}
    assert len(draws) == len(places)


def test_large_images_go_through_a_network_in_smaller_batches() -> None:
    assert [at_a_time(256, size, size) for size in (8, 32, 64, 224, 512, 4096)] == [256, 256, 256, 20, 4, 1]

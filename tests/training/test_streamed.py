"""Images that stay on disk: what is read when, by whom, and that it is right."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import TrainingBatches
from training.data.cache import Split
from training.data.splits import hold_out
from training.streamed import StreamedSplit

COUNT = 30
CPU = torch.device("cpu")


@pytest.fixture
def on_disk(tmp_path: Path) -> NDArray[np.uint8]:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 4, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped: NDArray[np.uint8] = np.load(tmp_path / "images.npy", mmap_mode="r")
    return mapped


def test_what_is_held_out_stays_on_disk_and_is_what_a_copy_would_be(on_disk: NDArray[np.uint8]) -> None:
    labels = np.arange(COUNT) % 3
    parts = hold_out(Split(on_disk, labels), 6, seed=1)
    copies = hold_out(Split(np.array(on_disk), labels), 6, seed=1)
    for part, copied in zip(parts, copies, strict=True):
        assert part.stored is on_disk
        assert part.shape == copied.images.shape
        np.testing.assert_array_equal(part.images, copied.images)
        np.testing.assert_array_equal(part.at(slice(2, 5)), copied.at(slice(2, 5)))
        np.testing.assert_array_equal(part.first(4).images, copied.first(4).images)
        np.testing.assert_array_equal(part.labels, copied.labels)


def test_a_batch_is_the_images_of_its_index(on_disk: NDArray[np.uint8]) -> None:
    data = StreamedSplit(Split(on_disk, np.arange(20), np.arange(10, COUNT)), CPU)
    index = torch.tensor([7, 0, 7])
    found = data.at(index)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 3, 4, 5))
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), on_disk[[17, 10, 17]])
    pieces = list(data.in_order(8))
    assert [len(labels) for _, labels in pieces] == [8, 8, 4]
    images = torch.cat([pixels for pixels, _ in pieces])
    np.testing.assert_array_equal((images * 255).round().permute(0, 2, 3, 1).numpy(), on_disk[10:])
    assert torch.cat([labels for _, labels in pieces]).tolist() == list(range(20))


class Watched(StreamedSplit):
    """Counts what is read, and where."""

    def _read(self, index: Tensor) -> Tensor:
        reads.append((index.tolist(), threading.current_thread() is threading.main_thread()))
        return super()._read(index)


reads: list[tuple[list[int], bool]] = []


def test_the_next_batch_is_read_by_a_thread_and_never_twice(on_disk: NDArray[np.uint8]) -> None:
    reads.clear()
    data = Watched(Split(on_disk, np.arange(COUNT)), CPU)
    batches = TrainingBatches(data, batch_size=8, seed=0, crop_padding=0, flip=False)
    order = batches.order(1)
    for step in range(3):
        images, labels = batches.batch(order, 1, step)
        expected = torch.from_numpy(on_disk[labels.numpy()]).permute(0, 3, 1, 2).float() / 255
        assert torch.equal(images, expected)
    assert [index for index, _ in reads] == [order[8 * step : 8 * step + 8].tolist() for step in range(3)]
    assert [in_main for _, in_main in reads] == [True, False, False]


def test_another_question_than_the_expected_one_is_answered(on_disk: NDArray[np.uint8]) -> None:
    data = StreamedSplit(Split(on_disk, np.arange(COUNT)), CPU)
    data.at(torch.tensor([1, 2]), then=torch.tensor([3, 4]))
    found = data.at(torch.tensor([5, 6]))
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), on_disk[5:7])


def test_no_thread_is_left_once_a_batch_is_read(on_disk: NDArray[np.uint8]) -> None:
    before = set(threading.enumerate())
    data = StreamedSplit(Split(on_disk, np.arange(COUNT)), CPU)
    then = torch.tensor([3, 4])
    data.at(torch.tensor([1, 2]), then)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended meanwhile
    np.testing.assert_array_equal(data.at(then).permute(0, 2, 3, 1).numpy(), on_disk[3:5])

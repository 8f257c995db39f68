"""The data path of training alone: images/s from disk to augmented batches, and the memory that it takes.

    OMP_NUM_THREADS=1 python benchmarks/data_path.py [--images 2000] [--size 224] [--batch-size 64]

Writes random photos to a temporary folder, decoded as the cache holds them, and goes through them as an epoch of
training does, with crops and flips and no network. The first epoch may find them on disk, the second finds them in the
kernel's cache. Prints images/s and CPU time of each, and by how much this process's own memory grew (on Linux); pages
of the memory map are the kernel's, which takes them back at will.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from training.batches import TrainingBatches
from training.data.cache import Split, new_images
from training.streamed import StreamedSplit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = (given.images, given.size, given.size, 3)
        write_photos(Path(folder), shape)
        stored = np.load(Path(folder) / "train.npy", mmap_mode="r")
        data = StreamedSplit(Split(stored, np.zeros(given.images, np.int64)), torch.device("cpu"))
        batches = TrainingBatches(data, given.batch_size, seed=0, crop_padding=given.size // 14, flip=True)
        print(
            f"{given.images} images of {given.size} pixels, {stored.nbytes / 1e6:.0f} MB, batches of {given.batch_size}"
        )
        before = own_memory()
        for epoch in (1, 2):
            wall, cpu, most = go_through(batches, epoch)
            count = batches.steps * given.batch_size
            print(
                f"epoch {epoch}: {count / wall:.0f} images/s, {count / cpu:.0f} images for each second of CPU time, "
                f"own memory grew by {(most - before) / 1e6:.0f} MB at most"
            )


def write_photos(folder: Path, shape: tuple[int, ...]) -> None:
    images = new_images(folder, "train", shape)
    generator = np.random.default_rng(0)
    for image in images:
        image[:] = generator.integers(0, 256, shape[1:], dtype=np.uint8)
    images.flush()


def go_through(batches: TrainingBatches, epoch: int) -> tuple[float, float, int]:
    """Wall and CPU seconds of an epoch without its first batch, and the most memory that was seen."""
    order = batches.order(epoch)
    most = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(batches.steps):
        batches.batch(order, epoch, step)
        most = max(most, own_memory())
    return time.perf_counter() - wall, time.process_time() - cpu, most


def own_memory() -> int:
    """Bytes that belong to this process alone, memory maps of files apart; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()

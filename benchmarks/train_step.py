"""Our training step beside a textbook one, and beside what the machine can do, in one run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --network resnet-small --image-size 32 --batch-size 128

The textbook step is what public implementations do: float32, NCHW, an attack that calls `loss.backward()` through
trainable weights, one forward pass for clean and one for adversarial images. Ours is `TrainingStep`. Both craft
PGD-10 and update once, in the phase with dummies and in the one before. The peak is a bfloat16 matrix product.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ducat_serve.output import Output
from training.config import resolve
from training.data import Dataset
from training.data.cache import Split
from training.device import LAYOUT, fastest_precision
from training.run_folder import RunFolder
from training.trainer import Trainer

CLASSES = 10
STEPS = 10


def synthetic(size: int, count: int) -> Dataset:
    """Random images: a step costs the same on them."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    split = Split(images, generator.integers(0, CLASSES, count))
    return Dataset("synthetic", tuple(str(i) for i in range(CLASSES)), split, split, split, "synthetic")


def our_trainer(network: str, size: int, batch: int, folder: Path) -> Trainer:
    given = {"network": network, "batch_size": batch, "epochs": 2, "ducat": "paper", "ducat_start": 2}
    config = resolve("cifar10", {**given, "precision": fastest_precision(torch.device("cpu"))})
    return Trainer(config, synthetic(size, 2 * batch), RunFolder(folder), torch.device("cpu"), Output())


class Textbook:
    """Float32, NCHW, weight gradients in the attack, separate forwards."""

    def __init__(self, trainer: Trainer) -> None:
        self.model = copy.deepcopy(trainer.classifier).to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        self.model.eval()
        adversarial = images + torch.empty_like(images).uniform_(-8 / 255, 8 / 255)
        for _ in range(STEPS):
            adversarial = adversarial.detach().requires_grad_(True)
            F.cross_entropy(self.model(adversarial), labels).backward()
            assert adversarial.grad is not None
            moved = adversarial.detach() + 2 / 255 * adversarial.grad.sign()
            adversarial = torch.min(torch.max(moved, images - 8 / 255), images + 8 / 255).clamp(0, 1)
        return adversarial.detach()

    def step(self, images: Tensor, labels: Tensor, dummies: bool) -> None:
        adversarial = self.attack(images, labels)
        self.model.train()
        self.optimizer.zero_grad()
        if dummies:
            eye = torch.eye(2 * CLASSES)
            soft = 0.75 * eye[labels] + 0.25 * eye[labels + CLASSES]
            clean = F.cross_entropy(self.model(images), soft)
            loss = (clean + F.cross_entropy(self.model(adversarial), labels + CLASSES)) / 2
        else:
            loss = F.cross_entropy(self.model(adversarial), labels)
        loss.backward()
        self.optimizer.step()


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The median; the first call warms up."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_gflops(repeats: int) -> float:
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 2048**3 / seconds(lambda: a @ b, 3 * repeats) / 1e9


def forward_flops(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, size, size))
    return counter.get_total_flops()


def measure(network: str, size: int, batch: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = our_trainer(network, size, batch, Path(folder))
        textbook = Textbook(trainer)
        order = trainer.batches.order(1)
        images, labels = trainer.batches.batch(order, 1, 0)
        trainer.classifier.train()
        print(f"{network} at {size}x{size}, batch {batch}, {torch.get_num_threads()} threads")
        for phase, epoch in (("before dummies", 1), ("with dummies", 2)):
            ours = seconds(lambda e=epoch: trainer.train_step(order, e, 0), repeats)
            theirs = seconds(lambda e=epoch: textbook.step(images, labels, e == 2), repeats)
            print(
                f"  {phase:<15} ours {batch / ours:7.1f} images/s  textbook {batch / theirs:7.1f}  "
                f"ratio {theirs / ours:.2f}",
                flush=True,
            )
        ours_in = images.contiguous(memory_format=LAYOUT)
        craft = partial(trainer.step.craft, ours_in, ours_in, labels, dummy_phase=False)
        crafted = seconds(craft, repeats)
        # a forward pass and a gradient with respect to the input cost as much as each other
        gflops = 2 * STEPS * batch * forward_flops(textbook.model, size) / crafted / 1e9
        peak = peak_gflops(repeats)
        print(
            f"  attack          {STEPS * batch / crafted:7.1f} image steps/s, {gflops:.0f} GFLOP/s, "
            f"{gflops / peak:.0%} of the bfloat16 matrix product's {peak:.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.network:
        cases = [(arguments.network, arguments.image_size, arguments.batch_size)]
    else:
        cases = [("resnet18", 32, 64), ("resnet18", 64, 64), ("resnet-small", 32, 128)]
    for network, size, batch in cases:
        measure(network, size, batch, arguments.repeats)


if __name__ == "__main__":
    main()

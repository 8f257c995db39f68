"""Our training step beside a textbook one, and beside what the machine can do, in one run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --network resnet14 --image-size 32 --batch-size 128

Without options every network is measured at 32x32, and resnet18 at 64x64 too: a quarter of an hour or more.
The textbook step (training/textbook.py) is what public implementations do. Ours is `TrainingStep`. Both craft
PGD-10 and update once, in the phase with dummies and in the one before. The peak is a bfloat16 matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ducat_serve.networks import NETWORKS
from ducat_serve.output import Output
from training.attacks.frozen import frozen
from training.data import Dataset
from training.data.cache import Split
from training.device import LAYOUT, fastest_precision
from training.objectives.objective import Batch
from training.resolve import resolve
from training.run.folder import RunFolder
from training.textbook import Textbook
from training.trainer import Trainer

CLASSES = 10
STEPS = 10
BATCHES = {"resnet14": 128, "resnet-small": 128, "wrn-28-10": 16}  # 64 for the other networks


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
    model.eval()  # in train mode BatchNorm refuses one image whose last features are 1x1, as those of 8x8 images are
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, size, size))
    total: int = counter.get_total_flops()
    return total


def both(
    network: str, size: int, batch: int, folder: Path
) -> tuple[Trainer, Textbook, Tensor, Tensor, Tensor]:
    """Ours and the textbook's from the same weights; the order of an epoch, and its first images and labels."""
    trainer = our_trainer(network, size, batch, folder)
    textbook = Textbook(trainer.classifier)
    order = trainer.batches.order(1)
    images, labels = trainer.batches.batch(order, 1, 0)
    trainer.classifier.train()
    return trainer, textbook, order, images, labels


def measure(network: str, size: int, batch: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer, textbook, order, images, labels = both(network, size, batch, Path(folder))
        print(f"{network} at {size}x{size}, batch {batch}, {torch.get_num_threads()} threads")
        for phase, epoch in (("before dummies", 1), ("with dummies", 2)):
            ours = seconds(partial(trainer.train_step, order, epoch, 0), repeats)
            theirs = seconds(partial(textbook.step, images, labels, epoch == 2), repeats)
            print(
                f"  {phase:<15} ours {batch / ours:7.1f} images/s  textbook {batch / theirs:7.1f}  "
                f"ratio {theirs / ours:.2f}",
                flush=True,
            )
        ours_in = images.contiguous(memory_format=LAYOUT)
        step, batch_of_ours = trainer.step, Batch(ours_in, labels, epoch=1, step=0)
        attack = step.attack_of(1, 0, one_step=False)
        craft = partial(step.craft, step.objective_of(1), batch_of_ours, attack, ours_in)
        crafted = seconds(craft, repeats)
        with frozen(trainer.classifier):
            step.attack_model = trainer.classifier
            unfused = seconds(craft, repeats)
        print(
            f"  attack on the fused copy takes {crafted / unfused:.2f} of the time of one on the network itself"
        )
        # a forward pass and a gradient with respect to the input cost as much as each other
        gflops = 2 * STEPS * batch * forward_flops(textbook.model, size) / crafted / 1e9
        peak = peak_gflops(repeats)
        print(
            f"  attack          {STEPS * batch / crafted:7.1f} image steps/s, {gflops:.0f} GFLOP/s, "
            f"{gflops / peak:.0%} of the bfloat16 matrix product's {peak:.0f}",
            flush=True,
        )
    ours, theirs = (peak_memory(whose, network, size, batch) for whose in ("ours", "textbook"))
    print(
        f"  peak memory     ours {ours / 1e9:.2f} GB  textbook {theirs / 1e9:.2f} GB  ratio {ours / theirs:.2f}"
    )


def peak_memory(whose: str, network: str, size: int, batch: int) -> int:
    """Peak memory in bytes of a process that makes two steps of each phase, one way."""
    case = ["--network", network, "--image-size", str(size), "--batch-size", str(batch)]
    command = [sys.executable, __file__, *case, "--memory-of", whose]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_own_memory(whose: str, network: str, size: int, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer, textbook, order, images, labels = both(network, size, batch, Path(folder))
        for epoch in (1, 2):
            for _ in range(2):
                if whose == "ours":
                    trainer.train_step(order, epoch, 0)
                else:
                    textbook.step(images, labels, epoch == 2)
    # Not ru_maxrss, which a process inherits from the one that started it.
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    print(int(line.split()[1]) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=["ours", "textbook"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_own_memory(arguments.memory_of, arguments.network, arguments.image_size, arguments.batch_size)
        return
    if arguments.network:
        cases = [(arguments.network, arguments.image_size, arguments.batch_size)]
    else:
        cases = [*((name, 32, BATCHES.get(name, 64)) for name in NETWORKS), ("resnet18", 64, 64)]
    for network, size, batch in cases:
        measure(network, size, batch, arguments.repeats)


if __name__ == "__main__":
    main()

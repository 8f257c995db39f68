"""Ours and the textbook's training after a few epochs on digits: speed must not cost accuracy.

    OMP_NUM_THREADS=1 python benchmarks/train_accuracy.py

Same initial weights, data order, augmentation and schedule; only the steps differ. Clean and PGD-10 accuracy of
the deployed function in float32, on val and test images, which neither saw, over three seeds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.config import TrainConfig
from training.data import load_dataset
from training.data.cache import Split
from training.device import fastest_precision
from training.resolve import resolve
from training.run.folder import RunFolder
from training.streamed import StreamedSplit
from training.textbook import Textbook
from training.trainer import Trainer
from training.validation import Validation


def accuracies(model: Deployed, trainer: Trainer, config: TrainConfig) -> tuple[float, float]:
    both = (trainer.dataset.val, trainer.dataset.test)
    images, labels = (
        np.concatenate(parts) for parts in zip(*((s.images, s.labels) for s in both), strict=True)
    )
    unseen = StreamedSplit(Split(images, labels), trainer.device)
    result = Validation(unseen, config)(model, legacy=False)
    return 100 * result.clean_accuracy, 100 * result.pgd_accuracy


def train(seed: int, epochs: int, eps: float) -> dict[str, tuple[float, float]]:
    given = {"ducat": "paper", "epochs": epochs, "eps": eps, "seed": seed}
    config = resolve("digits", {**given, "precision": fastest_precision(torch.device("cpu"))})
    data = load_dataset("digits", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, data, RunFolder(Path(folder)), torch.device("cpu"), Output(silent=True))
    textbook = Textbook(trainer.classifier, config.eps, config.step_size, config.attack_steps)
    torch.manual_seed(seed)
    for epoch in range(1, epochs + 1):
        order = trainer.batches.order(epoch)
        for optimizer in (trainer.step.optimizer, textbook.optimizer):
            optimizer.param_groups[0]["lr"] = config.learning_rate(epoch)
        trainer.classifier.train()
        for step in range(trainer.batches.steps):
            trainer.train_step(order, epoch, step)
            images, labels = trainer.batches.batch(order, epoch, step)
            textbook.step(images, labels, config.is_dummy_phase(epoch))
    models = {"ours": trainer.classifier, "textbook": textbook.model}
    return {name: accuracies(Deployed(model, "max"), trainer, config) for name, model in models.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eps", type=float, default=0.1)
    given = parser.parse_args()
    found = [train(seed, given.epochs, given.eps) for seed in range(given.seeds)]
    for name in ("ours", "textbook"):
        for what, column in (("clean", 0), ("PGD", 1)):
            values = [seed[name][column] for seed in found]
            shown = ", ".join(f"{value:.1f}" for value in values)
            print(f"{name:<9} {what:<6} mean {statistics.fmean(values):.1f} %  ({shown})")


if __name__ == "__main__":
    main()

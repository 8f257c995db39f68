"""How many images keep a tenth of what their gradient promises of a short step: on networks that hide nothing.

    OMP_NUM_THREADS=1 python benchmarks/first_order.py --data-dir ../shared/data

The sanity check `gradients foretell small steps` fails below three images of four. results/first-order.md is what this
wrote: for each network and ball the share among 50 test images that are right when clean.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path

import torch

from ducat_serve import atomic
from ducat_serve.bundled import model_path
from ducat_serve.deployed import load
from ducat_serve.output import Output
from training.attacks.ball import Ball
from training.attacks.criteria import right
from training.batches import DeviceSplit, to_pixels
from training.device import exact_float32
from training.evaluation.first_order import gradients_foretell
from training.evaluation.runner import Batches, Runner
from training.run.dataset import load_training_data

RESULTS = Path(__file__).parents[1] / "results"
MODELS = (
    model_path("cifar10-small", "safetensors"),
    model_path("digits-small", "safetensors"),
    RESULTS / "standard-resnet14.safetensors",
    RESULTS / "standard-resnet-small.safetensors",
)
BALLS = (
    *(Ball("linf", 8 / 255), Ball("linf", 0.3)),
    *(Ball("l2", 0.5), Ball("l2", 3.0)),
    *(Ball("l1", 12.0), Ball("l1", 50.0)),
)
IMAGES, FEWEST = 50, 20


@exact_float32()
def shares(path: Path, data_dir: Path | None) -> list[str]:
    """The share for each ball, as text; "not said" where too few promises can be seen."""
    model = load(path)
    silent = Output(silent=True)
    test = load_training_data(
        path, model.spec, dataset=None, data_dir=data_dir, offline=True, output=silent
    ).test
    data = DeviceSplit.of(test.first(2 * IMAGES), torch.device("cpu"))
    with torch.no_grad():
        clean = right(model(to_pixels(data.images)), data.labels)
    index = clean.nonzero().squeeze(1)[:IMAGES]
    found = [
        gradients_foretell(Runner(model, data, ball, 0, Batches(IMAGES, silent), silent), index, FEWEST)
        for ball in BALLS
    ]
    return ["not said" if f is None else f"{f.figures['images where it does']:.0%}" for f in found]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    lines = [
        "# Gradients that foretell small steps",
        "",
        "Written by `python benchmarks/first_order.py`, which says what is counted. Seed 0, the first test images.",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, no GPU used.",
        "",
        "| model | " + " | ".join(f"{ball.norm} {ball.eps:.3g}" for ball in BALLS) + " |",
        "|---" * (len(BALLS) + 1) + "|",
        *(f"| {path.stem} | {' | '.join(shares(path, arguments.data_dir))} |" for path in MODELS),
    ]
    atomic.write_text(RESULTS / "first-order.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

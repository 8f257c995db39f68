"""What two towers cost: seconds of a two-tower model beside each of its towers alone, in one run.

    python benchmarks/towers.py MIXED.safetensors [--threads 2]

Exports the model and both towers, and times ONNX Runtime on them in turn, so that whatever else the machine does meets
all three. Prints the median of each and its ratio to the robust tower.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ducat_serve.checkpoint import read_checkpoint, write_checkpoint
from ducat_serve.predictor import Predictor
from export.onnx_writer import export_onnx

_ROUNDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = _exported(arguments.model, Path(folder), arguments.threads)
        for batch in arguments.batches:
            print(f"batch {batch}, {arguments.threads} threads, median of {_ROUNDS}:")
            seconds = _timed(models, batch)
            for name, value in seconds.items():
                print(
                    f"  {name:<9} {1000 * value:8.2f} ms  {value / seconds['robust']:.2f} of the robust tower"
                )


def _exported(model: Path, folder: Path, threads: int) -> dict[str, Predictor]:
    """The model and its towers as sessions, by name."""
    spec, tensors = read_checkpoint(model)
    if spec.towers is None:
        raise SystemExit(f"{model} has no two towers")
    files = {"both": model}
    for name, tower in zip(("standard", "robust"), spec.towers, strict=True):
        prefix = f"{name}.classifier.network."
        files[name] = folder / f"{name}.safetensors"
        weights = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        write_checkpoint(files[name], weights, tower)
    predictors = {}
    for name, file in files.items():
        export_onnx(file, folder / f"{name}.onnx")
        predictors[name] = Predictor(folder / f"{name}.onnx", "cpu", threads)
    return predictors


def _timed(models: dict[str, Predictor], batch: int) -> dict[str, float]:
    """Median seconds of each model, asked in turn."""
    spec = models["both"].spec
    shape = (batch, *spec.image_size, spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model(images)
    for _ in range(_ROUNDS):
        for name, model in models.items():
            started = time.perf_counter()
            model(images)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


if __name__ == "__main__":
    main()

"""`ducat predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ducat_serve.cli.options import common, device_option
from ducat_serve.errors import DataError, missing_extra
from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.output import Output
from ducat_serve.predictor import Device, Predictions, Predictor
from ducat_serve.spec import ModelSpec

BATCH_SIZE = 32

Infer = Callable[[NDArray[np.uint8]], Predictions]


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per image."
)
@device_option
@common
def command(model: Path, images: tuple[Path, ...], top_k: int, device: Device, json: bool) -> None:
    """Predict IMAGES with MODEL: a model.onnx (torch is not needed) or a model.safetensors.

    \b
    Example:
      ducat predict model.onnx photo.jpg
      ducat predict runs/digits/model.safetensors a.png b.png --json
    """
    output = Output(json)
    spec, infer = _open(model, device, output)
    predictions: list[dict[str, Any]] = []
    for start in range(0, len(images), BATCH_SIZE):
        paths = images[start : start + BATCH_SIZE]
        answer = infer(np.stack([_read(path, spec) for path in paths]))
        answers = answer.to_json(spec.labels, top_k)
        predictions += [{"image": str(path), **entry} for path, entry in zip(paths, answers, strict=True)]
    output.table(
        f"{model} ({spec.network}, {spec.num_classes} classes)",
        ("image", "label", "confidence", "dummy mass"),
        ((p["image"], p["label"], f"{p['confidence']:.1%}", f"{p['dummy_mass']:.3f}") for p in predictions),
    )
    output.result({"model": str(model), "predictions": predictions})


def _open(model: Path, device: Device, output: Output) -> tuple[ModelSpec, Infer]:
    if model.suffix != ".onnx":
        return _open_checkpoint(model, device, output)
    predictor = Predictor(model, device=device)
    if predictor.fallback_reason:
        output.detail(f"Device: cpu; {predictor.fallback_reason}.")
    return predictor.spec, predictor


def _open_checkpoint(model: Path, device: Device, output: Output) -> tuple[ModelSpec, Infer]:
    try:
        import torch

        from ducat_serve.deployed import load
        from export.graph import DeployGraph
        from training.device import choose_device
    except ImportError as error:
        raise missing_extra(error.name or "torch", "train") from error
    raw = load(model, folded=False)
    where = choose_device(device, output)
    graph = DeployGraph(raw, raw.spec.fold).eval().to(where)

    @torch.no_grad()
    def infer(images: NDArray[np.uint8]) -> Predictions:
        logits, label, mass = (part.cpu().numpy() for part in graph(torch.from_numpy(images).to(where)))
        return Predictions(logits, label, mass)

    return raw.spec, infer


def _read(path: Path, spec: ModelSpec) -> NDArray[np.uint8]:
    try:
        return to_array(fit(decode(path.read_bytes()), spec.image_size), spec.channels)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except ImageError as error:
        raise DataError(f"{path}: {error}.", "give PNG, JPEG, WebP or BMP files") from error

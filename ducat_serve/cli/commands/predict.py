"""`ducat predict`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import compress, islice
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ducat_serve.bundled import KINDS, bundled_models, bundled_name
from ducat_serve.cli.image_arguments import ImageArgument, image_arguments
from ducat_serve.cli.network_options import import_from_option, own_network_option
from ducat_serve.cli.options import ModelPath, common, device_option
from ducat_serve.cli.prediction_output import CsvOutput, Named, print_predictions
from ducat_serve.errors import DataError, DucatError, UsageError, command_line, missing_extra
from ducat_serve.images import begins_as_image
from ducat_serve.model_file import model_in
from ducat_serve.output import Output
from ducat_serve.prediction import read_image, split_up
from ducat_serve.predictor import Device, Predictions, Predictor
from ducat_serve.regular_file import read_regular_file
from ducat_serve.spec import ModelSpec

BATCH_SIZE = 32
_MODEL_SUFFIXES = tuple(f".{kind}" for kind in KINDS)

Infer = Callable[[NDArray[np.uint8]], Predictions]


@click.command("predict")
@click.argument("model", type=ModelPath("onnx"))
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--top",
    "--top-k",
    "top_k",
    envvar=["DUCAT_PREDICT_TOP", "DUCAT_PREDICT_TOP_K"],
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Classes shown per image.",
)
@click.option("--csv", is_flag=True, help="Print CSV, a row per image as soon as it is predicted.")
@own_network_option
@import_from_option
@device_option
@common
def command(model: Path, images: tuple[str, ...], top_k: int, csv: bool, device: Device, json: bool) -> int:
    """Predict IMAGES with MODEL: a model.onnx, a bundled model (`ducat models`), a model.safetensors or a folder.

    Of a folder the model.safetensors is taken, and where there is none the model.onnx. Only a model.safetensors needs
    torch.

    IMAGES are files (PNG, JPEG, WebP, BMP; the first frame of a GIF, the first page of a TIFF), folders with all that
    is below them, patterns such as 'photos/*.jpg', or - for one image on stdin.

    Predictions go to stdout: a table on a terminal, elsewhere a line per image with tabs between image, label,
    confidence, dummy mass and the further classes. An image that cannot be read, or on which the
    model answers NaN, does not stop the others; the command then ends with exit code 4.

    \b
    Example:
      ducat predict digits-small digit.png
      ducat predict model.onnx photo.jpg
      ducat predict model.onnx photos/ --csv > predictions.csv
      ducat predict runs/digits/model.safetensors a.png 'more/*.png' --json
      curl -s https://example.org/photo.jpg | ducat predict model.onnx - --top 3
    """
    output = Output(json)
    if csv and output.as_json:
        raise UsageError("--csv and --json are two forms of the same; choose one.")
    _require_no_image(model, images)
    spec, infer = _open(model, device, output)
    table = CsvOutput(top_k, spec.num_classes) if csv else None
    found: list[Named] = []
    entries: list[dict[str, object]] = []
    failed: list[dict[str, str]] = []
    has_image = False
    for batch in _batches(image_arguments(images, output)):
        has_image |= any(image.problem is None for image in batch)
        readable, pixels = _read(batch, spec, failed, output)
        if not readable:
            continue
        readable, answer = _answered(readable, infer(np.stack(pixels)), failed, output)
        predictions = list(zip(readable, split_up(answer, spec), strict=True))
        if table is not None:
            table.write(predictions)
        elif output.as_json:
            rows = zip(readable, answer.to_json(spec, top_k), strict=True)
            entries += [{"image": name, **entry} for name, entry in rows]
        else:
            found += predictions
    if found:
        print_predictions(
            f"{bundled_name(model) or model} ({spec.network}, {spec.num_classes} classes)",
            found,
            top_k,
            output,
        )
    output.result({"model": str(model), "predictions": entries, "failed": failed})
    if failed and not has_image:
        output.fail("There was no image to predict.", "name image files, folders with some, or a pattern")
        return DataError.exit_code
    if failed:
        output.fail(
            f"{len(failed)} of IMAGES could not be predicted; they are named above.",
            "leave them out, or name images that can be opened in their place",
        )
        return DataError.exit_code
    return 0


def _require_no_image(model: Path, images: tuple[str, ...]) -> None:
    """Raise UsageError where the first argument is an image: what comes first is the model."""
    if not model.is_file() or model.suffix in _MODEL_SUFFIXES:
        return
    if not begins_as_image(read_regular_file(model, str(model), "name a model", most=12)):
        return
    models = [name for name in images if name in bundled_models() or Path(name).suffix in _MODEL_SUFFIXES]
    others = [name for name in images if name not in models[:1]]
    raise UsageError(
        f"{model} is an image, and MODEL comes first.",
        command_line("ducat", "predict", *(models[:1] or ["digits-small"]), model, *others),
    )


def _batches(images: Iterator[ImageArgument]) -> Iterator[list[ImageArgument]]:
    while batch := list(islice(images, BATCH_SIZE)):
        yield batch


def _read(
    batch: list[ImageArgument], spec: ModelSpec, failed: list[dict[str, str]], output: Output
) -> tuple[list[str], list[NDArray[np.uint8]]]:
    """The names and pixels of those that can be read; the others are named on stderr and added to ``failed``."""
    names: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for image in batch:
        try:
            pixels.append(read_image(image.read(), spec, image.name))
        except DucatError as error:
            output.warn(error.cause)
            failed.append({"image": image.name, "error": error.cause})
        else:
            names.append(image.name)
    return names, pixels


def _answered(
    names: list[str], answer: Predictions, failed: list[dict[str, str]], output: Output
) -> tuple[list[str], Predictions]:
    """Without the images on which the model says NaN or infinite, which is no class; they are added to ``failed``."""
    finite = answer.is_finite
    for name in compress(names, ~finite):
        problem = f"{name}: the model answers with NaN or infinite numbers."
        output.warn(problem)
        failed.append({"image": name, "error": problem})
    kept = Predictions(answer.logits[finite], answer.label[finite], answer.dummy_mass[finite])
    return list(compress(names, finite)), kept


def _open(model: Path, device: Device, output: Output) -> tuple[ModelSpec, Infer]:
    model = model_in(model)
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

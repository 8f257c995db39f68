"""Accuracy on corrupted images: no attack, so no worst case, but what cameras, weather and compression do."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.errors import DataError, UsageError
from ducat_serve.output import Output
from ducat_serve.report import CorruptionFamily, CorruptionReport
from training.attacks.criteria import right
from training.attacks.frozen import frozen
from training.batches import DeviceSplit, to_pixels
from training.data import DATASETS, Dataset, default_data_dir, find_archive
from training.data.cache import Split
from training.data.corruptions import SEVERITIES, CorruptedImages, Wanted, find_published, read_published
from training.data.layouts import class_folders
from training.data.trees import Tree
from training.device import exact_float32
from training.evaluation.runner import Batches


def corrupted_images(
    name: str,
    data: Dataset,
    clean: Split,
    split: Literal["val", "test"],
    data_dir: Path | None,
    *,
    count: int | None,
    seed: int,
) -> CorruptedImages:
    """The published images of a data set where they are in ``data_dir``, else ``clean`` ones corrupted by torchvision.

    Published images are of test images, so those of val are always generated.

    Args:
        name: of the data set, as `load_dataset` takes it.
        clean: the images that were chosen of the split.
        count, seed: how many of the published ones, chosen as clean ones are.

    Raises DataError where the published images are damaged, incomplete or of other classes than the data set.
    """
    folder = data_dir or default_data_dir()
    path = find_published(name, folder) if split == "test" else None
    if path is None:
        # Here, so that an evaluation that corrupts nothing does not wait for torchvision.
        from training.data.generated_corruptions import GeneratedCorruptions

        return GeneratedCorruptions(clean, seed, f"{split} images of {data.title}")
    archive = find_archive(DATASETS[name], folder)
    folders = data.class_names
    if archive is not None and (archive.is_dir() or archive.suffix == ".zip"):
        folders = class_folders(Tree(archive), data.class_names)
    height, width = clean.images.shape[1:3]
    return read_published(path, Wanted(folders, (height, width), count, seed))


@exact_float32()
@torch.no_grad()
def measure_corruptions(
    model: Deployed,
    clean: Split,
    corrupted: CorruptedImages,
    *,
    classes: int,
    artefact: Literal["checkpoint", "onnx"],
    device: torch.device,
    batch_size: int,
    seed: int,
    output: Output,
) -> CorruptionReport:
    """The share of corrupted images that the deployed function gets right; NaN is wrong.

    Raises UsageError where the model has other than ``classes`` logits, DataError where images do not fit.
    """
    width = model(to_pixels(DeviceSplit.of(Split(clean.images[:1], clean.labels[:1]), device).images)).shape[
        1
    ]
    if width != classes:
        raise UsageError(f"The model has {width} classes, and the data set {classes}.")
    batches = Batches(batch_size, output)
    families = []
    examples = 0
    with frozen(model), output.progress("Corruptions", len(corrupted.families) * SEVERITIES) as advance:
        clean_accuracy = _accuracy(model, clean, batches, device)
        for family in corrupted.families:
            found = []
            for severity in range(1, SEVERITIES + 1):
                split = corrupted.at(family, severity)
                if split.images.shape[1:] != clean.images.shape[1:]:
                    raise DataError(
                        f"{corrupted.title}: images of {family} are {list(split.images.shape[1:])}, those of the data "
                        f"set {list(clean.images.shape[1:])}."
                    )
                found.append(_accuracy(model, split, batches, device))
                examples = len(split)
                advance(1)
            output.say(f"{family:<18} " + "  ".join(f"{accuracy:6.1%}" for accuracy in found))
            families.append(
                CorruptionFamily(name=family, accuracy=float(np.mean(found)), by_severity=tuple(found))
            )
    table = np.array([family.by_severity for family in families])
    return CorruptionReport(
        source=corrupted.title,
        generated_by=corrupted.generated_by,
        artefact=artefact,
        examples=examples,
        clean_examples=len(clean),
        seed=seed,
        clean_accuracy=clean_accuracy,
        accuracy=float(table.mean()),
        by_severity=tuple(table.mean(axis=0).tolist()),
        families=tuple(families),
    )


def _accuracy(model: Deployed, split: Split, batches: Batches, device: torch.device) -> float:
    data = DeviceSplit.of(split, device)

    def work(_start: int, batch: Tensor) -> Tensor:
        return right(model(to_pixels(data.images[batch])), data.labels[batch])

    parts = batches.over(torch.arange(len(data), device=device), work)
    return float(torch.cat(parts).double().mean())

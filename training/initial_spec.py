"""The ModelSpec of a run before it has weights: what its configuration and its data say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ducat_serve.spec import ModelSpec, Normalisation
from training.config import TrainConfig
from training.data import Dataset
from training.initial import InitialWeights
from training.objectives.ducat import FOLDS


def initial_spec(config: TrainConfig, dataset: Dataset, initial: InitialWeights | None = None) -> ModelSpec:
    """No digest yet, and no path of this machine. Weights keep the normalisation that they were trained with."""
    images = dataset.train.images
    normalisation = initial.spec.normalisation if initial else _normalisation(images)
    recipe = {**config.model_dump(mode="json"), "dataset": dataset_reference(config.dataset)}
    return ModelSpec(
        network=config.network,
        num_classes=len(dataset.class_names),
        labels=dataset.class_names,
        channels=images.shape[3],
        image_size=(images.shape[1], images.shape[2]),
        normalisation=normalisation,
        fold=FOLDS[config.ducat],
        threat_model=config.threat_model,
        training={"recipe": recipe, "data": dataset.title, "data_digest": dataset.digest},
        weights_digest="",
    )


def dataset_reference(name: str) -> str:
    """A data set's name without the path that `folder:PATH` has."""
    return f"folder:{Path(name.removeprefix('folder:')).name}" if name.startswith("folder:") else name


def _normalisation(images: np.ndarray[Any, Any]) -> Normalisation:
    """Mean and standard deviation per channel of pixels in [0, 1], to 4 decimals; exact over all images."""
    means, stds = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        values = np.arange(256) / 255
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(round(mean, 4))
        stds.append(round(max(variance, 1e-8) ** 0.5, 4))
    return Normalisation(mean=tuple(means), std=tuple(stds))

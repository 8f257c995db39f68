"""Where a run starts: its ModelSpec before it has weights, and a checkpoint to take the first weights from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ducat_serve.checkpoint import checkpoint_path, read_checkpoint
from ducat_serve.errors import UsageError
from ducat_serve.pairs import widen_head
from ducat_serve.spec import ModelSpec, Normalisation
from training.config import TrainConfig
from training.data import Dataset, dataset_reference
from training.objectives.ducat import FOLDS

_HEAD = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class InitialWeights:
    """A checkpoint that a run starts from."""

    path: Path
    spec: ModelSpec
    weights: dict[str, NDArray[Any]]

    @classmethod
    def read(cls, path: Path) -> InitialWeights:
        """Raises DataError or VerificationError where the file is not a sound checkpoint."""
        file = checkpoint_path(path)
        spec, weights = read_checkpoint(file)
        return cls(file, spec, weights)

    def require_fit(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise UsageError where the run's network, classes, images or seed are others, or it would lose dummies."""
        channels, size = dataset.train.images.shape[3], dataset.train.images.shape[1:3]
        pairs = {
            "network": (self.spec.network, config.network),
            "classes": (self.spec.labels, dataset.class_names),
            "channels": (self.spec.channels, channels),
            "image size": (tuple(self.spec.image_size), tuple(size)),
        }
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise UsageError(f"{self.path} has other {what}: {_short(theirs)}, not {_short(ours)}.")
        recipe = self._recipe_on(dataset)
        seed, fraction = recipe.get("seed"), recipe.get("val_fraction")
        if isinstance(seed, int) and (seed, fraction) != (config.seed, config.val_fraction):
            also = "" if fraction is None else f" --val-fraction {fraction}"
            raise UsageError(
                f"{self.path} was trained on images that are held out as val here: the seed chooses them.",
                f"train with --seed {seed}{also}",
            )
        if self.spec.fold != "none" and config.ducat == "off":
            raise UsageError(
                f"{self.path} has dummy classes, which --ducat off has not.", "choose --ducat paper or folded"
            )

    def _recipe_on(self, dataset: Dataset) -> dict[str, Any]:
        """What it was trained with, if on these very data; else nothing."""
        recipe = self.spec.training.get("recipe")
        if self.spec.data_digest != dataset.digest or not isinstance(recipe, dict):
            return {}
        return recipe

    def tensors(self, spec: ModelSpec) -> dict[str, NDArray[Any]]:
        """The weights as the network of ``spec`` takes them: with a dummy beside every class if it has dummies."""
        if self.spec.num_logits == spec.num_logits:
            return self.weights
        weight, bias = (torch.from_numpy(self.weights[name]) for name in _HEAD)
        wide = (tensor.numpy() for tensor in widen_head(weight, bias))
        return {**self.weights, **dict(zip(_HEAD, wide, strict=True))}


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "..."


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

"""Where a run starts: its ModelSpec before it has weights, and a checkpoint to take the first weights from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ducat_serve.checkpoint import checkpoint_path, read_checkpoint
from ducat_serve.deployed import Classifier
from ducat_serve.errors import UsageError
from ducat_serve.networks import is_foreign
from ducat_serve.networks.foreign import describe
from ducat_serve.networks.head import head_name
from ducat_serve.pairs import widen_head
from ducat_serve.spec import ModelSpec, Normalisation
from training.config import TrainConfig
from training.data import Dataset, dataset_reference, held_out_splits
from training.data.cache import Split
from training.objectives.ducat import FOLDS

_CHUNK = 256  # images that are counted at a time


class StartWeights(Protocol):
    """What a run starts from instead of fresh weights: a run of ours, or weights of others (`pretrained.py`).

    ``source`` is what messages call them, ``digest`` their SHA-256, ``network`` the one that they belong to where they
    say that.
    """

    @property
    def source(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def network(self) -> str | None: ...

    def require_fit(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise UsageError where they cannot be what this run starts from."""

    def doubt(self, config: TrainConfig, dataset: Dataset) -> str | None:
        """What makes the figures of a run that starts from them doubtful, as a sentence; None for nothing."""

    def tensors(self, classifier: Classifier) -> dict[str, NDArray[Any]]:
        """All tensors as ``classifier`` takes them. Raises UsageError where they do not fit it."""

    def normalisation_for(self, classifier: Classifier) -> Normalisation | None:
        """The normalisation that they were trained with; None where they do not say."""

    def notes(self, classifier: Classifier) -> tuple[str, ...]:
        """Sentences for people: what is taken from where."""


@dataclass(frozen=True)
class InitialWeights:
    """A checkpoint of ours that a run starts from."""

    path: Path
    spec: ModelSpec
    weights: dict[str, NDArray[Any]]

    @property
    def source(self) -> str:
        return str(self.path)

    @property
    def digest(self) -> str:
        return self.spec.weights_digest

    @property
    def network(self) -> str:
        return self.spec.network

    def normalisation_for(self, classifier: Classifier) -> Normalisation:  # noqa: ARG002
        return self.spec.normalisation

    def notes(self, classifier: Classifier) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    @classmethod
    def read(cls, path: Path) -> InitialWeights:
        """Raises DataError or VerificationError where the file is not a sound checkpoint."""
        file = checkpoint_path(path)
        spec, weights = read_checkpoint(file)
        return cls(file, spec, weights)

    def require_fit(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise UsageError where the run's network, classes, images or seed are others, or it would lose dummies."""
        channels, size = dataset.train.shape[3], dataset.train.shape[1:3]
        pairs = {
            "network": (self.spec.network, config.network),
            "classes": (self.spec.labels, dataset.class_names),
            "channels": (self.spec.channels, channels),
            "image size": (tuple(self.spec.image_size), tuple(size)),
        }
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise UsageError(f"{self.path} has other {what}: {_short(theirs)}, not {_short(ours)}.")
        self._require_same_held_out(config, dataset)
        if self.spec.fold != "none" and config.ducat == "off":
            raise UsageError(
                f"{self.path} has dummy classes, which --ducat off has not.", "choose --ducat paper or folded"
            )

    def doubt(self, config: TrainConfig, dataset: Dataset) -> str | None:
        recipe = self._recipe_on(config, dataset)
        return unknown_images(self.source) if recipe and not isinstance(recipe.get("seed"), int) else None

    def _require_same_held_out(self, config: TrainConfig, dataset: Dataset) -> None:
        recipe = self._recipe_on(config, dataset)
        if not isinstance(recipe.get("seed"), int):
            return
        names = _choosing(held_out_splits(config.dataset, config.selection))
        theirs, ours = (
            {name: values.get(name) or None for name in names} for values in (recipe, dict(config))
        )
        if theirs == ours:
            self._require_same_data(config, dataset)
            return
        given = {name: value for name, value in theirs.items() if value is not None}
        if "seed" in names:  # a seed of 0 counts as none above
            given = {"seed": recipe["seed"], **given}
        left_out = [_option(name) for name in names if ours[name] is not None and name not in given]
        raise UsageError(
            f"{self.path} was trained on images that are held out as val or test here: the seed and the fractions "
            "choose them.",
            f"train with {' '.join(_option(name, value) for name, value in given.items())}"
            + (f", and without {' and '.join(left_out)}" if left_out else ""),
        )

    def _require_same_data(self, config: TrainConfig, dataset: Dataset) -> None:
        """The same seed and fractions hold out other images of a data set that has changed."""
        theirs = self.spec.data_digest
        if theirs in (None, dataset.digest) or not held_out_splits(config.dataset, config.selection):
            return
        raise UsageError(
            f"{self.path} was trained on other images by the name of this data set (digest {str(theirs)[:12]}, here "
            f"{dataset.digest[:12]}), perhaps on some that are held out as val or test here.",
            "give the images that it was trained on, or a folder that names its val and test images itself",
        )

    def _recipe_on(self, config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
        """What it was trained with, if on these very data, or on another selection of them; else nothing."""
        recipe = self.spec.training.get("recipe")
        if not isinstance(recipe, dict):
            return {}
        is_same = self.spec.data_digest == dataset.digest or recipe.get("dataset") == dataset_reference(
            config.dataset
        )
        return recipe if is_same else {}

    def tensors(self, classifier: Classifier) -> dict[str, NDArray[Any]]:
        """The weights as ``classifier`` takes them: with a dummy beside every class if it has dummies.

        Raises UsageError where dummies cannot be added, to a head without a bias.
        """
        if self.spec.num_logits == classifier.spec.num_logits:
            return self.weights
        head = head_name(classifier.network)
        names = (f"{head}.weight", f"{head}.bias")
        if names[1] not in self.weights:
            raise UsageError(
                f"{self.path}: its head '{head}' has no bias, so no dummies can be added to it.",
                "--ducat off",
            )
        weight, bias = (torch.from_numpy(self.weights[name]) for name in names)
        wide = (tensor.numpy() for tensor in widen_head(weight, bias))
        return {**self.weights, **dict(zip(names, wide, strict=True))}


def unknown_images(source: str) -> str:
    """The doubt about weights that are for this data set and were trained on nobody knows which images of it."""
    return (
        f"{source} does not record which images it was trained on: it may have learnt images that are held out as val "
        "or test here, and then accuracies on them are overstated."
    )


def _choosing(held_out: Collection[str]) -> tuple[str, ...]:
    """The settings that choose the images which we hold out: nothing where the data set names them itself."""
    of_val = ("seed", "val_fraction") if "val" in held_out else ()
    of_test = ("test_fraction",) if "test" in held_out else ()
    return (*of_val, *of_test, "skip_broken") if held_out else ()


def _option(name: str, value: object = True) -> str:
    """A setting as the command line has it."""
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag} {value}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "..."


def initial_spec(config: TrainConfig, dataset: Dataset) -> ModelSpec:
    """No digest yet, and no path of this machine; normalised as start weights or a network of others ask for.

    Raises UsageError where a network of others cannot be built, or does not fit the images.
    """
    _, height, width, channels = dataset.train.shape
    size = (height, width)
    fold = FOLDS[config.ducat]
    outputs = len(dataset.class_names) * (1 if fold == "none" else 2)
    described = None
    if is_foreign(config.network):
        described = describe(config.network, channels=channels, image_size=size, outputs=outputs)
    recipe = {**config.model_dump(mode="json"), "dataset": dataset_reference(config.dataset)}
    normalisation = config.normalisation
    if normalisation is None:
        normalisation = described.normalisation if described else _normalisation(dataset.train)
    return ModelSpec(
        network=config.network,
        network_source=described.source if described else None,
        num_classes=len(dataset.class_names),
        labels=dataset.class_names,
        channels=channels,
        image_size=size,
        normalisation=normalisation,
        fold=fold,
        threat_model=config.threat_model,
        training={"recipe": recipe, "data": dataset.title, "data_digest": dataset.digest},
        weights_digest="",
    )


def normalised_as(
    start: StartWeights, classifier: Classifier, config: TrainConfig
) -> tuple[TrainConfig, Classifier]:
    """The run with the normalisation of its start weights, where that is another.

    It becomes a part of the configuration, since a resumed run no longer has the weights to ask.
    """
    wanted = start.normalisation_for(classifier)
    spec = classifier.spec
    if wanted is None or wanted == spec.normalisation:
        return config, classifier
    config = config.model_copy(update={"normalisation": wanted})
    recipe = {**spec.recipe, "normalisation": wanted.model_dump(mode="json")}
    update = {"normalisation": wanted, "training": {**spec.training, "recipe": recipe}}
    return config, Classifier(classifier.network, spec.model_copy(update=update))


def _normalisation(split: Split) -> Normalisation:
    """Mean and standard deviation per channel of pixels in [0, 1], to 4 decimals; exact over all images."""
    all_counts = np.zeros((split.shape[3], 256), np.int64)
    for start in range(0, len(split), _CHUNK):  # they may be more than memory holds
        chunk = split.at(slice(start, start + _CHUNK))
        for channel, counts in enumerate(all_counts):
            counts += np.bincount(chunk[..., channel].reshape(-1), minlength=256)
    means, stds = [], []
    values = np.arange(256) / 255
    for counts in all_counts:
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(round(mean, 4))
        stds.append(round(max(variance, 1e-8) ** 0.5, 4))
    return Normalisation(mean=tuple(means), std=tuple(stds))

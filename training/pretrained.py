"""`--pretrained`: weights of others that a run starts from, for other classes or another data set.

`--initial-checkpoint` goes on with a run of ours: the same network, classes and held-out images. `--pretrained` begins
another task: it takes the body of a network, and its head only where it fits. Both are start weights (`initial.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ducat_serve.checkpoint import checkpoint_path, file_sha256, read_checkpoint, weights_digest
from ducat_serve.deployed import Classifier
from ducat_serve.errors import DataError, DucatError, UsageError, missing_extra
from ducat_serve.networks.foreign import normalisation_of_weights
from ducat_serve.networks.head import head_name
from ducat_serve.spec import METADATA_KEY, Normalisation
from training.config import TrainConfig
from training.data import Dataset, dataset_reference
from training.initial import unknown_images
from training.state_dict_file import StateDict, read_state_dict
from training.weight_matching import Matched, match

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Pretrained:
    """Weights of others.

    Args:
        source: what they are called in messages, the ModelSpec and the card: a name of a file, never its path.
        digest: SHA-256 of the file, or over the tensors where a package fetched them.
        licence: as the user or the package says, else "unknown".
        declared: the normalisation that they come with, unless the file itself holds one.
        data_digest: of the data that a checkpoint of ours was trained on.
        trained_on: the name and the classes of these data, or of those that an imported checkpoint is for.
        is_imported: whether it is a checkpoint of a network that others have trained.
        has_dummies: whether their head answers classes and dummies, as that of a checkpoint of ours may.
    """

    source: str
    digest: str
    state: StateDict
    licence: str = UNKNOWN
    declared: Normalisation | None = None
    network: str | None = None
    data_digest: str | None = None
    trained_on: tuple[object, tuple[str, ...]] | None = None
    is_imported: bool = False
    has_dummies: bool = False

    @classmethod
    def read(cls, file: Path, licence: str | None = None) -> Pretrained:
        """The weights in a file; of a checkpoint of ours, or the run folder that holds it, as well.

        Raises DataError or VerificationError as `read_state_dict` and `read_checkpoint` do.
        """
        file = checkpoint_path(file)
        if _is_ours(file):
            spec, arrays = read_checkpoint(file)
            state = StateDict({name: torch.from_numpy(array) for name, array in arrays.items()})
            return cls(
                file.name,
                file_sha256(file),
                state,
                licence or UNKNOWN,
                spec.normalisation,
                spec.network,
                spec.data_digest,
                (spec.recipe.get("dataset"), spec.labels),
                is_imported=spec.is_imported,
                has_dummies=spec.fold != "none",
            )
        state = read_state_dict(file)
        for name, tensor in state.tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise DataError(
                    f"{file}: '{name}' holds NaN or infinite numbers; these weights are of no use."
                )
        return cls(file.name, file_sha256(file), state, licence or UNKNOWN)

    def require_fit(self, config: TrainConfig, dataset: Dataset) -> None:
        """Raise UsageError for weights of a run on the same data set, whose train images may be held out here."""
        if self._is_of(config, dataset) and not self.is_imported:
            raise UsageError(
                f"{self.source} was trained on this data set, perhaps on images that are held out as val or test here.",
                "go on with it by --initial-checkpoint, which holds out the same images",
            )

    def doubt(self, config: TrainConfig, dataset: Dataset) -> str | None:
        """Of an imported checkpoint for this data set nobody can say which of its images are to be held out."""
        is_doubtful = self.is_imported and self._is_of(config, dataset)
        return unknown_images(self.source) if is_doubtful else None

    def _is_of(self, config: TrainConfig, dataset: Dataset) -> bool:
        """Whether they are of this data set: its digest tells the very same one, name and classes another selection."""
        same = self.data_digest is not None and self.data_digest == dataset.digest
        return same or self.trained_on == (dataset_reference(config.dataset), dataset.class_names)

    def tensors(self, classifier: Classifier) -> dict[str, NDArray[Any]]:
        """The weights as ``classifier`` takes them, with its own head where theirs does not fit.

        Raises UsageError for weights of another architecture.
        """
        matched = self._matched(classifier)
        return {name: tensor.contiguous().numpy() for name, tensor in matched.tensors.items()}

    def notes(self, classifier: Classifier) -> tuple[str, ...]:
        """Sentences: what was taken from where, and what was not."""
        place = "".join(f"['{key}']" for key in self.state.place)
        found = (f"{self.source}{place}, SHA-256 {self.digest[:12]}, licence {self.licence}",) + (
            ("averaged weights are taken where there are others too",) if self.state.averaged else ()
        )
        return (*found, *self._matched(classifier).notes)

    def brings_head(self, classifier: Classifier) -> bool:
        """Whether the head is theirs too, and no fresh one. Raises as `tensors`."""
        return self._matched(classifier).brings_head

    def normalisation_for(self, classifier: Classifier) -> Normalisation | None:
        """What the file itself holds, else what it came with, else what such weights need; None where none says it."""
        found = self._matched(classifier).normalisation or self.declared
        return found or normalisation_of_weights(classifier.spec.network)

    def _matched(self, classifier: Classifier) -> Matched:
        network = classifier.network
        return match(
            self.state.tensors,
            network.state_dict(),
            head_name(network),
            self.source,
            from_dummies=self.has_dummies,
            to_dummies=classifier.spec.fold != "none",
        )


def _is_ours(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors" or not file.is_file():
        return False
    try:
        with safe_open(file, framework="numpy") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError):  # said by whoever reads it
        return False


def package_weights(network: str, *, offline: bool, licence: str | None = None) -> Pretrained:
    """The weights that torchvision or timm offers for a network, fetched by its own code.

    Raises:
        UsageError: a network that has none. DataError: they cannot be fetched, or ``offline`` forbids it.
    """
    library, _, name = network.partition(":")
    if library == "torchvision":
        return _of_torchvision(network, name, offline, licence)
    if library == "timm":
        return _of_timm(network, name, offline, licence)
    raise UsageError(
        f"{network} has no weights of its own.",
        "name a file, --pretrained FILE, or a network of torchvision or timm: --network torchvision:resnet50",
    )


def _of_torchvision(network: str, name: str, offline: bool, licence: str | None) -> Pretrained:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UsageError(
            f"torchvision has no network '{name}'.", "ducat train --network torchvision:resnet50"
        )
    offered = list(models.get_model_weights(name))
    if not offered:
        raise UsageError(f"torchvision offers no weights for {name}.", "name a file: --pretrained FILE")
    weights = models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if offline and not file.is_file():
        raise _forbidden(network, f"put {file.name} into {file.parent}, drop --offline, or name a file")
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # of a download: of the network, the disk, or a digest that is another
        raise _not_fetched(network, error) from error
    if file.is_file():
        _require_digest(file)
    preset = weights.transforms()
    normalisation = normalisation_of_weights(network)
    if normalisation is None:
        normalisation = Normalisation(mean=tuple(preset.mean), std=tuple(preset.std))
    return _fetched(network, f"torchvision {weights}", state, licence, normalisation)


def _require_digest(file: Path) -> None:
    """torch checks the digest that a name ends in only as it downloads: a file that was there may be another."""
    wanted = file.stem.rpartition("-")[2]
    if file_sha256(file).startswith(wanted):
        return
    raise DataError(
        f"{file} is damaged: its SHA-256 does not begin with {wanted}.",
        "delete it, and start again without --offline",
    )


def _of_timm(network: str, name: str, offline: bool, licence: str | None) -> Pretrained:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm") from error
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(f"timm has no network '{name}'.", "timm.list_models() lists them")
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UsageError(f"timm offers no weights for {name}.", "name a file: --pretrained FILE")
    if offline:
        raise DataError(
            f"timm asks the network for the weights of {network}, be they on this machine or not, and --offline "
            "forbids to download them.",
            "set HF_HUB_OFFLINE=1 instead of --offline where they are in the cache of Hugging Face, or name a file: "
            "--pretrained FILE",
        )
    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        raise _not_fetched(network, error) from error
    normalisation = Normalisation(mean=tuple(config.mean), std=tuple(config.std))
    tag = f"timm {name}" if "." in name or not config.tag else f"timm {name}.{config.tag}"
    return _fetched(network, tag, state, licence or config.license, normalisation)


def _fetched(
    network: str, source: str, state: Any, licence: str | None, normalisation: Normalisation
) -> Pretrained:
    digest = weights_digest({name: tensor.numpy() for name, tensor in state.items()})
    return Pretrained(source, digest, StateDict(dict(state)), licence or UNKNOWN, normalisation, network)


def _forbidden(network: str, remedy: str) -> DucatError:
    return DataError(
        f"The weights of {network} are not on this machine, and --offline forbids to download them.", remedy
    )


def _not_fetched(network: str, error: Exception) -> DataError:
    return DataError(
        f"The weights of {network} could not be fetched: {error}.",
        "try again later, or name a file: --pretrained FILE",
    )

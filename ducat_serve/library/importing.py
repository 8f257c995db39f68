"""`ducat_serve.import_model`: a network of others, with its weights, becomes a checkpoint like every other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from ducat_serve.atomic import require_writable
from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.deployed import Classifier, Deployed, build_classifier, load_weights, numpy_weights
from ducat_serve.errors import UsageError
from ducat_serve.library.training import train_config
from ducat_serve.networks import is_foreign, is_own
from ducat_serve.output import Output
from ducat_serve.spec import IMPORTED, ModelSpec
from training.batches import DeviceSplit, to_pixels
from training.config import TrainConfig
from training.data import Dataset, dataset_reference
from training.data.cache import Split
from training.data.splits import choose_images
from training.distributed.processes import ProcessGroup
from training.initial import initial_spec, normalised_as
from training.pretrained import Pretrained, package_weights
from training.run.dataset import load_run_data

_LOOKED_AT = 200  # val images
_BATCH = 20
_NEAR_CHANCE = 1.5


@dataclass(frozen=True)
class ImportedModel:
    """A checkpoint that was written, and its clean accuracy on some val images, in [0, 1]."""

    model: Path
    spec: ModelSpec
    val_images: int
    val_accuracy: float


def import_model(
    network: str,
    dataset: str,
    *,
    out: str | Path,
    pretrained: str | Path | None = None,
    licence: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    output: Output | None = None,
    **settings: Any,
) -> ImportedModel:
    """Make a checkpoint of a network that others have trained, as `ducat import` does. Nothing is trained.

    Args:
        network: `torchvision:NAME`, `timm:NAME` or `package.module:factory`, with one output per class. Modules of
            your own need `ducat_serve.networks.allowed.allow` first.
        dataset: whose classes, in their order, and whose images it is for, as for `train`.
        out: the checkpoint to write, which must not be there yet.
        pretrained: a .safetensors or .pth file, or "" for what torchvision or timm offers; None for the weights that a
            factory of your own brings.
        licence: of the weights; "unknown" unless given, or unless timm says it.
        settings: `image_size`, and the threat model that the model is meant for: `norm` and `eps`. Those of the data
            set's recipe unless given.

    Raises:
        UsageError: a network of ours; weights that do not fit it, its head included; a factory that brings none.
        DataError: missing or corrupt data or weights.

    Examples:
        >>> imported = import_model("nets:make", "cifar10", out="imported/model.safetensors", eps="8/255")
        >>> imported.val_accuracy, imported.spec.network
        (0.87, 'nets:make')
    """
    if unknown := sorted(set(settings) - {"image_size", "norm", "eps"}):
        raise UsageError(
            f"{', '.join(unknown)}: nothing is trained, so these settings say nothing.",
            "leave them out; image_size, norm and eps are recorded",
        )
    output, target = output or Output(), Path(out)
    if target.exists():
        raise UsageError(f"{target} exists already; nothing was written.", "choose another --out")
    require_writable(target)
    config = train_config(dataset, network=network, ducat="off", precision="float32", **settings)
    if not is_foreign(config.network):
        raise UsageError(
            f"{config.network} is a network of ours.",
            "go on with a run of ours: ducat train --initial-checkpoint FILE",
        )
    weights = _weights(config.network, pretrained, licence, offline=offline)
    folder = None if data_dir is None else Path(data_dir)
    data = load_run_data(config, folder, offline, output, ProcessGroup())
    classifier = _classifier(config, data, weights, output)
    accuracy, images = _accuracy(classifier, data.val)
    spec = _recorded(classifier.spec, config, data, weights)
    tensors = numpy_weights(classifier)
    spec = spec.model_copy(update={"weights_digest": weights_digest(tensors)})
    write_checkpoint(target, tensors, spec)
    if accuracy < _NEAR_CHANCE * _share_of_most_common(data.val):
        output.warn(
            f"it gets {accuracy:.1%} of {images} val images right, hardly more than chance. Are its classes in another "
            f"order than {', '.join(spec.labels[:3])}, ..., its images of another size, or its mean and deviation "
            "missing?"
        )
    return ImportedModel(target, spec, images, accuracy)


def _weights(
    network: str, pretrained: str | Path | None, licence: str | None, *, offline: bool
) -> Pretrained | None:
    if pretrained is not None and str(pretrained):
        return Pretrained.read(Path(pretrained), licence)
    if pretrained is not None:
        return package_weights(network, offline=offline, licence=licence)
    if not is_own(network):
        from ducat_serve.networks.foreign import require_listed

        require_listed(network)
        raise UsageError(
            f"{network} has no weights yet.",
            "--pretrained FILE, or --pretrained alone for those that its package offers",
        )
    return None


def _classifier(config: TrainConfig, data: Dataset, weights: Pretrained | None, output: Output) -> Classifier:
    """The network with its weights, in eval mode. Raises UsageError where a part of it would be left random."""
    spec = initial_spec(config, data)
    classifier = build_classifier(spec)
    if weights is None:
        _require_own_weights(classifier, build_classifier(spec))
    else:
        _, classifier = normalised_as(weights, classifier, config)
        if not weights.brings_head(classifier):
            raise UsageError(
                f"The head of {weights.source} does not fit the {spec.num_classes} classes of {data.title}, and a "
                "fresh one would know nothing.",
                "train it: ducat train --pretrained",
            )
        load_weights(classifier, weights.tensors(classifier), weights.source)
        output.say(f"Weights: {'; '.join(weights.notes(classifier))}.")
    return classifier.eval().requires_grad_(False)


def _require_own_weights(classifier: Classifier, again: Classifier) -> None:
    """Raise UsageError where a factory makes other weights each time it is called, or its head had to be replaced."""
    first, second = classifier.state_dict(), again.state_dict()
    changed = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    if changed:
        raise UsageError(
            f"{classifier.spec.network} brings no weights for '{changed[0].removeprefix('network.')}': they are others "
            "at each call.",
            "name the file that holds them: --pretrained FILE",
        )


@torch.no_grad()
def _accuracy(classifier: Classifier, val: Split) -> tuple[float, int]:
    """Clean accuracy on some val images, to see whether classes, images and normalisation are those it was made for."""
    chosen, _ = choose_images(val, _LOOKED_AT, 0)
    split = DeviceSplit.of(chosen, torch.device("cpu"))
    model = Deployed(classifier, "none").eval()
    right = 0
    for start in range(0, len(split), _BATCH):
        part = slice(start, start + _BATCH)
        answers = model(to_pixels(split.images[part])).argmax(dim=1)
        right += int((answers == split.labels[part]).sum())
    return right / len(split), len(split)


def _share_of_most_common(val: Split) -> float:
    counts = torch.bincount(torch.from_numpy(val.labels))
    return counts.max().item() / counts.sum().item()


def _recorded(spec: ModelSpec, config: TrainConfig, data: Dataset, weights: Pretrained | None) -> ModelSpec:
    """The spec without anything that would say that we trained it, or on what."""
    recipe: dict[str, JsonValue] = {
        "method": IMPORTED,
        "dataset": dataset_reference(config.dataset),
        "image_size": config.image_size,
    }
    if weights is not None:
        recipe |= {
            "pretrained": weights.source,
            "initial_weights": weights.digest,
            "pretrained_licence": weights.licence,
        }
    return spec.model_copy(update={"training": {"recipe": recipe, "data": data.title}})

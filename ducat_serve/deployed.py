"""The deployed function as a torch module, and `load`, which builds it from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import checkpoint_path, read_checkpoint
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.networks import create_network, is_foreign, is_own
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold, ModelSpec


class Classifier(nn.Module):
    """Normalisation and network: pixels in [0, 1] to the raw logits (2C with dummies, C without)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        normalisation = spec.normalisation
        # Not persistent: these values belong to the ModelSpec, not to the weights.
        for name, values in (("pixel_mean", normalisation.mean), ("pixel_std", normalisation.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to raw logits [N, 2C] or [N, C]. Raises UsageError for others."""
        _require_images(images, self.pixel_mean.shape[1])
        logits: Tensor = self.network((images - self.pixel_mean) / self.pixel_std)
        return logits


class Deployed(nn.Module):
    """The deployed function: pixels in [0, 1] to C logits through a fold.

    Args:
        classifier: float images [N, channels, H, W] in [0, 1] to raw logits, [N, 2C] or, for the fold "none", [N, C].
        fold: how its logits are folded; of a model of ours the fold that its ModelSpec names.
    """

    def __init__(self, classifier: nn.Module, fold: Fold) -> None:
        super().__init__()
        self.classifier = classifier
        self.fold: Fold = fold

    @property
    def spec(self) -> ModelSpec:
        """What the checkpoint says about itself. Raises AttributeError for a classifier that is not one of ours."""
        if not isinstance(self.classifier, Classifier):
            raise AttributeError(f"{type(self.classifier).__name__} has no ModelSpec")
        return self.classifier.spec

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to logits [N, C]. Raises UsageError for others."""
        return fold_logits(self.classifier(images), self.fold)


def _require_images(images: Tensor, channels: int) -> None:
    """Raise UsageError for what the normalisation would broadcast or convert without a word, to logits of no image.

    Only the shape and the kind are looked at, never a value: this runs in every step of an attack.
    """
    if images.ndim == 4 and images.shape[1] == channels and images.is_floating_point():
        return
    if not images.is_floating_point():
        next_step = "model(images.float() / 255), for pixels from 0 to 255"
    elif images.ndim == 3 and images.shape[0] == channels:
        next_step = "model(image[None]), for a batch of one image"
    elif images.ndim == 4 and images.shape[1] == 1:
        next_step = f"model(images.expand(-1, {channels}, -1, -1)), for images in shades of grey"
    elif images.ndim == 4 and images.shape[3] == channels:
        next_step = "model(images.permute(0, 3, 1, 2)), for images with their channels last"
    else:
        next_step = f"give a batch of images with {channels} channels"
    kind = str(images.dtype).removeprefix("torch.")
    raise UsageError(
        f"The model takes float images [N, {channels}, H, W] in [0, 1], not {kind} {list(images.shape)}.",
        next_step,
    )


# Whoever traces a classifier gets one call of it, and no branch on a tensor that is not there yet.
torch.fx.wrap("_require_images")


def towers_of(model: Deployed) -> TwoTowers | None:
    """Both towers of a two-tower model; None for every other model."""
    network = model.classifier.network if isinstance(model.classifier, Classifier) else model.classifier
    return network if isinstance(network, TwoTowers) else None


@overload
def load(path: str | Path, *, folded: Literal[True] = True) -> Deployed: ...


@overload
def load(path: str | Path, *, folded: Literal[False]) -> Classifier: ...


def load(path: str | Path, *, folded: bool = True) -> Deployed | Classifier:
    """Load a checkpoint as a torch module in eval mode, its weights frozen; its ModelSpec is ``.spec``.

    Args:
        path: a `model.safetensors` written by `ducat train`, the run folder that holds it, or, as text, the name of
            a bundled model (`ducat models`).
        folded: True gives the deployed function (C logits); False the raw logits (2C with dummies).

    Raises:
        DataError: missing, truncated, or not a safetensors file; a bundled model that was changed.
        UsageError: the name of a bundled model and of a file or folder here.
        VerificationError: wrong schema, digest or tensor shapes; a network of the user's own that nobody allowed
            (`ducat_serve.networks.allowed`).

    Examples:
        >>> model = load("runs/digits/model.safetensors")
        >>> model(torch.rand(4, 3, 8, 8)).shape, model.spec.labels[:2]
        (torch.Size([4, 10]), ('0', '1'))
    """
    path = checkpoint_path(model_path(path, "safetensors"))
    spec, tensors = read_checkpoint(path)
    try:
        with _without_memory(spec):  # a ModelSpec can ask for a head that no machine could hold
            _require_fit(build_classifier(spec), tensors, str(path))
        classifier = build_classifier(spec)
    except UsageError as error:
        next_step = (
            error.next_step
            if any(is_foreign(part.network) for part in _parts(spec))
            else "install a newer ducat-serve"
        )
        raise VerificationError(f"{path}: {error.cause}", next_step) from error
    load_weights(classifier, tensors, str(path))
    model = Deployed(classifier, spec.fold) if folded else classifier
    return model.eval().requires_grad_(False)


def build_classifier(spec: ModelSpec) -> Classifier:
    """The classifier that a spec describes, with fresh weights."""
    if spec.towers is not None:
        standard, robust = (Deployed(build_classifier(tower), tower.fold) for tower in spec.towers)
        return Classifier(TwoTowers(standard, robust), spec)
    network = create_network(
        spec.network, channels=spec.channels, image_size=spec.image_size, outputs=spec.num_logits
    )
    return Classifier(network, spec)


def parameter_count(spec: ModelSpec) -> int:
    """How many parameters the network of a spec has; statistics of BatchNorm are none."""
    with _without_memory(spec):  # shapes only
        return sum(parameter.numel() for parameter in build_classifier(spec).parameters())


def _without_memory(spec: ModelSpec) -> AbstractContextManager[object]:
    """Tensors that are made in it have shapes and no memory; those of somebody's own code are made as they are."""
    return nullcontext() if any(is_own(part.network) for part in _parts(spec)) else torch.device("meta")


def _parts(spec: ModelSpec) -> tuple[ModelSpec, ...]:
    """The specs of the networks of a model: its own, or those of its towers."""
    return spec.towers or (spec,)


def load_weights(classifier: Classifier, tensors: Mapping[str, NDArray[Any]], source: str) -> None:
    """Copy checkpoint tensors into a classifier.

    Raises:
        VerificationError: a tensor is missing, unexpected, or of another shape or dtype; it is named.
    """
    _require_fit(classifier, tensors, source)
    classifier.network.load_state_dict(
        {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    )


def _require_fit(classifier: Classifier, tensors: Mapping[str, NDArray[Any]], source: str) -> None:
    network = classifier.network.state_dict()
    expected = {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in network.items()}
    found = {name: (array.shape, array.dtype.name) for name, array in tensors.items()}
    wrong = sorted(set(expected) ^ set(found))
    wrong += sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    if wrong:
        first = wrong[0]
        have, want = found.get(first, ("missing", "")), expected.get(first, ("none", ""))
        part = 0 if have[0] != want[0] else 1
        raise VerificationError(
            f"{source}: {len(wrong)} tensors do not fit the network; '{first}' is {have[part]}, "
            f"expected {want[part]}."
        )


def numpy_weights(classifier: Classifier) -> dict[str, NDArray[Any]]:
    """The network's tensors as they go into a checkpoint: contiguous arrays on the CPU."""
    state = classifier.network.state_dict()
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in state.items()}

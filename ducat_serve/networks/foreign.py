"""Networks of others by name: torchvision's, timm's, and those of the user's own.

All take normalised images [N, channels, H, W] and return raw logits [N, outputs]; normalisation is put before them by
`ducat_serve.deployed.Classifier`, with the mean and deviation that the network was made for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ducat_serve.errors import UsageError, missing_extra, unknown_name
from ducat_serve.networks import LIBRARIES, own
from ducat_serve.spec import NetworkSource, Normalisation

# What nearly all networks of torchvision were trained with.
_IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Their weights are older, and expect pixels in [-1, 1]. torchvision's transforms name the others' all the same: with
# weights, these networks scale their inputs again by themselves (`transform_input`), which ours do not.
_OLD_WEIGHTS = ("torchvision:googlenet", "torchvision:inception_v3")
_PROBES = 2


def create(name: str, *, channels: int, image_size: tuple[int, int], outputs: int) -> nn.Module:
    """Build a network of others with fresh weights.

    Args:
        name: `torchvision:NAME`, `timm:NAME` or `package.module:factory`.
        image_size: (H, W); networks that are made for one size are made for this one.
        outputs: width of the head, which is made anew.

    Raises:
        UsageError: an unknown name, a size or number of channels that the network cannot take, a factory that fails.
        DucatError: timm is not installed.
    """
    library, _, rest = name.partition(":")
    if library in LIBRARIES:
        return _call(library, rest, channels, image_size, outputs).network()
    return own.create(name, channels=channels, image_size=image_size, outputs=outputs)


@dataclass(frozen=True)
class Description:
    """What a ModelSpec says of a network of others."""

    source: NetworkSource
    normalisation: Normalisation


def describe(name: str, *, channels: int, image_size: tuple[int, int], outputs: int) -> Description:
    """Where a network comes from, and what its images are normalised by. Raises as `create`."""
    network = create(name, channels=channels, image_size=image_size, outputs=outputs)
    require_logits(network, name, channels=channels, image_size=image_size, outputs=outputs)
    library, _, rest = name.partition(":")
    if library not in LIBRARIES:
        return Description(own.source(name, outputs), own.normalisation(network, channels))
    call = _call(library, rest, channels, image_size, outputs)
    recorded = NetworkSource(
        package=library, version=importlib.metadata.version(library), rebuild=call.in_words()
    )
    if library == "torchvision":
        return Description(recorded, _IMAGENET)
    config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    mean, std = (tuple(float(v) for v in config[key])[:channels] for key in ("mean", "std"))
    return Description(recorded, Normalisation(mean=mean, std=std))


def normalisation_of_weights(name: str) -> Normalisation | None:
    """What weights for a network were made for, where that is not what `describe` says of the network."""
    half = (0.5, 0.5, 0.5)
    return Normalisation(mean=half, std=half) if name in _OLD_WEIGHTS else None


@torch.no_grad()
def require_logits(
    network: nn.Module, name: str, *, channels: int, image_size: tuple[int, int], outputs: int
) -> None:
    """Raise UsageError where the network does not turn images of this size into logits [N, outputs].

    It is tried in train mode and in eval mode, since some networks return more in one of them. Its weights and
    statistics stay as they are.
    """
    images = torch.zeros(_PROBES, channels, *image_size)
    size = f"{image_size[0]}x{image_size[1]}"
    was_training = network.training
    # Copies of the buffers: in train mode BatchNorm counts what it sees.
    buffers = {key: value.clone() for key, value in network.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            for training in (True, False):
                network.train(training)
                _require_logits(functional_call(network, buffers, (images,)), name, outputs)
    except UsageError:
        raise
    except Exception as error:  # networks of others raise anything
        raise UsageError(
            f"{name} does not take images of {size} with {channels} channels: {error}.",
            "give the --image-size that it is made for",
        ) from error
    finally:
        network.train(was_training)


def _require_logits(answers: object, name: str, outputs: int) -> None:
    if isinstance(answers, Tensor) and tuple(answers.shape) == (_PROBES, outputs):
        return
    kind = (
        f"a tensor [N, {', '.join(map(str, answers.shape[1:]))}]"
        if isinstance(answers, Tensor)
        else type(answers).__name__
    )
    raise UsageError(
        f"{name} returns {kind}, not logits [N, {outputs}].",
        "wrap it in a factory of your own that returns logits: --network package.module:factory",
    )


@dataclass(frozen=True)
class _Call:
    """How a library builds a network: what is called, by which name, with which keyword arguments."""

    library: str
    function: str
    make: Callable[..., nn.Module]
    name: str
    options: Mapping[str, object]

    def network(self) -> nn.Module:
        try:
            return self.make(self.name, **self.options)
        except Exception as error:  # of libraries of others, for sizes that a network is not made for
            raise UsageError(f"{self.library}:{self.name} cannot be built: {error}.") from error

    def in_words(self) -> str:
        """The call as one writes it."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.library}.{self.function}('{self.name}', {options})"


def _call(library: str, name: str, channels: int, image_size: tuple[int, int], outputs: int) -> _Call:
    call = _torchvision if library == "torchvision" else _timm
    return call(name, channels, image_size, outputs)


def require_listed(network: str) -> None:
    """Raise UsageError, with the nearest name, where torchvision or timm lists no network of this name."""
    library, _, name = network.partition(":")
    if library == "torchvision":
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise _unknown("torchvision", name, names)
    elif library == "timm":
        try:
            import timm
        except ImportError as error:
            raise missing_extra("timm", "timm") from error
        # Only names that timm lists: `hf-hub:` and `local-dir:` would fetch or read what a file says.
        if not timm.is_model(name.partition(".")[0]):
            raise _unknown("timm", name, timm.list_models())


def _torchvision(name: str, channels: int, image_size: tuple[int, int], outputs: int) -> _Call:
    from torchvision import models

    require_listed(f"torchvision:{name}")
    if channels != 3:
        raise UsageError(f"torchvision:{name} takes images of 3 channels, not {channels}.")
    options: dict[str, object] = {"weights": None, "num_classes": outputs}
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        _require_patches(f"torchvision:{name}", image_size, patch)
        options["image_size"] = image_size[0]
    if name == "maxvit_t":
        options["input_size"] = image_size
    if f"torchvision:{name}" in _OLD_WEIGHTS:  # their second heads are of use in training from scratch alone
        options.update(aux_logits=False, init_weights=True)
    return _Call("torchvision", "models.get_model", models.get_model, name, options)


def _require_patches(name: str, image_size: tuple[int, int], patch: int) -> None:
    height, width = image_size
    if height != width or height % patch:
        raise UsageError(
            f"{name} takes square images of a multiple of {patch} pixels, not {height}x{width}.",
            f"give --image-size {max(patch, round(min(image_size) / patch) * patch)}",
        )


def _timm(name: str, channels: int, image_size: tuple[int, int], outputs: int) -> _Call:
    require_listed(f"timm:{name}")
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is not None and isinstance(config.classifier, (tuple, list)):
        raise UsageError(
            f"timm:{name} has {len(config.classifier)} heads, of which none could be replaced alone."
        )
    options: dict[str, object] = {"pretrained": False, "num_classes": outputs, "in_chans": channels}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    return _Call("timm", "create_model", timm.create_model, name, options)


def _unknown(library: str, name: str, names: list[str]) -> UsageError:
    error = unknown_name(f"network of {library}", name, names)
    # There are hundreds: a list of them would bury the message.
    listed = "torchvision.models.list_models(module=torchvision.models)"
    error.next_step = "timm.list_models() lists them" if library == "timm" else f"{listed} lists them"
    return error

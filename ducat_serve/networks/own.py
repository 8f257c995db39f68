"""Networks of the user's own: `package.module:factory`, a callable that makes a `torch.nn.Module`."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ducat_serve.errors import UsageError
from ducat_serve.networks.allowed import require_allowed
from ducat_serve.networks.head import find_head, output_width, replace_head
from ducat_serve.spec import NetworkSource, Normalisation

_WIDTHS = ("outputs", "num_classes")  # what a factory may call the width of its head


def import_callable(name: str, import_from: Path | None = None) -> Callable[..., Any]:
    """The callable `package.module:callable`.

    Args:
        import_from: a folder to import from beside the installed packages.

    Raises:
        UsageError: no such module or callable; the folder holds one module of that name, and this process has imported
            another.
    """
    module_name, _, attribute = name.partition(":")
    if import_from is not None:
        _require_the_one_of(import_from.resolve(), module_name.partition(".")[0])
        sys.path.insert(0, str(import_from.resolve()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{name}: there is no module {error.name}.",
            "install it, or name the folder that holds it: --import-from .",
        ) from error
    except Exception as error:  # it is somebody else's code, and may raise anything
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {error}.") from error
    finally:
        if import_from is not None:
            sys.path.remove(str(import_from.resolve()))
    make = getattr(module, attribute, None)
    if not callable(make):
        raise UsageError(f"{name}: {module_name} has no callable named {attribute or 'after the colon'}.")
    return make  # type: ignore[no-any-return]


def call(name: str, make: Callable[..., Any], **arguments: object) -> nn.Module:
    """What the callable returns. Raises UsageError where it fails or returns anything but a `torch.nn.Module`."""
    try:
        model = make(**arguments)
    except Exception as error:
        raise UsageError(f"{name} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def create(name: str, *, channels: int, image_size: tuple[int, int], outputs: int) -> nn.Module:
    """Build the network that the factory makes, with a head of ``outputs``.

    The factory gets those of ``outputs`` (or ``num_classes``), ``channels`` and ``image_size`` (height, width) that it
    has parameters for. Where its network has another number of outputs, the last layer is replaced by a fresh one: the
    last that is run, or where the network cannot be run here, the last that it was given.

    Raises:
        UsageError: nobody allowed it; no such module or callable; it fails; no layer could be its head.
    """
    make = import_callable(name, require_allowed(name))
    offered = {"channels": channels, "image_size": image_size, **dict.fromkeys(_WIDTHS, outputs)}
    network = call(name, make, **{key: offered[key] for key in offered if key in _parameters(make)})
    found = find_head(network, torch.zeros(1, channels, *image_size))
    if found != outputs and output_width(network) != outputs:
        replace_head(network, outputs, name)
    return network


def normalisation(network: nn.Module, channels: int) -> Normalisation:
    """Mean and standard deviation that the network declares as its attribute ``normalisation``; else none, 0 and 1.

    Raises UsageError where it declares anything but two sequences of one number per channel.
    """
    declared = getattr(network, "normalisation", None)
    if declared is None or isinstance(declared, nn.Module):  # a layer of its own normalises by itself
        return Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels)
    try:
        mean, std = (tuple(float(value) for value in values) for values in declared)
        if not len(mean) == len(std) == channels:
            raise ValueError(f"{len(mean)} means and {len(std)} deviations for {channels} channels")
        return Normalisation(mean=mean, std=std)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The network's attribute `normalisation` is not (mean, std), one number per channel: {error}."
        ) from error


def source(name: str, outputs: int) -> NetworkSource:
    """Where the network comes from. Its module has been imported."""
    package = name.partition(":")[0].partition(".")[0]
    distributions = _distributions().get(package, [])
    version = importlib.metadata.version(distributions[0]) if distributions else None
    return NetworkSource(
        package=distributions[0] if distributions else package,
        version=version,
        rebuild=f"{name}, called with the parameters it has of outputs={outputs}, num_classes={outputs}, channels and "
        f"image_size; a last layer of another width is replaced by one of {outputs} outputs",
    )


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Which distributions bring which package: read once, since it takes a second where much is installed."""
    return importlib.metadata.packages_distributions()


def _require_the_one_of(folder: Path, top: str) -> None:
    """Raise UsageError where ``folder`` holds a module named ``top`` and another one is imported under that name."""
    there = importlib.machinery.PathFinder.find_spec(top, [str(folder)])
    imported = sys.modules.get(top)
    if there is None or there.origin is None or imported is None:
        return
    other = getattr(imported, "__file__", None)
    if other is None or Path(other).resolve() != Path(there.origin).resolve():
        raise UsageError(
            f"This process has imported another module named {top}, from {other or 'no file'}, "
            f"and {there.origin} would not be read.",
            "rename one of the two, or use another process",
        )


def _parameters(make: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some callables of C have no signature
        return set()

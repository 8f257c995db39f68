"""A digest of what a model of others holds, to which its report is bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ducat_serve.checkpoint import weights_digest
from ducat_serve.errors import UsageError


def state_digest(model: nn.Module) -> str:
    """SHA-256 of the state_dict, in hexadecimal; bfloat16 counts as float32.

    Raises UsageError where something in it has no bytes that say what it is.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, value in model.state_dict().items():
        _put(found, name, value)
    return weights_digest(found)


def _put(found: dict[str, NDArray[Any]], name: str, value: object) -> None:
    """What an entry of a state_dict holds, as arrays; quantised layers and `get_extra_state` have more than tensors."""
    if isinstance(value, Tensor):
        found[name] = _plain(name, value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _put(found, f"{name}.{key}", inner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _put(found, f"{name}.{number}", inner)
    elif value is None or isinstance(value, str | bytes | bool | int | float | torch.dtype):
        found[name] = np.frombuffer(repr(value).encode(), dtype=np.uint8)
    else:
        raise _without_digest(name, type(value).__name__)


def _plain(name: str, tensor: Tensor) -> NDArray[Any]:
    """A tensor's values; of a quantised one those that it stands for."""
    if is_lazy(tensor):
        raise UsageError(
            f"The model's {name} has no values yet.", "call the model on an image first, in eval mode"
        )
    value = tensor.detach()
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.is_quantized:
        value = value.dequantize()
    if value.is_floating_point() and value.dtype not in (torch.float16, torch.float32, torch.float64):
        value = value.float()
    try:
        array: NDArray[Any] = value.cpu().contiguous().resolve_conj().numpy()
    except (RuntimeError, TypeError) as error:  # of the device meta, or of a type that NumPy lacks
        raise _without_digest(name, f"tensor of {value.dtype} on {value.device}") from error
    return array


def _without_digest(name: str, kind: str) -> UsageError:
    return UsageError(
        f"The model's state_dict holds {name}, a {kind}, of which no digest can be made.",
        "leave it out of the state_dict, or keep it there as a dense tensor, numbers or text",
    )

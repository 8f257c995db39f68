"""Weights of others in a file: .safetensors, or what `torch.save` wrote, read without running any code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ducat_serve.errors import DataError

# Under which keys state_dicts are found: RobustBench's zoo, madrylab's set, timm, torchvision's reference, Lightning.
# Averaged weights come first: they are what was published as the model where there are both.
_AVERAGED = ("ema_model_state_dict", "state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module")


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, and under which keys of the file they were found; ``averaged`` where there were others too."""

    tensors: dict[str, Tensor]
    place: tuple[str, ...] = ()
    averaged: bool = False


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a file.

    Raises:
        DataError: missing, damaged, not a state_dict, or holding code: pickles are read with weights_only=True and
            never otherwise.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "give --pretrained FILE, a .safetensors or .pth file")
    if path.suffix == ".safetensors":
        try:
            return StateDict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path} is not a safetensors file, or it is truncated ({error}).",
                "take it from its source again",
            ) from error
    return _find(_unpickled(path), path)


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds more than tensors, or is damaged: {_first_sentence(error)} It is not loaded, since reading "
            "it would run code that it names.",
            "where you trust it, save its tensors alone with safetensors.torch.save_file(state_dict, FILE)",
        ) from error
    except Exception as error:  # on damaged input torch raises many types
        raise DataError(
            f"{path} is not a file of torch.save, or it is damaged: {_first_sentence(error)}",
            "take it from its source again",
        ) from error


def _first_sentence(error: Exception) -> str:
    # torch's messages go on for a page, and advise to turn its protection off.
    text = " ".join(str(error).split()) or type(error).__name__
    if "WeightsUnpickler error:" in text:
        text = text.partition("WeightsUnpickler error:")[2].strip()
    return text.partition(". ")[0].rstrip(".") + "."


def _find(stored: Any, path: Path, place: tuple[str, ...] = ()) -> StateDict:
    """The state_dict in what a file holds, however it is nested."""
    if not isinstance(stored, Mapping):
        kind = type(stored).__name__
        raise DataError(
            f"{path} holds {kind}, not a state_dict: tensors by name.",
            "save model.state_dict(), not the model",
        )
    nested = [key for key in (*_AVERAGED, *_PLAIN) if isinstance(stored.get(key), Mapping)]
    if nested:
        found = _find(stored[nested[0]], path, (*place, nested[0]))
        averaged = found.averaged or (len(nested) > 1 and nested[0] in _AVERAGED)
        return StateDict(found.tensors, found.place, averaged)
    tensors = {str(key): value for key, value in stored.items() if isinstance(value, Tensor)}
    if not tensors:
        listed = ", ".join(map(str, list(stored)[:6])) or "nothing"
        raise DataError(f"{path} is not a state_dict: it holds {listed}.", "save model.state_dict()")
    return StateDict(tensors, place)

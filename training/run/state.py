"""`last.pt`: what is needed to go on with a run, besides its configuration. Read with weights_only=True."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ducat_serve import atomic
from ducat_serve.errors import DataError
from training.run.metrics import EpochRow

_MOMENTA = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of SGD and of AdamW


@dataclass
class RunState:
    """A place in a run: ``step`` steps of ``epoch`` are done. No random state: streams depend on the place.

    ``losses`` are the losses of this epoch's steps so far, ``rows`` the finished epochs. ``average`` is that of the
    weights, if the run keeps one; ``fell_back`` says that N-FGSM was given up for PGD.
    """

    epoch: int = 1
    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    fell_back: bool = False
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    rows: list[EpochRow] = field(default_factory=list)

    @property
    def recent_losses(self) -> list[float]:
        """Of this epoch; at its beginning the mean of the one before, if there was one."""
        return self.losses or [row.loss for row in self.rows[-1:]]


def save_state(path: Path, state: RunState) -> None:
    """Write atomically; a full disk or a crash leaves the file that was there. Raises DucatError."""
    shallow = {f.name: getattr(state, f.name) for f in fields(state)}
    buffer = io.BytesIO()
    torch.save({**shallow, "rows": [row.cells() for row in state.rows]}, buffer)
    atomic.write_bytes(path, buffer.getbuffer().tobytes())


def load_state(path: Path) -> RunState:
    """Read a state. Raises DataError where it is missing or damaged."""
    if not path.is_file():
        raise DataError(f"There is no state to resume from at {path}.", "start the run without --resume")
    try:
        _check_sums(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState(**{**stored, "rows": [EpochRow.read(cells) for cells in stored["rows"]]})
        _check_types(state)
    except Exception as error:  # on damaged input torch's own unpickler raises many types
        cause = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged: {cause}.", "start the run again in another folder") from error
    return state


def require_fit(
    state: RunState,
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
    parameters: Sequence[Tensor],
) -> None:
    """Raise ValueError where a stored tensor has another name, dtype or shape than the one that it is to replace.

    `load_state_dict` would convert dtypes silently, and finds a momentum of another shape out in the first step.
    ``weights`` and ``average`` are what a run of these settings has, ``parameters`` what its optimizer updates.
    """
    _require_like(state.weights, weights, "the weights")
    if average is not None:
        _require_like(state.average, average, "the average")
    for index, entry in state.optimizer["state"].items():
        for name in _MOMENTA:
            momentum = entry.get(name)
            if momentum is not None and not _alike(momentum, parameters[index]):
                raise ValueError(f"the momentum of parameter {index} is not like the parameter")


def _check_sums(path: Path) -> None:
    """torch.load reads a member of the archive without looking at its checksum."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} is another")


def _check_types(state: RunState) -> None:
    is_right = {
        "epoch": _is_count(state.epoch) and state.epoch >= 1,
        "step": _is_count(state.step),
        "weights": _are_tensors(state.weights),
        "optimizer": isinstance(state.optimizer, dict),
        "average": _are_tensors(state.average),
        "fell_back": isinstance(state.fell_back, bool),
        "losses": isinstance(state.losses, list) and all(isinstance(loss, float) for loss in state.losses),
        "seconds": isinstance(state.seconds, (int, float)),
    }
    for name, right in is_right.items():
        if not right:
            raise TypeError(f"its '{name}' is not what a run stores")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _are_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    )


def _require_like(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    wrong = set(found) ^ set(expected)
    wrong |= {name for name in set(found) & set(expected) if not _alike(found[name], expected[name])}
    if wrong:
        raise ValueError(f"{what} have other tensors than the network, first {min(wrong)!r}")


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape, one.layout) == (other.dtype, other.shape, other.layout)

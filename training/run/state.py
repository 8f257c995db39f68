"""`last.pt`: what is needed to go on with a run, besides its configuration. Read with weights_only=True."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ducat_serve import atomic
from ducat_serve.errors import DataError
from training.run.metrics import EpochRow


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
        stored = torch.load(path, map_location="cpu", weights_only=True)
        return RunState(**{**stored, "rows": [EpochRow.read(cells) for cells in stored["rows"]]})
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}.", "start the run again in another folder") from error

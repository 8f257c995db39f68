"""What every case is told."""

from __future__ import annotations

from dataclasses import dataclass

FIELD = "image"


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure."""

    seconds: float  # of each load
    rounds: int
    threads: int  # CPU threads of one inference
    size: tuple[int, int]  # (H, W) of the uploads

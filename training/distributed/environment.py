"""What a process learns of the others from its environment; without torch, which whoever starts them does without."""

from __future__ import annotations

import os


def launched() -> bool:
    """Whether torchrun or `--devices` started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first_process() -> bool:
    """Whether this process writes files and prints: it is on its own, or the first of several."""
    return not launched() or os.environ["RANK"] == "0"

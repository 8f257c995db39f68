"""What it looks like when memory runs out, and what a training can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ducat_serve.errors import DucatError
from training.config import TrainConfig

# What torch's CPU allocator, cuBLAS, cuDNN and ONNX Runtime say when there is no memory.
_SIGNS = ("DefaultCPUAllocator", "ALLOC_FAILED", "Failed to allocate memory", "BFCArena", "std::bad_alloc")


def is_out_of_memory(error: Exception) -> bool:
    """Whether somebody asked for more memory than there is; libraries have no common error for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)


@contextmanager
def enough_memory_for(config: TrainConfig) -> Iterator[None]:
    """Raise DucatError, with the settings that take less, where memory runs out inside."""
    try:
        yield
    except Exception as error:  # libraries raise what they like
        if not is_out_of_memory(error):
            raise
        at_once = -(-config.batch_size // config.portions)
        first_line = str(error).partition("\n")[0]
        smaller = f"--accumulate {2 * config.portions} (the same batch in smaller portions)"
        blocks = "" if config.checkpoint_activations else ", --checkpoint-activations"
        raise DucatError(
            f"There is not enough memory to train on {at_once} images at once ({first_line}).",
            f"begin again with {smaller}{blocks}, or a smaller --batch-size"
            if at_once > 2
            else f"begin again with a smaller network or image size{blocks}",
        ) from error

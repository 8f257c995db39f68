"""What it looks like when memory runs out."""

from __future__ import annotations

import torch

# What torch's CPU allocator, cuBLAS, cuDNN and ONNX Runtime say when there is no memory.
_SIGNS = ("DefaultCPUAllocator", "ALLOC_FAILED", "Failed to allocate memory", "BFCArena", "std::bad_alloc")


def is_out_of_memory(error: Exception) -> bool:
    """Whether somebody asked for more memory than there is; libraries have no common error for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)

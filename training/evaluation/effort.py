"""How attacks are run: in batches that shrink when memory runs out, with their work counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ducat_serve.output import Output

# What torch's CPU allocator, cuBLAS, cuDNN and ONNX Runtime say when there is no memory.
_SIGNS = ("DefaultCPUAllocator", "ALLOC_FAILED", "Failed to allocate memory", "BFCArena", "std::bad_alloc")


@dataclass
class Batches:
    """Runs work over examples in batches of ``size``; out of memory halves it, for good."""

    size: int
    output: Output

    def over(self, index: Tensor, work: Callable[[int, Tensor], None]) -> None:
        """Call ``work(start, batch)`` for consecutive batches of ``index``.

        ``work`` is called again, with fewer examples, after it ran out of memory, so it records results last.

        Raises:
            torch.OutOfMemoryError or what the runtime raises: not even one example fits.
        """
        start = 0
        while start < len(index):
            batch = index[start : start + self.size]
            try:
                work(start, batch)
            except Exception as error:  # ONNX Runtime's are no RuntimeErrors
                if not _out_of_memory(error) or self.size == 1:
                    raise
                self._halve(len(batch))
            else:
                start += len(batch)

    def _halve(self, tried: int) -> None:
        self.size = max(1, min(self.size, tried) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.output.warn(f"out of memory with {tried} images at once; going on with --batch-size {self.size}")


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(sign in str(error) for sign in _SIGNS)


@dataclass
class Effort:
    """Image-wise counts of what the attacks asked of the model."""

    gradient_steps: int = 0
    forward_passes: int = 0


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[Effort]:
    """Count the images that go through ``model`` inside, with a gradient and without."""
    effort = Effort()

    def count(_module: nn.Module, inputs: tuple[Any, ...], _outputs: Any) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            effort.gradient_steps += len(inputs[0])
        else:
            effort.forward_passes += len(inputs[0])

    handle = model.register_forward_hook(count)
    try:
        yield effort
    finally:
        handle.remove()

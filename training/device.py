"""Choose the device and the arithmetic of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch

from ducat_serve.errors import DucatError, UsageError
from ducat_serve.output import Output
from training.config import TrainPrecision

# Faster than NCHW for every network here, on CPUs as on GPUs (benchmarks/train_step.py, docs/performance/training.md).
LAYOUT = torch.channels_last
# What torch may compute float32 in shorter arithmetic for.
_OPERATIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def choose_device(name: str, output: Output) -> torch.device:
    """Turn `auto|cpu|cuda` into a device.

    Raises UsageError for any other name, and DucatError for cuda without a usable GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device {name!r} is none of auto, cpu, cuda.",
            "name one of these; CUDA_VISIBLE_DEVICES=1 chooses a GPU",
        )
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise DucatError(
            "--device cuda: torch finds no usable GPU.", "use --device cpu, or run `ducat doctor`"
        )
    output.say("Device: cpu (torch finds no GPU)")
    return torch.device("cpu")


def fastest_precision(device: torch.device) -> TrainPrecision:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.backends.cpu.get_cpu_capability()
    has_bf16 = capabilities.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if has_bf16 else "float32"


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as float32: without TF32, bfloat16 and a caller's autocast. Also a decorator.

    Shorter mantissas hide small perturbations, and a report says "float32". The process's settings come back at the
    end.
    """
    cudnn = torch.backends.cudnn
    operations = [attrgetter(name)(torch.backends) for name in _OPERATIONS]
    before = [operation.fp32_precision for operation in operations]
    older = _readable(torch.get_float32_matmul_precision), _readable(lambda: cudnn.allow_tf32)
    try:
        # The older settings as well: torch's compiler reads them, and that fails where they contradict the newer ones.
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        for operation in operations:
            operation.fp32_precision = "ieee"
        with ExitStack() as without_autocast:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    without_autocast.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        if older[0] is not None:
            torch.set_float32_matmul_precision(older[0])
        if older[1] is not None:
            cudnn.allow_tf32 = older[1]
        for operation, precision in zip(operations, before, strict=True):
            operation.fp32_precision = precision


def _readable(read: Callable[[], Any]) -> Any:
    """What an older setting is; None where the newer ones of the process contradict it, and torch refuses to say."""
    try:
        return read()
    except RuntimeError:
        return None

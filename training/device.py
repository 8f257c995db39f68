"""Choose the device and the arithmetic of a run."""

from __future__ import annotations

import torch

from ducat_serve.errors import DucatError
from ducat_serve.output import Output
from training.config import TrainPrecision

# Faster than NCHW for every network here, on CPUs as on GPUs (benchmarks/train_step.py, docs/performance.md).
LAYOUT = torch.channels_last


def choose_device(name: str, output: Output) -> torch.device:
    """Turn `auto|cpu|cuda` into a device. Raises DucatError for cuda without a usable GPU."""
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


def exact_float32() -> None:
    """Switch TF32 off: evaluation is in float32, and 10-bit mantissas hide small perturbations."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

"""All checks of a machine's GPU, as one document."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING

from ducat_serve import __version__
from ducat_serve.errors import DucatError
from ducat_serve.library.device_proof.items import Check, Figures, Proof, run_checks
from ducat_serve.library.device_proof.runtime import runtime_checks

if TYPE_CHECKING:
    import torch

_PACKAGES = ("torch", "torchvision", "onnxruntime-gpu", "onnxruntime", "numpy")


def prove_gpu() -> Proof:
    """Make every check on the GPU; see `SECONDS` for how long that may take.

    Raises:
        DucatError: there is no GPU that torch can use, or torch is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        raise DucatError(
            "There is no GPU that torch can use, so there is nothing to prove.",
            "run it on a machine with an NVIDIA GPU and its driver; `ducat doctor` says what is here",
        )
    device = torch.device("cuda", torch.cuda.current_device())
    about = torch.cuda.get_device_properties(device)
    machine: Figures = {
        "ducat-serve": __version__,
        "memory, MiB": about.total_memory // 2**20,
        "compute capability": f"{about.major}.{about.minor}",
        "CUDA of torch": str(torch.version.cuda),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        **_versions(),
    }
    return Proof(device=about.name, machine=machine, items=run_checks(gpu_checks(device)))


def gpu_checks(device: torch.device) -> list[Check]:
    """Everything that is looked at on a GPU, the cheap and important first."""
    from ducat_serve.library.device_proof.training import Case, training_checks

    return [*runtime_checks("cuda"), *training_checks(device, Case())]


def _versions() -> Figures:
    found = Figures()
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

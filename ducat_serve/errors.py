"""Errors a user can meet. Each says its cause and the next command, and carries its exit code.

Exit codes: 0 ok; 1 failure; 2 usage; 3 verification failed; 4 data missing or corrupt; 130/143 interrupted.
"""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Iterable


class DucatError(Exception):
    """A failure that the user can act on.

    Args:
        cause: what went wrong, naming the file, value or tensor.
        next_step: what to do about it, usually a command; None where nothing helps.
    """

    exit_code = 1

    def __init__(self, cause: str, next_step: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step

    def __str__(self) -> str:
        return self.cause if self.next_step is None else f"{self.cause}\nNext: {self.next_step}"


class UsageError(DucatError):
    """The request itself makes no sense (exit code 2)."""

    exit_code = 2


class VerificationError(DucatError):
    """A parity, digest, schema or robustness check failed (exit code 3)."""

    exit_code = 3


class DataError(DucatError):
    """A file is missing, unreadable or corrupt (exit code 4)."""

    exit_code = 4


class InterruptedRun(DucatError):
    """A signal stopped the run after its state was saved (exit code 128 + signal number)."""

    def __init__(self, signal_number: int, cause: str, next_step: str | None = None) -> None:
        super().__init__(cause, next_step)
        self.exit_code = 128 + signal_number


class Terminated(BaseException):
    """SIGTERM came. As KeyboardInterrupt it is no Exception, so that nothing takes it for a failure and goes on."""


def signal_of(stopped: KeyboardInterrupt | Terminated) -> int:
    """The signal that made an exception of one of these two."""
    return signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT


def command_line(*words: object) -> str:
    """A command as one types it: what a shell would take apart, such as a path with blanks, is quoted."""
    return shlex.join(str(word) for word in words)


def near_name(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that is most like another, from ``cutoff`` (0 any, 1 only itself) on."""
    folded = {one.casefold(): one for one in sorted(known, reverse=True)}
    matches = difflib.get_close_matches(name.casefold(), sorted(folded), n=1, cutoff=cutoff)
    return folded[matches[0]] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Build the error for a name that is not in a registry, suggesting the nearest one."""
    names = sorted(known)
    near = near_name(name, names)
    hint = f" Did you mean '{near}'?" if near else ""
    return UsageError(f"Unknown {kind} '{name}'.{hint}", f"choose one of: {', '.join(names)}")


# Which extra brings a package that a command may find missing.
EXTRAS = {
    "bentoml": "serve",
    "cyclonedx": "sbom",
    "filelock": "train",
    "fsspec": "train",
    "httpx": "client",
    "matplotlib": "train",
    "model_signing": "sign",
    "onnx": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "packaging": "serve",
    "prometheus_client": "serve",
    "pyautoattack": "train",
    "sklearn": "train",
    "starlette": "serve",
    "tensorboardX": "train",
    "timm": "timm",
    "torch": "train",
    "torchvision": "train",
}


def install_extra(extra: str) -> str:
    """How to get an extra. Nothing is published on an index yet, so it is from the source."""
    return f"pip install '.[{extra}]' in a clone of ducat-serve"


class MissingPackage(DucatError, ImportError):
    """An optional package is not installed. Also an ImportError, for those who import and ask."""

    def __init__(self, package: str, extra: str) -> None:
        DucatError.__init__(
            self, f"This needs the package '{package}', which is not installed.", install_extra(extra)
        )
        self.name = package


def missing_extra(package: str, extra: str) -> DucatError:
    """Build the error for an optional package that a command needs."""
    return MissingPackage(package, extra)

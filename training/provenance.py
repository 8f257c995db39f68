"""Where a model comes from: the command that trained it, the revision of the code that did, and what that ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ducat_serve.threat_model import format_size, parse_size
from training.data import dataset_reference

_ROOT = Path(__file__).parents[1]
_TRAINING_CODE = ("ducat_serve", "training")  # folders below `_ROOT` that decide what a run writes
# What decides numbers or files; a package that is not installed had no part in the run.
_PACKAGES = ("ducat-serve", "torch", "torchvision", "numpy", "onnx")
_PATIENCE_SECONDS = 10  # a repository on a network drive may not answer


@dataclass(frozen=True)
class Resumption:
    """Other code that went on with a run, from some step of ``epoch`` on."""

    epoch: int
    git_revision: str | None
    versions: dict[str, str] | None


@dataclass(frozen=True)
class Provenance:
    """What a ModelSpec records of a run beside its recipe and its data; None where it is not known.

    ``git_revision`` and ``versions`` are those that it began with; ``resumed`` has others that went on with it.
    """

    command: str | None = None
    git_revision: str | None = None
    versions: dict[str, str] | None = None
    resumed: tuple[Resumption, ...] = ()

    def document(self) -> dict[str, Any]:
        """As files hold it; those of runs that were never resumed by other code stay as they were."""
        written = asdict(self)
        resumed = list(written.pop("resumed"))
        return {**written, "resumed": resumed} if resumed else written

    def changes(self, git_revision: str | None, versions: Mapping[str, str]) -> list[str]:
        """What other code and versions would go on with the run than with those that it was last trained by, in words.

        What is not known of one of them is no change.
        """
        last: Provenance | Resumption = self.resumed[-1] if self.resumed else self
        found = []
        if last.git_revision and git_revision and last.git_revision != git_revision:
            found.append(f"revision {last.git_revision}, now {git_revision}")
        before = last.versions or {}
        found += [
            f"{name} {before[name]}, now {versions[name]}"
            for name in sorted(set(before) & set(versions))
            if before[name] != versions[name]
        ]
        return found

    def resumed_by(self, epoch: int, git_revision: str | None, versions: dict[str, str]) -> Provenance:
        """The same run where other code goes on with it."""
        return replace(self, resumed=(*self.resumed, Resumption(epoch, git_revision, versions)))


def training_command(options: Mapping[str, object]) -> str:
    """The `ducat train` that gives these options (by their names in Python, None = not given) again.

    Whether a value came from a flag, the environment or a config file makes no difference. Folders of this machine
    are left out: of `folder:PATH` and of a file only the last name is kept.
    """
    words = ["ducat", "train"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _text(value)]
    return shlex.join(words)


def _text(value: object) -> str:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        text = format_size(value)
        return text if parse_size(text) == value else repr(value)
    return dataset_reference(str(value))


def installed_versions() -> dict[str, str]:
    """The version of Python and of each package that matters to a training, by the name of its distribution."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """The commit that this code was checked out from, followed by `-dirty` where the code was changed since.

    None for code that is not tracked by git, as in an installation from a wheel, and where git is not there to ask.
    """
    try:
        # Another project's repository may be around us.
        _git("ls-files", "--error-unmatch", "--", str(Path(__file__)))
        revision = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", *_TRAINING_CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}-dirty" if changes else revision


def _git(*arguments: str) -> str:
    # Variables of a hook that trains would point git to the hook's repository instead of ours.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    output = subprocess.check_output(
        ["git", "-C", str(_ROOT), *arguments],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        timeout=_PATIENCE_SECONDS,
        text=True,
    )
    return output.strip()

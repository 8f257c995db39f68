"""An installation of the package as a user has it, made offline in seconds.

Source distribution and wheel are built from the working tree, the wheel from the source distribution, and pip installs
the wheel into a fresh virtual environment. What it requires is linked from the environment that runs the tests: the
requirements of the chosen extras and theirs, and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
# Never copied, however large it has grown; `NOT_OURS` stands in for it.
_HEAVY = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "runs", "site", "build", "dist"
)
# What a working tree has beside the code, and no distribution may have.
NOT_OURS = (
    ".venv/lib/python3/site-packages/other.py",
    ".venv311/pyvenv.cfg",
    ".git/HEAD",
    "build/lib/training/old.py",
    "dist/ducat_serve-0.0.1.tar.gz",
    "runs/photos/model.safetensors",
    "site/index.html",
    "training/__pycache__/step.cpython-311.pyc",
)


class Distributions(NamedTuple):
    """The two files that a release consists of."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> None:
    """Build both in ``folder``, by the setuptools that are installed, from a working tree with `NOT_OURS` in it."""
    with tempfile.TemporaryDirectory() as place:
        _build(Path(place) / "source", folder)


def built(folder: Path) -> Distributions:
    """What `build` left in ``folder``."""
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel)


def _build(source: Path, target: Path) -> None:
    shutil.copytree(PROJECT, source, ignore=_HEAVY)
    for name in NOT_OURS:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(b"not part of a release")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def install(wheel: Path, extras: Iterable[str], folder: Path) -> Path:
    """Install ``wheel`` into a new environment in ``folder``; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    [site] = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, timeout=300
    )
    name, version = wheel.name.split("-")[:2]
    [ours] = importlib.metadata.distributions(name=name, path=[str(site)])
    assert ours.version == version
    for distribution in _required(ours, extras):
        for file in distribution.files or ():
            top = Path(file).parts[0]
            if top != ".." and top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    return python


def _required(
    distribution: importlib.metadata.Distribution, extras: Iterable[str]
) -> list[importlib.metadata.Distribution]:
    """Everything that ``distribution`` requires with these extras, and what that requires in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(distribution, tuple(extras))]
    while waiting:
        parent, wanted = waiting.pop()
        for line in parent.requires or ():
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            marker = requirement.marker
            needed = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted))
            if needed and name not in found:
                found[name] = importlib.metadata.distribution(name)
                waiting.append((found[name], tuple(requirement.extras)))
    return list(found.values())

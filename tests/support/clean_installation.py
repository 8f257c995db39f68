"""An installation of the package's wheel as a user has it, made offline in seconds.

The wheel is built from the working tree and unpacked into a fresh virtual environment. What it requires is linked from
the environment that runs the tests: the requirements of the chosen extras and theirs, and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parents[2]
# What a wheel is made of; a whole working tree would bring its runs and its environment along.
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "ducat_serve", "export", "service", "training")


def build_wheel(folder: Path) -> Path:
    """The wheel of the working tree, built in ``folder`` by the setuptools that are installed."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in SOURCES:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *offline], check=True, timeout=300)
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, extras: Iterable[str], folder: Path) -> Path:
    """Install ``wheel`` into a new environment in ``folder``; returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    [site] = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
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

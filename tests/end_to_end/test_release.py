"""What a release consists of: a source distribution and a wheel that an index takes and that install by themselves."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from ducat_serve import __version__
from tests.support.clean_installation import NOT_OURS, PROJECT, Distributions

pytestmark = pytest.mark.slow

# Of these there is only what the packaging tools write themselves.
WRITTEN_BY_SETUPTOOLS = {"PKG-INFO", "setup.cfg"}


def files_of(sdist: Path) -> set[str]:
    """Paths in a source distribution, below the folder that it unpacks to."""
    with tarfile.open(sdist) as archive:
        members = [PurePosixPath(member.name) for member in archive if member.isfile()]
    assert {member.parts[0] for member in members} == {f"ducat_serve-{__version__}"}
    return {str(member.relative_to(member.parts[0])) for member in members}


def test_an_index_takes_both(distributions: Distributions) -> None:
    """README must render there, and the metadata be complete."""
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, distributions)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2, done.stdout


def test_the_source_distribution_is_the_repository(distributions: Distributions) -> None:
    held = {
        file for file in files_of(distributions.sdist) if ".egg-info/" not in file
    } - WRITTEN_BY_SETUPTOOLS
    assert held.isdisjoint(NOT_OURS)
    try:
        listed = subprocess.check_output(["git", "-C", str(PROJECT), "ls-files"], text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("needs git, to know what belongs to the repository")
    there = {file for file in listed.splitlines() if (PROJECT / file).is_file()}
    assert there - held == set(), "MANIFEST.in leaves these out"


def test_the_wheel_has_the_packages_and_nothing_else(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        held = set(archive.namelist())
    packages = {file.split("/")[0] for file in held if ".dist-info/" not in file}
    assert packages == {"ducat_serve", "training", "export", "service"}
    assert held.isdisjoint(NOT_OURS)
    needed = [path for package in packages for path in (PROJECT / package).rglob("*") if path.is_file()]
    missing = {path.relative_to(PROJECT).as_posix() for path in needed if path.suffix != ".pyc"} - held
    assert missing == set(), "package-data leaves these out"


def test_the_command_is_installed(clean_python: Path, tmp_path: Path) -> None:
    ducat = clean_python.with_name("ducat")
    asked = subprocess.check_output([str(ducat), "--version"], text=True, timeout=60, cwd=tmp_path)
    assert __version__ in asked
    [site] = clean_python.parents[1].glob("lib/python*/site-packages")
    [ours] = importlib.metadata.distributions(name="ducat-serve", path=[str(site)])
    tops = {Path(file).parts[0] for file in ours.files or () if Path(file).parts[0] != ".."}
    guide = (PROJECT / "docs" / "how-to" / "install.md").read_text()
    for name in tops - {f"ducat_serve-{__version__}.dist-info"}:
        assert f"`{name}`" in guide, f"{name} in site-packages is not documented"

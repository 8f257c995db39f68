"""What serving requires, pinned to what is installed here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ducat_serve.errors import DucatError

PROJECT = "ducat-serve"
_ADDED_BY_BENTOML = {canonicalize_name("bentoml")}  # the version that builds


def pinned_requirements(extras: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Everything that `ducat-serve[EXTRAS]` needs, sorted, as `name==version`; the project itself left out.

    Second, those that are not installed here: they stay as pyproject.toml has them. That is how it is with the ONNX
    Runtime of another device than this machine's.

    Raises DucatError as `installed_requirements` does.
    """
    versions, missing = installed_requirements(extras)
    pins = [f"{name}=={version}" for name, version in versions.items() if name not in _ADDED_BY_BENTOML]
    unpinned = tuple(sorted(missing.values()))
    return sorted([*pins, *unpinned]), unpinned


def installed_requirements(extras: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Everything that `ducat-serve[EXTRAS]` needs, by its normalised name: the versions of what is installed here, and
    the requirements of what is not.

    Raises:
        DucatError: ducat-serve itself is not installed, so that nobody knows what it needs; or a package that is
            installed does not say its version.
    """
    try:
        waiting = _needed(PROJECT, extras)
    except PackageNotFoundError as error:
        raise DucatError(f"{PROJECT} is not installed, only on the path.", "pip install .") from error
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        try:
            version = distribution(name).version
            waiting += _needed(name, sorted(requirement.extras))
        except PackageNotFoundError:
            requirement.marker = None
            missing[name] = str(requirement)
            continue
        if not version:
            raise DucatError(
                f"The package '{name}' is installed, but does not say its version.",
                f"pip install --force-reinstall {name}",
            )
        versions[name] = version
    return versions, missing


def _needed(name: str, extras: Sequence[str]) -> list[Requirement]:
    """The requirements of an installed package that hold on this machine."""
    found = []
    for text in distribution(name).requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            found.append(requirement)
    return found

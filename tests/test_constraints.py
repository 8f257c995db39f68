"""constraints.txt decides what an installation gets: nothing that we ask for is left to the day it is installed on."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).parent.parent


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    """Both runtimes, too: the releases of onnxruntime and onnxruntime-gpu drift apart."""
    lines = (line.split("==") for line in (PROJECT / "constraints.txt").read_text().split())
    pins = {canonicalize_name(name): version for name, version in lines}
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert name in pins, f"{name} is not pinned"
            assert requirement.specifier.contains(pins[name]), name

"""The distributions of a release, built once for all tests that look at them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clean_installation import Distributions, build, built, install
from tests.support.made_once import made_once


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return built(made_once("release", tmp_path_factory, build))


@pytest.fixture(scope="session")
def clean_python(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an installation for predicting on a CPU."""
    return install(distributions.wheel, ["cpu"], tmp_path_factory.mktemp("clean") / "venv")

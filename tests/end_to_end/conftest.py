"""The distributions of a release, built once for all tests that look at them (in the xdist group `release`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clean_installation import Distributions, build, install


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def clean_python(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an installation for predicting on a CPU."""
    return install(distributions.wheel, ["cpu"], tmp_path_factory.mktemp("clean") / "venv")

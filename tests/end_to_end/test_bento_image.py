"""The Dockerfile that BentoML wrote into a Bento, for real: built, asked, stopped. Minutes long: `make image-test`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ducat_serve.cli.main import run
from tests.support.http_client import GOOD
from tests.support.images import ASK, MARKS, Container, Image, built, make_base_with_pip, why_not

WAIT = 60
READY = """
import urllib.request
urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://127.0.0.1:3000/readyz", timeout=5)
"""

pytestmark = MARKS


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if reason := why_not():
        pytest.fail(reason)
    make_base_with_pip("docker.io/library/python:3.11-slim")
    bento = tmp_path_factory.mktemp("bento") / "bento"
    assert run(["bento", "digits-small", "--out", str(bento)]) == 0
    with built(bento, "--file", str(bento / "env/docker/Dockerfile")) as found:
        yield found


def test_locked_up_it_serves_its_model_and_stops(image: Image, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "request").write_bytes(GOOD)
    assert list((image.root / "app/.venv").glob("lib/*/site-packages/torch")) == []
    container = Container(image, tmp_path, models, {"HTTP_PROXY": "http://127.0.0.1:9"})
    try:
        container.wait_until("python", "-I", "-c", READY)
        assert container.python(ASK).strip() in {str(digit) for digit in range(10)}
        container.signal("TERM")
        assert container.process.wait(WAIT) == 0, container.log.read_text()
        print(f"{image.bytes:,} bytes")
    finally:
        container.remove()

"""The serving image for real: built, looked into, run locked up, asked, stopped. Minutes long: `make image-test`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from ducat_serve.bundled import model_path
from tests.support.http_client import GOOD
from tests.support.images import ASK, MARKS, Container, Image, built, make_base, why_not
from tests.support.keys import key_pair, signed

PROJECT = Path(__file__).parents[2]
LARGEST = 500_000_000  # bytes of the image for CPUs
WAIT = 60
LOOK = """
import json, pathlib
def denied(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError:
        return True
    return False
status = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(json.dumps({
    "uid": status["Uid"].split(),
    "capabilities": {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")},
    "read only": [denied(path) for path in ("/x", "/opt/venv/x", "/models/x", "/usr/x")],
    "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]),
}))
"""

pytestmark = MARKS


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    if reason := why_not():
        pytest.fail(reason)
    make_base(("docker.io/library/python:3.11-slim-bookworm",))
    with built(PROJECT, "--build-arg", "RUNTIME=cpu") as found:
        yield found


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """What is mounted at /models: a signed model, the public key, and an image to ask about."""
    folder = tmp_path / "models"
    keys = key_pair(tmp_path / "keys")
    folder.mkdir()
    signed(Path(shutil.copy(model_path("digits-small", "onnx"), folder / "model.onnx")), keys.private)
    shutil.copy(keys.public, folder / "public.pem")
    (folder / "request").write_bytes(GOOD)
    return folder


def test_it_is_small_and_holds_no_torch_no_installer_and_no_sources(image: Image) -> None:
    packages = image.root / "opt/venv/lib/python3.11/site-packages"
    names = {path.name for path in packages.iterdir()}
    assert {"ducat_serve", "service", "onnxruntime", "bentoml", "model_signing"} <= names
    assert not {"torch", "torchvision", "onnx", "sklearn", "pip", "setuptools"} & names
    assert not (image.root / "build").exists()
    assert list((image.root / "opt/venv/bin").glob("pip*")) == []
    assert image.bytes <= LARGEST
    print(f"{image.bytes:,} bytes")


def test_its_bill_of_materials_is_valid_and_lists_what_is_in_it(image: Image) -> None:
    text = (image.root / "opt/venv/share/ducat-serve/sbom.cdx.json").read_text()
    assert make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6).validate_str(text) is None
    billed = {
        (one["name"].lower().replace("_", "-"), one["version"]) for one in json.loads(text)["components"]
    }
    packages = image.root / "opt/venv/lib/python3.11/site-packages"
    there = {
        (name.lower().replace("_", "-"), version)
        for name, _, version in (path.stem.rpartition("-") for path in packages.glob("*.dist-info"))
    }
    assert len(there) > 50
    assert billed == there


def test_locked_up_it_serves_a_signed_model_and_stops(image: Image, models: Path, tmp_path: Path) -> None:
    environment = {"DUCAT_SERVE_REQUIRE_SIGNATURE": "/models/public.pem", "HTTP_PROXY": "http://127.0.0.1:9"}
    kind, *healthcheck = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    container = Container(image, tmp_path, models, environment)
    try:
        container.wait_until(*healthcheck)
        seen = json.loads(container.python(LOOK))
        assert seen == {
            "uid": ["10001"] * 4,
            "capabilities": dict.fromkeys(("CapEff", "CapPrm", "CapBnd", "CapAmb"), 0),
            "read only": [True] * 4,
            "interfaces": ["lo"],
        }
        assert container.python(ASK).strip() in {str(digit) for digit in range(10)}
        assert container.execute("python", "-m", "pip", "--version").returncode != 0
        container.signal("TERM")
        assert container.process.wait(WAIT) == 0, container.log.read_text()
    finally:
        container.remove()


def test_locked_up_it_refuses_a_model_that_is_not_signed(image: Image, models: Path, tmp_path: Path) -> None:
    (models / "model.onnx.sig").unlink()
    container = Container(image, tmp_path, models, {"DUCAT_SERVE_REQUIRE_SIGNATURE": "/models/public.pem"})
    try:
        assert container.process.wait(WAIT) == 3
        assert "is not signed" in container.log.read_text()
    finally:
        container.remove()

"""The software bill of materials of a Bento: valid, whole, and the same every time."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from typing import Any

import pytest
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation import make_schemabased_validator

from ducat_serve import __version__
from ducat_serve.bundled import model_path
from ducat_serve.errors import DucatError, MissingPackage
from ducat_serve.predictor import Predictor
from export.requirements import pinned_requirements
from export.sbom import sbom

MODEL = model_path("digits-small", "onnx")
EXTRAS = ("serve", "cpu")


@pytest.fixture(scope="module")
def text() -> str:
    return sbom(MODEL, Predictor(MODEL, "cpu").spec, "ducat", EXTRAS)


def test_it_is_valid_cyclonedx(text: str) -> None:
    validator = make_schemabased_validator(OutputFormat.JSON, SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    broken: dict[str, Any] = json.loads(text)
    broken["components"][0]["type"] = "pudding"
    assert validator.validate_str(json.dumps(broken)) is not None


def test_it_names_the_model_the_code_and_every_package_that_the_bento_pins(text: str) -> None:
    bill = json.loads(text)
    of_type = {
        kind: [c for c in bill["components"] if c["type"] == kind]
        for kind in ("library", "machine-learning-model")
    }
    pins, _ = pinned_requirements(EXTRAS)
    found = {f"{c['name']}=={c['version']}" for c in of_type["library"]}
    bentoml = f"bentoml=={importlib.metadata.version('bentoml')}"
    assert found == {*pins, bentoml, f"ducat-serve=={__version__}"}
    (model,) = of_type["machine-learning-model"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(MODEL.read_bytes()).hexdigest()}]
    (numpy,) = [c for c in of_type["library"] if c["name"] == "numpy"]
    assert numpy["purl"] == f"pkg:pypi/numpy@{importlib.metadata.version('numpy')}"
    assert len([c for c in of_type["library"] if c.get("licenses")]) > len(found) / 2
    needs = {d["ref"]: d.get("dependsOn", []) for d in bill["dependencies"]}
    assert set(needs["bento"]) == {c["bom-ref"] for c in bill["components"]}
    starlette = f"starlette=={importlib.metadata.version('starlette')}"
    assert starlette in needs[bentoml]


def test_it_is_the_same_every_time(text: str) -> None:
    assert sbom(MODEL, Predictor(MODEL, "cpu").spec, "ducat", EXTRAS) == text
    assert not {"serialNumber", "timestamp"} & (set(json.loads(text)) | set(json.loads(text)["metadata"]))


def test_a_broken_environment_has_no_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a hole in it would be taken for whole."""
    real = importlib.metadata.distribution

    def without(name: str) -> Any:
        if name == "starlette":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    spec = Predictor(MODEL, "cpu").spec
    monkeypatch.setattr("export.requirements.distribution", without)
    with pytest.raises(DucatError, match="starlette is not installed here"):
        sbom(MODEL, spec, "ducat", EXTRAS)

    class Nameless:
        metadata: dict[str, str] = {}  # noqa: RUF012
        version, requires = "", ()

    monkeypatch.setattr(
        "export.requirements.distribution", lambda name: Nameless if name == "starlette" else real(name)
    )
    with pytest.raises(DucatError, match="'starlette' is installed, but does not say its version"):
        sbom(MODEL, spec, "ducat", EXTRAS)


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cyclonedx.model", None)
    with pytest.raises(MissingPackage, match=r"cyclonedx-python-lib.*\n.*\[sbom\]"):
        sbom(MODEL, Predictor(MODEL, "cpu").spec, "ducat", EXTRAS)

"""`GET /openapi.json`: true to the routes, to real answers, and to what schemathesis finds in a running server."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictor
from service.api.forms import FIELD
from service.api.images import NPY
from service.api.open_inference import JSON_LENGTH, OUTPUTS
from service.application import create_app
from service.middleware.request_log import PROBES
from service.openapi.document import document
from service.page.samples import KINDS
from service.settings import Settings
from tests.conftest import PROJECT
from tests.support.application import FakeModel, bearer, serve, serving
from tests.support.http_client import GOOD, WAIT, is_ready, send, until
from tests.support.request_bodies import binary, binary_tensor, tensor
from tests.support.server_process import free_port, serve_command, started

KEY, ADMIN = "k" * 32, "a" * 32  # as in schemathesis.toml
HOST = "ducat.example"
GUARDED = {"api_keys": f"tests:{KEY}", "admin_key": ADMIN}
PLAIN = Settings(model=Path("model.onnx"))
FULL = Settings(model=Path("model.onnx"), allowed_hosts=HOST, **GUARDED)
SERVED = {"name": "model", "version": "1"}
UNLOAD = "/v2/repository/models/{name}/unload"
ADMINISTRATION = (
    "/admin/reload",
    "/v2/repository/index",
    "/v2/repository/models/{name}/load",
    UNLOAD,
)
CONFORMANCE = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """By method and path."""
    return {
        (method.upper(), path): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    }


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


# The document by itself


@pytest.mark.parametrize("settings", [PLAIN, FULL], ids=["plain", "keys"])
def test_the_document_is_openapi(settings: Settings) -> None:
    described = document(settings)
    schemathesis.openapi.from_dict(described).validate()
    names = [operation["operationId"] for operation in operations(described).values()]
    assert len(set(names)) == len(names)
    used = {node["$ref"] for node in nodes(described) if "$ref" in node}
    for reference in used:
        _, section, kind, name = reference.split("/")
        assert name in described[section][kind], reference
    for kind in ("parameters", "headers"):
        for name in described["components"][kind]:
            assert f"#/components/{kind}/{name}" in used, "nobody uses it"


def test_every_route_is_described_and_every_described_route_exists(predictor: Predictor) -> None:
    mount = create_app(FakeModel(predictor, admin_key=ADMIN)).routes[0]
    assert isinstance(mount, Mount)
    routes = [route for route in mount.routes if isinstance(route, Route)]
    assert len(routes) == len(mount.routes) > 10
    found = {(method, route.path) for route in routes for method in (route.methods or ()) if method != "HEAD"}
    assert set(operations(document(FULL))) == found


def test_without_keys_none_are_asked_for() -> None:
    plain, full = document(PLAIN), document(FULL)
    assert set(operations(full)) - set(operations(plain)) == {("POST", path) for path in ADMINISTRATION}
    assert plain["components"]["securitySchemes"] == {}
    for operation in operations(plain).values():
        assert (operation["security"], operation["responses"].keys() & {"401", "421"}) == ([], set())


def test_no_key_is_in_the_document(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"tests:{KEY}\n")
    settings = Settings(model=tmp_path / "model.onnx", keys_file=keys, admin_key=ADMIN, allowed_hosts=HOST)
    text = json.dumps(document(settings))
    for secret in (KEY, ADMIN, str(tmp_path)):
        assert secret not in text
    assert document(settings) == document(FULL)


def test_bounds_are_those_of_the_settings() -> None:
    settings = Settings(model=Path("model.onnx"), max_images=7, top_k=3, max_body=1234, deadline=2.5)
    components = document(settings)["components"]
    for name, field in (("ImageForm", "image"), ("Base64Images", "images"), ("PredictAnswer", "predictions")):
        assert components["schemas"][name]["properties"][field]["maxItems"] == 7
    assert "; 3 (or all) unless given" in components["parameters"]["TopK"]["description"]
    assert "1234 bytes, 7 images" in components["responses"]["Problem413"]["description"]
    assert "2.5 s" in components["responses"]["Problem504"]["description"]


def test_names_are_those_of_the_code() -> None:
    described = document(FULL)
    assert "${" not in json.dumps(described)
    schemas, paths = described["components"]["schemas"], described["paths"]
    samples = paths["/samples/{name}"]["get"]["responses"]["200"]
    assert set(samples["content"]) == set(KINDS.values())
    sent = paths["/v1/predict"]["post"]["requestBody"]["content"]
    assert NPY in sent
    assert list(sent["multipart/form-data"]["encoding"]) == schemas["ImageForm"]["required"] == [FIELD]
    assert described["components"]["parameters"]["JsonLength"]["name"] == JSON_LENGTH
    output = schemas["OutputTensor"]["properties"]
    assert output["name"]["enum"] == list(OUTPUTS)
    assert set(output["datatype"]["enum"]) == set(OUTPUTS.values())


def test_a_model_is_an_example_where_it_is_known(tmp_path: Path) -> None:
    name = document(PLAIN)["components"]["parameters"]["ModelName"]
    assert name["example"] == "model"
    dots = Settings(model=Path("run v1.2.onnx"))
    assert document(dots)["components"]["parameters"]["ModelName"]["example"] == "run-v1.2"
    of_a_folder = document(Settings(model=tmp_path))["components"]["parameters"]["ModelName"]
    assert of_a_folder == {key: value for key, value in name.items() if key != "example"}


def test_every_status_that_the_service_can_answer_has_a_meaning() -> None:
    """405 and unknown paths belong to no operation."""
    sources = "".join(file.read_text() for file in (PROJECT / "service").rglob("*.py"))
    raised = set(re.findall(r"APIError\(\s*(\d{3}),", sources)) - {"405"}
    assert len(raised) > 6
    described = {status for one in operations(document(FULL)).values() for status in one["responses"]}
    assert described == raised | {"200"}


# Real answers


def closed(described: dict[str, Any]) -> dict[str, Any]:
    """The document with no key allowed that it does not list."""
    strict = copy.deepcopy(described)
    for node in nodes(strict["components"]["schemas"]):
        if node.get("type") == "object" and "properties" in node:
            node["additionalProperties"] = False
    return strict


def conforms(client: TestClient, method: str, path: str, response: Any) -> int:
    """Hold an answer against the client's own document: status, headers, type, and no key beyond those listed."""
    described = closed(client.get("/openapi.json").json())
    response.request.read()  # schemathesis looks at it; a server that refuses early never read it
    case = schemathesis.openapi.from_dict(described)[path][method].Case(
        path_parameters={"name": "model", "version": "1"}
    )
    case.validate_response(response, checks=CONFORMANCE)
    return int(response.status_code)


NAMED = "/v2/models/{name}"


def test_answers_are_as_described(client: TestClient) -> None:
    paths = (
        "/",
        "/openapi.json",
        "/v1/model",
        "/v1/models",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
    )
    for path in (*paths, NAMED, f"{NAMED}/ready", f"{NAMED}/versions/{{version}}"):
        response = client.get(path.format(**SERVED))
        assert conforms(client, "GET", path, response) == 200
    assert conforms(client, "POST", "/v1/predict", send(client, GOOD, GOOD)) == 200
    infer = f"{NAMED}/infer"
    asked = {"id": "7", **tensor([0] * 192)}
    assert conforms(client, "POST", infer, client.post("/v2/models/model/infer", json=asked)) == 200
    wanted = binary(binary_tensor(1, 192, parameters={"binary_data_output": True}), bytes(192))
    assert conforms(client, "POST", infer, client.post(**wanted)) == 200
    assert conforms(client, "GET", NAMED, client.get("/v2/models/other")) == 404
    assert conforms(client, "GET", "/v1/model", client.get("/v1/model?model=other")) == 404
    assert conforms(client, "POST", "/v1/predict", send(client, b"text")) == 400
    assert conforms(client, "POST", "/v1/predict", client.post("/v1/predict", content=b"")) == 415
    assert conforms(client, "POST", "/v1/predict", send(client, *[GOOD] * 101)) == 413


def test_an_answer_that_is_not_as_described_is_found(client: TestClient) -> None:
    live = client.get("/v2/health/live")
    with pytest.raises(FailureGroup, match="ready"):
        conforms(client, "GET", "/v2/health/ready", live)
    del live.headers["x-request-id"]
    with pytest.raises(FailureGroup, match="X-Request-Id"):
        conforms(client, "GET", "/v2/health/live", live)
    with pytest.raises(FailureGroup, match="404"):
        conforms(client, "GET", "/v2/health/live", client.get("/nothing"))


def test_limits_are_answered_as_described(predictor: Predictor) -> None:
    with serving(predictor, rate=0.001, max_images=1) as client:
        assert conforms(client, "POST", "/v1/predict", send(client, GOOD)) == 200
        refused = send(client, GOOD)
        assert conforms(client, "POST", "/v1/predict", refused) == 429
        assert refused.headers["retry-after"]
    model = FakeModel(predictor, deadline=0.5)  # enough to decode in, also where other work runs
    with serve(model) as client:
        until(lambda: is_ready(client))
        model.gate.clear()
        assert conforms(client, "POST", "/v1/predict", send(client, GOOD)) == 504
        model.failure = RuntimeError("broken")
        model.gate.set()
        until(lambda: conforms(client, "POST", "/v1/predict", send(client, GOOD)) == 500)
        model.is_loaded = False
        assert conforms(client, "GET", "/v1/model", client.get("/v1/model")) == 503
    with serving(predictor, allowed_hosts="testserver") as client:
        for path in ("/", "/v1/model", "/v2", "/metrics", "/openapi.json"):
            refused = client.get(path, headers={"host": "evil.example"})
            assert conforms(client, "GET", path, refused) == 421


def test_a_key_is_asked_for_where_the_document_says_so(predictor: Predictor) -> None:
    with serving(predictor, **GUARDED) as client:
        described = client.get("/openapi.json").json()
        for (method, path), operation in operations(described).items():
            response = client.request(method, path.format(**SERVED))
            assert (conforms(client, method, path, response) == 401) == bool(operation["security"]), path
        # FakeModel has no file.
        index, load = ADMINISTRATION[1:3]
        for path, status in (("/admin/reload", 422), (index, 200), (load, 422), (UNLOAD, 200), (UNLOAD, 404)):
            response = client.post(path.format(**SERVED), headers=bearer(ADMIN))
            assert conforms(client, "POST", path, response) == status


# What schemathesis found


@pytest.mark.parametrize("path", PROBES)
def test_a_probe_with_another_method_is_told_which_there_are(client: TestClient, path: str) -> None:
    response = client.post(path)
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


def test_an_image_part_without_a_file_name_is_a_file(client: TestClient) -> None:
    def post(*headers: str) -> Any:
        lines = ["--B", 'Content-Disposition: form-data; name="image"', *headers, "", ""]
        content = "\r\n".join(lines).encode() + GOOD + b"\r\n--B--\r\n"
        return client.post(
            "/v1/predict", content=content, headers={"content-type": "multipart/form-data; boundary=B"}
        )

    assert post("Content-Type: image/png").json() == send(client, GOOD).json()
    for headers in ([], ["Content-Type: text/plain"]):
        assert post(*headers).json()["error"]["code"] == "not_a_file"


def test_any_text_names_a_v2_request(client: TestClient) -> None:
    for name in ("", "\u0000\n\u200b", "é😀"):
        answer = client.post("/v2/models/model/infer", json={"id": name, **tensor([0] * 192)})
        assert answer.json()["id"] == name


@pytest.mark.slow
def test_schemathesis_finds_nothing(onnx_model: Path, tmp_path: Path) -> None:
    """Every kind of request to every route of a real server, valid or not; see tests/support/schemathesis.toml."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "digit.png").write_bytes(GOOD)
    port = free_port()
    environment = {**os.environ, **{f"DUCAT_SERVE_{name.upper()}": value for name, value in GUARDED.items()}}
    environment["DUCAT_SERVE_SAMPLES"] = str(tmp_path / "samples")
    with started(serve_command(onnx_model, "--port", str(port)), port, tmp_path, environment) as server:
        command = [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            "tests/support/schemathesis.toml",
            "run",
        ]
        command += [f"{server.url}/openapi.json", "--no-color", "--report", "har,json"]
        for report in ("har", "json"):
            command += [f"--report-{report}-path", str(tmp_path / f"{report}.json")]
        done = subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, timeout=12 * WAIT, check=False
        )
        assert done.returncode == 0, done.stdout
        described = server.get("/openapi.json").json()
        assert "Traceback" not in server.log.read_text()
    assert_all_was_asked(described, tmp_path)


def assert_all_was_asked(described: dict[str, Any], reports: Path) -> None:
    """Every operation got its 200 and, where there is one, every kind of body; so "nothing" means something."""
    summary = json.loads((reports / "json.json").read_text())
    assert not any(summary["warnings"].values()), summary["warnings"]
    entries = json.loads((reports / "har.json").read_text())["log"]["entries"]
    accepted = []
    for entry in entries:
        if entry["response"]["status"] == 200:
            headers = {header["name"].lower(): header["value"] for header in entry["request"]["headers"]}
            path = re.sub(r"^http://[^/]+|\?.*$", "", entry["request"]["url"])
            kind = headers.get("content-type", "").partition(";")[0]
            accepted.append(f"{entry['request']['method']} {path} {kind}".strip())
    for (method, path), operation in operations(described).items():
        for kind in operation.get("requestBody", {}).get("content", [""]):
            named = {**SERVED, "name": "digit.png"} if path.startswith("/samples") else SERVED
            pattern = f"{method} {path.format(**named)} {kind}".strip()
            # schemathesis does not ask for the document that it was given
            assert fnmatch.filter(accepted, pattern) or path in ("/openapi.json", UNLOAD), pattern

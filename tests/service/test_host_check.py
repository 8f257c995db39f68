"""To which names a server answers: a web page must not read a local one under a name of its own."""

from __future__ import annotations

from typing import Any

import pytest

from ducat_serve.cli.main import run
from ducat_serve.errors import UsageError
from ducat_serve.predictor import Predictor
from service.middleware.host_check import names_to_check
from service.settings import Settings
from tests.support.application import ADMIN, ALICE, bearer, metrics, serving
from tests.support.http_client import GOOD, assert_error

OURS = (
    "localhost",
    "LocalHost:3000",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:3000",
    "127.8.7.6",
    "[::1]",
    "[::1]:3000",
    "[::ffff:127.0.0.1]:3000",
)
STRANGE = (
    "evil.example",
    "evil.example:3000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example#localhost",
    "evil@localhost",
    "localhost, evil.example",
    "10.0.0.1",
    "0.0.0.0",
    "[fe80::1]",
    "[::1",
    "::1:3000:1",
    "localhost:port",
    "",
    ":3000",
)


def status(client: Any, host: str, path: str = "/v1/model", **headers: str) -> int:
    return int(client.get(path, headers={"host": host, **headers}).status_code)


@pytest.mark.parametrize("bound", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_a_local_server_without_keys_answers_to_loopback_names_only(predictor: Predictor, bound: str) -> None:
    with serving_at(predictor, bound) as client:
        assert [status(client, host) for host in OURS] == [200] * len(OURS)
        assert [status(client, host) for host in STRANGE] == [421] * len(STRANGE)


def serving_at(predictor: Predictor, host: str, **settings: Any) -> Any:
    """`serving` asks for readiness as `testserver`, which a checked server would not answer."""
    return serving(predictor, base_url="http://localhost", host=host, **settings)


def test_a_refusal_is_an_error_like_any_other_and_nothing_else_happens(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_at(predictor, "127.0.0.1", daily_budget=1) as client, caplog.at_level("INFO"):
        caplog.clear()
        for path in ("/", "/v1/predict", "/v2/models/model/infer", "/metrics", "/nowhere", "/livez"):
            refused = client.post(path, content=GOOD, headers={"host": "evil.example"})
            assert_error(refused, 421, "unknown_host")
            assert "evil" not in refused.text
            assert refused.headers["x-request-id"] in caplog.text
        seen = metrics(client)
        assert seen["ducat_rejects_total", "unknown_host"] == 6
        assert seen["ducat_requests_total", "predict", "421"] == 1
        assert caplog.text.count('"reason": "unknown_host"') == 6
        answer = client.post("/v1/predict", content=GOOD, headers={"content-type": "image/png"})
        assert answer.status_code == 200, "the budget of one image was not touched"


def test_every_one_of_several_host_headers_must_be_ours(predictor: Predictor) -> None:
    with serving_at(predictor, "127.0.0.1") as client:
        for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
            answer = client.get("/v1/model", headers=[("host", host) for host in hosts])
            assert_error(answer, 421, "unknown_host")


def test_a_server_with_keys_or_for_other_machines_answers_to_any_name(predictor: Predictor) -> None:
    with serving(predictor, host="127.0.0.1", api_keys=f"alice:{ALICE}") as client:
        assert status(client, "evil.example", **bearer(ALICE)) == 200
        assert status(client, "evil.example") == 401
    for host in ("0.0.0.0", "::", "192.0.2.1", None):
        with serving(predictor, host=host) as client:
            assert status(client, "evil.example") == 200
    with serving_at(predictor, "127.0.0.1", admin_key=ADMIN) as client:
        assert status(client, "evil.example") == 421, "an admin key is not asked for here"


def test_allowed_hosts_are_allowed_and_no_others(predictor: Predictor) -> None:
    allowed = "Ducat.example, testserver,10.0.0.7,::2"
    for host in ("127.0.0.1", "0.0.0.0", None):
        with serving(predictor, host=host, allowed_hosts=allowed) as client:
            for name in ("ducat.example", "DUCAT.example:443", "10.0.0.7", "[::2]:80", "localhost"):
                assert status(client, name) == 200, name
            for name in ("evil.example", "www.ducat.example", "ducat.example.evil"):
                assert status(client, name) == 421, name
    with serving(predictor, host="127.0.0.1", allowed_hosts="*") as client:
        assert status(client, "evil.example") == 200
    keys = f"alice:{ALICE}"
    with serving(predictor, allowed_hosts=allowed, api_keys=keys, host="0.0.0.0") as client:
        assert status(client, "evil.example", **bearer(ALICE)) == 421


@pytest.mark.parametrize(
    "allowed",
    [",", "https://ducat.example", "ducat.example:443", "ducat.example/x", "a b", "*.example", "[::1]"],
)
def test_what_names_no_host_is_refused_at_the_start(
    onnx_model: Any, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError):
        names_to_check(Settings(model=onnx_model, allowed_hosts=allowed))
    assert run(["serve", str(onnx_model), "--allowed-hosts", allowed]) == 2
    assert "host" in capsys.readouterr().err

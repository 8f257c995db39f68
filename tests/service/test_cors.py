"""Pages of other origins: only those that were named, and never without the keys."""

from __future__ import annotations

import pytest

from ducat_serve.errors import UsageError
from ducat_serve.predictor import Predictor
from service.middleware.cors_origins import read_origins
from tests.support.application import ALICE, FakeModel, bearer, metrics, serve, serving
from tests.support.http_client import GOOD, assert_error, is_ready, send, until

OURS, OTHER = "https://app.example", "https://app.example.evil.example"
ASK = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, traceparent, tracestate",
}


def test_only_a_named_origin_may_read(predictor: Predictor) -> None:
    with serving(predictor, cors_origins=f"{OURS}, http://localhost:5173") as client:
        for origin, allowed in (
            (OURS, True),
            ("http://localhost:5173", True),
            (OTHER, False),
            ("null", False),
        ):
            answer = client.get("/v1/models", headers={"origin": origin})
            assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "x-request-id" in answer.headers
            asked = client.options("/v1/predict", headers={"origin": origin, **ASK})
            assert (asked.status_code == 200) == allowed
            assert ("access-control-allow-origin" in asked.headers) == allowed
        assert "access-control-allow-credentials" not in answer.headers


def test_keys_are_asked_for_and_a_refusal_can_be_read(predictor: Predictor) -> None:
    with serving(predictor, cors_origins=OURS, api_keys=f"alice:{ALICE}") as client:
        assert client.options("/v1/predict", headers={"origin": OURS, **ASK}).status_code == 200
        refused = client.get("/v1/model", headers={"origin": OURS})
        assert_error(refused, 401, "unauthorized")
        assert refused.headers["access-control-allow-origin"] == OURS
        assert client.get("/v1/model", headers={"origin": OURS, **bearer(ALICE)}).status_code == 200


def test_every_error_can_be_read(predictor: Predictor) -> None:
    model = FakeModel(predictor, cors_origins=OURS, allowed_hosts="testserver")
    with serve(model) as client:
        until(lambda: is_ready(client))
        model.failure = RuntimeError("broken")
        headers = {"origin": OURS, "content-type": "image/png"}
        failed = client.post("/v1/predict", content=GOOD, headers=headers)
        assert_error(failed, 500, "internal_error")
        strange = client.get("/v1/model", headers={"origin": OURS, "host": "strange.example"})
        assert_error(strange, 421, "unknown_host")
        for refused in (failed, strange):
            assert refused.headers["access-control-allow-origin"] == OURS
            assert "x-request-id" in refused.headers


def test_a_refused_question_of_a_browser_has_the_form_of_all_errors(predictor: Predictor) -> None:
    with serving(predictor, cors_origins=OURS) as client:
        for origin, asked, what in (
            (OTHER, ASK, "origin"),
            (OURS, {**ASK, "access-control-request-method": "DELETE"}, "method"),
            (OTHER, {**ASK, "access-control-request-headers": "x-other"}, "origin, headers"),
        ):
            for path in ("/v1/predict", "/v2/models/model/infer"):
                refused = client.options(path, headers={"origin": origin, **asked})
                assert_error(refused, 400, "cross_origin_refused")
                assert f"for its {what}." in refused.text
                assert "Origin" in refused.headers["vary"]
                assert refused.headers.get("access-control-allow-origin") == (
                    OURS if origin == OURS else None
                )
        assert metrics(client)[("ducat_rejects_total", "cross_origin_refused")] == 6


def test_without_the_option_nothing_is_allowed(predictor: Predictor) -> None:
    with serving(predictor) as client:
        answer = client.get("/v1/models", headers={"origin": OURS})
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert send(client, GOOD).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "app.example",
        "https://app.example/",
        "https://APP.example",
        "https://app.example:443",
        "null",
        " , ",
    ],
)
def test_what_no_browser_would_send_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_origins(text)

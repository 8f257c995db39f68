"""What is seen from outside: metrics, request ids, log lines."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from ducat_serve.predictor import Predictor
from service.application import create_app
from service.middleware.request_log import PROBES, route_of
from tests.support.application import ADMIN, ALICE, FakeModel, bearer, metrics, serve, serving
from tests.support.http_client import DIGITS, GOOD, assert_error, encode, is_ready, predictions, send, until


def test_requests_rows_and_dummy_mass_are_counted(predictor: Predictor) -> None:
    with serving(predictor) as client:
        images = DIGITS[:5]
        answers = predictions(send(client, *map(encode, images)))
        assert_error(send(client, b"no image"), 400, "invalid_image")
        assert_error(client.get("/nowhere"), 404, "not_found")
        seen = metrics(client)
        assert seen["ducat_requests_total", "predict", "200"] == 1
        assert seen["ducat_requests_total", "predict", "400"] == 1
        assert seen["ducat_requests_total", "other", "404"] == 1
        assert seen["ducat_rejects_total", "invalid_image"] == 1
        assert seen["ducat_rejects_total", "not_found"] == 1
        assert seen["ducat_dummy_mass_count", "model", "1"] == 5
        total = sum(answer["dummy_mass"] for answer in answers)
        assert seen["ducat_dummy_mass_sum", "model", "1"] == pytest.approx(total, rel=1e-5)
        assert seen["ducat_stage_seconds_count", "decode"] == 1, "a request that fails has no stage"
        assert seen["ducat_request_seconds_count", "predict"] == 1, "a refusal takes no time"
        assert seen[("ducat_queue_rows",)] == 0


def test_queue_and_batches_are_seen_while_they_happen(predictor: Predictor) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = FakeModel(predictor, deadline=60)  # so that a busy machine answers nobody before all have asked
    with TestClient(create_app(model)) as client, ThreadPoolExecutor(4) as threads:
        until(lambda: is_ready(client))
        model.gate.clear()
        first = threads.submit(send, client, GOOD)
        assert model.started.wait(30)
        others = [threads.submit(send, client, GOOD) for _ in range(3)]
        until(lambda: metrics(client)[("ducat_queue_rows",)] == 4)
        assert metrics(client)[("ducat_requests_in_flight",)] == 4
        model.gate.set()
        for answer in (first, *others):
            predictions(answer.result())
        seen = metrics(client)
        assert seen[("ducat_batch_rows_count",)] == 2
        assert seen[("ducat_batch_rows_sum",)] == 4, "one alone, then the three that waited"
        assert seen["ducat_stage_seconds_count", "queue"] == 4
        assert seen["ducat_stage_seconds_count", "infer"] == 2
        info = [key for key in seen if key[0] == "ducat_model_info"]
        digest = predictor.spec.weights_digest[:12]
        function = predictor.function_digest[:12]
        assert info == [("ducat_model_info", digest, function, "model", "float32", predictor.provider, "1")]


def test_label_sets_stay_bounded_whatever_clients_ask(predictor: Predictor) -> None:
    with serving(predictor) as client:
        paths = [f"/{i}" for i in range(50)] + [f"/v2/models/{i}/infer" for i in range(50)]
        for path in paths:
            client.get(path)
        metrics(client)  # counts itself, once it is over
        before = set(metrics(client))
        for path in paths:
            client.request("POST", path + "x", headers={"x-api-key": path})
        after = set(metrics(client)) - before
        values = {value for key in after for value in key[1:]}
        assert not any(path.strip("/") in values or path in values for path in paths)
        assert len(after) < 20
    assert route_of("/v1/predict/../../x") == "other"


@pytest.mark.parametrize(
    "given", [None, "mine-7.x", "x" * 65, 'a"b', "a b", "\N{SNOWMAN}".encode().decode("latin-1")]
)
def test_every_answer_has_a_request_id_and_a_harmless_one_is_kept(
    predictor: Predictor, given: str | None
) -> None:
    with serving(predictor) as client:
        headers: Any = {} if given is None else {"x-request-id": given.encode("latin-1")}
        for path in ("/v1/model", "/nowhere", "/"):
            found = client.get(path, headers=headers).headers.get_list("x-request-id")
            assert len(found) == 1
            assert (found[0] == given) == (given == "mine-7.x")
            assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", found[0])


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(record.message) for record in caplog.records if record.name == "ducat_serve.access"]


@pytest.mark.parametrize("access_log", [False, True])
def test_what_went_wrong_is_logged_as_json_with_key_name_and_reason(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, access_log: bool
) -> None:
    with (
        caplog.at_level(logging.INFO, "ducat_serve.access"),
        serving(predictor, api_keys=f"alice:{ALICE}", access_log=access_log) as client,
    ):
        caplog.clear()
        headers = {**bearer(ALICE), "x-request-id": "seven"}
        client.post("/v1/predict", content=b"", headers=headers)
        client.get("/v1/model", headers=bearer(ALICE))
        client.post("/v1/predict", content=GOOD, headers=bearer("wrong" * 5))
        found = lines(caplog)
    bad, *rest = found
    assert bad.pop("seconds") >= 0
    assert bad == {
        "request_id": "seven",
        "method": "POST",
        "path": "/v1/predict",
        "status": 415,
        "client": "testclient",
        "key": "alice",
        "reason": "unsupported_media_type",
    }
    assert [line["status"] for line in rest] == ([200, 401] if access_log else [401])
    assert rest[-1]["reason"] == "unauthorized"
    assert ALICE not in caplog.text
    assert "wrong" not in caplog.text


def test_probes_have_an_id_and_a_reason_and_are_not_counted(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that only probes ask would else fail in half of its requests while it loads."""
    model = FakeModel(predictor)
    with caplog.at_level(logging.INFO, "ducat_serve.access"), serve(model) as client:
        until(lambda: is_ready(client))
        for path in PROBES:
            assert client.get(path, headers={"x-request-id": "seven"}).headers["x-request-id"] == "seven"
            assert client.head(path).status_code == 200
        model.is_draining = True
        caplog.clear()
        refused = client.get("/readyz")
        assert_error(refused, 503, "stopping")
        assert refused.headers["retry-after"]
        assert client.get("/livez").status_code == 200
        [line] = lines(caplog)
        assert (line["path"], line["reason"]) == ("/readyz", "stopping")
        assert not [key for key in metrics(client) if "probe" in key or "stopping" in key]


def test_a_failure_inside_is_counted_and_told_without_its_cause(predictor: Predictor) -> None:
    model = FakeModel(predictor)
    with TestClient(create_app(model), raise_server_exceptions=False) as client:
        until(lambda: is_ready(client))
        model.failure = RuntimeError("secret path /etc")
        assert_error(send(client, GOOD), 500, "internal_error")
        seen = metrics(client)
        assert seen["ducat_requests_total", "predict", "500"] == 1
        assert seen["ducat_request_seconds_count", "predict"] == 1
        assert seen["ducat_rejects_total", "internal_error"] == 1
        model.failure = None
        predictions(send(client, GOOD))


def test_metrics_are_for_admins_where_there_is_an_admin_key(predictor: Predictor) -> None:
    with serving(predictor, admin_key=ADMIN, api_keys=f"alice:{ALICE}") as client:
        assert_error(client.get("/metrics"), 401, "unauthorized")
        assert_error(client.get("/metrics", headers=bearer(ALICE)), 401, "unauthorized")
        assert client.get("/metrics", headers=bearer(ADMIN)).status_code == 200
        assert_error(client.get("/metricsfoo"), 404, "not_found")
        assert_error(client.get("/v1/model", headers=bearer(ADMIN)), 401, "unauthorized")

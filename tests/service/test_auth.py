"""API keys, rates and budgets: who may ask, and how much."""

from __future__ import annotations

import hmac
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

import service.middleware.api_keys as keys_module
from ducat_serve.cli.commands.serve import command as serve_command
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError, DucatError, UsageError
from ducat_serve.predictor import Predictor
from service.application import create_app
from service.decoding.decoders import Decoders
from service.errors import APIError
from service.middleware.api_keys import Keys
from service.middleware.rate_limit import Quota
from service.models.registry import Models
from service.page.document import page_headers
from service.settings import Settings
from tests.support.application import ADMIN, ALICE, BOB, FakeModel, bearer, metrics, serve, serving
from tests.support.http_client import (
    GOOD,
    MULTIPART,
    WAIT,
    assert_error,
    is_ready,
    part,
    predictions,
    send,
    until,
)

DAY = 86_400


def ask(client: TestClient, headers: dict[str, str] | None = None, images: int = 1) -> Any:
    content = part(GOOD) * images + b"--B--\r\n"
    return client.post("/v1/predict", content=content, headers={**MULTIPART, **(headers or {})})


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def quota(rate: float | None = None, burst: int = 10, daily: int | None = None) -> tuple[Quota, Clock, Clock]:
    clock, calendar = Clock(), Clock()
    calendar.now = 20_000 * DAY + 3600.0  # one o'clock
    return Quota(rate, burst, daily, clock, calendar), clock, calendar


def test_a_bucket_refills_at_its_rate_up_to_its_burst() -> None:
    subject, clock, _ = quota(rate=2, burst=10)
    subject.charge(10)
    with pytest.raises(APIError) as caught:
        subject.charge(3)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, "rate_limited", 1.5)
    clock.now += 1.5
    subject.charge(3)
    with pytest.raises(APIError):
        subject.charge(1)
    clock.now += 1000
    subject.charge(10)
    with pytest.raises(APIError):
        subject.require(1)


def test_what_is_refused_costs_nothing() -> None:
    subject, clock, _ = quota(rate=1, burst=10, daily=100)
    for _ in range(50):
        with pytest.raises(APIError):
            subject.charge(11)
    subject.charge(10)
    clock.now += 10
    subject.charge(10)


def test_a_budget_is_for_a_day_and_a_clock_that_jumps_gives_no_second_one() -> None:
    subject, _, calendar = quota(daily=5)
    subject.charge(4)
    with pytest.raises(APIError) as caught:
        subject.charge(2)
    assert (caught.value.code, caught.value.retry_after) == ("budget_spent", 23 * 3600)
    subject.charge(1)
    calendar.now -= 40 * DAY
    with pytest.raises(APIError) as caught:
        subject.charge(1)
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= DAY
    calendar.now += 40 * DAY + 22.5 * 3600
    with pytest.raises(APIError):
        subject.charge(1)
    calendar.now += 3600
    subject.charge(5)


def test_a_calendar_that_was_once_far_ahead_takes_no_budget_for_more_than_a_day() -> None:
    subject, clock, calendar = quota(daily=5)
    subject.charge(5)
    calendar.now += 400 * DAY
    subject.charge(5)
    calendar.now -= 400 * DAY
    with pytest.raises(APIError) as caught:
        subject.charge(1)
    assert caught.value.retry_after == DAY, "to promise less would have the client come back in vain"
    for moment in (calendar, clock):
        moment.now += DAY - 1
    with pytest.raises(APIError):
        subject.charge(1)
    for moment in (calendar, clock):
        moment.now += 1
    subject.charge(5)
    for moment in (calendar, clock):  # from now on by the calendar again
        moment.now += 23 * 3600
    subject.charge(5)
    with pytest.raises(APIError):
        subject.charge(1)


def test_no_key_or_a_wrong_one_is_refused_before_the_body_is_read(predictor: Predictor) -> None:
    with serving(predictor, api_keys=f"alice:{ALICE},bob:{BOB}") as client:
        for headers in (
            {},
            bearer("wrong"),
            bearer(ALICE[:-1]),
            {"authorization": f"Basic {ALICE}"},
            bearer("é"),
        ):
            encoded: Any = {name: value.encode("latin-1") for name, value in headers.items()}
            response = client.post("/v1/predict", content=b"not even a form", headers=encoded)
            assert_error(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/model", "/v2/models/model", "/v2/models/model/ready"):
            assert_error(client.get(path), 401, "unauthorized")
            assert client.get(path, headers=bearer(BOB)).status_code == 200
        assert_error(client.post("/v2/models/model/infer", json={}), 401, "unauthorized")
        assert len(predictions(ask(client, bearer(ALICE)))) == 1
        assert len(predictions(ask(client, {"x-api-key": BOB}))) == 1
        for path in ("/", "/v2", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200, "probes and the page need no key"


def test_each_key_has_its_own_budget_counted_in_images(predictor: Predictor) -> None:
    with serving(predictor, api_keys=f"alice:{ALICE},bob:{BOB}", daily_budget=5) as client:
        assert len(predictions(ask(client, bearer(ALICE), 3))) == 3
        refused = ask(client, bearer(ALICE), 3)
        assert_error(refused, 429, "budget_spent")
        assert int(refused.headers["retry-after"]) > 0
        assert len(predictions(ask(client, bearer(ALICE), 2))) == 2
        assert_error(ask(client, bearer(ALICE)), 429, "budget_spent")
        assert client.get("/v1/model", headers=bearer(ALICE)).status_code == 200
        too_many = ask(client, bearer(BOB), 6)
        assert_error(too_many, 413, "too_many_images")
        assert "more than the whole budget of 5 images per day" in too_many.text
        assert "retry-after" not in too_many.headers
        assert len(predictions(ask(client, bearer(BOB), 5))) == 5
        data = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}]}
        response = client.post("/v2/models/model/infer", json=data, headers=bearer(BOB))
        assert_error(response, 429, "budget_spent")


def test_images_are_charged_before_they_are_decoded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a budget also bounds the work of decoding; requests without any image cost nothing."""
    decoded: list[int] = []

    decode = Decoders.decode

    async def counted(decoders: Decoders, *image: Any) -> NDArray[np.uint8]:
        decoded.append(len(image[0]))
        return await decode(decoders, *image)

    monkeypatch.setattr(Decoders, "decode", counted)
    with serving(predictor, daily_budget=3) as client:
        assert_error(client.post("/v1/predict", content=b"--B--", headers=MULTIPART), 400, "missing_image")
        assert_error(send(client, GOOD, b"no image"), 400, "invalid_image")
        assert len(decoded) == 2
        assert_error(send(client, GOOD, GOOD), 429, "budget_spent")
        assert len(decoded) == 2, "what was refused is not decoded"
        assert len(predictions(send(client, GOOD))) == 1
        assert_error(send(client, GOOD), 429, "budget_spent")


def test_a_budget_does_not_pay_for_failures_of_the_server(predictor: Predictor) -> None:
    model = FakeModel(predictor, daily_budget=2, max_queue=1, max_images=1)
    with serve(model) as client, ThreadPoolExecutor(1) as pool:
        until(lambda: is_ready(client))
        model.failure = RuntimeError("a fault")
        for _ in range(3):
            assert_error(send(client, GOOD), 500, "internal_error")
        model.failure = None
        model.gate.clear()
        model.started.clear()
        first = pool.submit(send, client, GOOD)
        assert model.started.wait(WAIT)
        for _ in range(3):
            assert_error(send(client, GOOD), 429, "overloaded")
        model.gate.set()
        assert len(predictions(first.result(WAIT))) == 1
        assert_error(send(client, b"no image"), 400, "invalid_image")
        assert_error(send(client, GOOD), 429, "budget_spent")


def test_a_refund_of_yesterday_is_no_credit_for_today() -> None:
    subject, _, calendar = quota(daily=5)
    subject.charge(4)
    calendar.now += DAY
    subject.charge(1)
    subject.refund(4)
    subject.charge(5)
    with pytest.raises(APIError):
        subject.charge(1)


def test_a_rate_without_keys_is_shared_by_all(predictor: Predictor) -> None:
    with serving(predictor, rate=0.001, max_images=2) as client:
        assert len(predictions(ask(client, images=2))) == 2
        refused = ask(client)
        assert_error(refused, 429, "rate_limited")
        assert int(refused.headers["retry-after"]) > 500


def test_keys_are_read_again_when_their_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_SECONDS", 0)
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nalice:{ALICE}\n")
    keys = Keys(file, f"fixed:{'f' * 32}")
    assert (keys.name_of(ALICE), keys.name_of(BOB), keys.name_of("f" * 32)) == ("alice", None, "fixed")
    file.write_text(f"bob:{BOB}\n")
    assert (keys.name_of(ALICE), keys.name_of(BOB), keys.name_of("f" * 32)) == (None, "bob", "fixed")
    with caplog.at_level(logging.ERROR):
        file.write_text("half a line")
        assert keys.name_of(BOB) == "bob", "a bad file changes nothing"
        file.unlink()
        assert keys.name_of(BOB) == "bob"
    assert "half a line" not in caplog.text
    assert "entry 1" in caplog.text
    replacement = tmp_path / "new"
    replacement.write_text(f"alice:{ALICE}\n")
    replacement.replace(file)
    assert keys.name_of(ALICE) == "alice"


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("API_KEYS", "ADMIN_KEY", "ALLOWED_HOSTS") for value in ("", "  ", "\n")]
    + [("KEYS_FILE", "")],
)
def test_a_variable_that_was_not_filled_in_never_means_no_key(
    onnx_model: Path,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(f"DUCAT_SERVE_{name}", value)
    assert run(["serve", str(onnx_model)]) == 2
    assert f"DUCAT_SERVE_{name} is set but empty" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["KEYS", "KEY", "API_KEY", "ADMIN", "SIGNATURE", "RATE_LIMIT", "BUDGET"])
def test_a_variable_that_is_no_setting_never_means_no_key(onnx_model: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"DUCAT_SERVE_{name} is no setting"):
        Settings.from_environment({"DUCAT_SERVE_MODEL": str(onnx_model), f"DUCAT_SERVE_{name}": ALICE})


def test_keys_of_an_editor_that_marks_its_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{ALICE}\n", encoding="utf-8-sig")
    assert Keys(file, None).name_of(ALICE) == "alice"


@pytest.mark.parametrize("text", ["", "\n", "# alice left\n"])
def test_a_file_without_a_key_is_refused_and_a_running_server_keeps_its_keys(
    tmp_path: Path,
    onnx_model: Path,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A server that was ready and refused everybody would take the place of one that works."""
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_SECONDS", 0)
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UsageError, match="keys holds no key"):
        create_app(Models(Settings(model=onnx_model, keys_file=file)))
    assert Keys(file, f"bob:{BOB}").name_of(BOB) == "bob", "there is one beside the file"
    file.write_text(f"alice:{ALICE}\n")
    keys = Keys(file, None)
    file.write_text(text)
    with caplog.at_level(logging.ERROR):
        assert keys.name_of(ALICE) == "alice"
    assert "The API keys stay as they were: " in caplog.text


@pytest.mark.parametrize("text", ["", ",", " , ,", "#alice:" + "k" * 32])
def test_keys_without_a_key_are_refused(onnx_model: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="DUCAT_SERVE_API_KEYS"):
        Keys(None, text)
    with pytest.raises(UsageError, match="DUCAT_SERVE_API_KEYS"):
        create_app(Models(Settings(model=onnx_model, api_keys=text)))
    monkeypatch.setenv("DUCAT_SERVE_API_KEYS", text)
    assert run(["serve", str(onnx_model)]) == 2


def test_the_admin_key_is_nobodys(
    tmp_path: Path, onnx_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither at the start nor where a file of keys changes."""
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_SECONDS", 0)
    file = tmp_path / "keys"
    file.write_text(f"bob:{ADMIN}\n")
    for from_file, text in ((file, None), (None, f"bob:{ADMIN}")):
        with pytest.raises(UsageError, match="'bob'") as caught:
            Keys(from_file, text, ADMIN)
        assert ADMIN not in str(caught.value)
        with pytest.raises(UsageError):
            create_app(
                Models(Settings(model=onnx_model, keys_file=from_file, api_keys=text, admin_key=ADMIN))
            )
    monkeypatch.setenv("DUCAT_SERVE_ADMIN_KEY", ADMIN)
    assert run(["serve", str(onnx_model), "--keys-file", str(file)]) == 2

    file.write_text(f"alice:{ALICE}\n")
    keys = Keys(file, None, ADMIN)
    file.write_text(f"bob:{ADMIN}\ncarol:{BOB}\n")
    with caplog.at_level(logging.ERROR):
        assert (keys.name_of(ALICE), keys.name_of(ADMIN), keys.name_of(BOB)) == ("alice", None, None)
    assert "The API keys stay as they were: The admin key is also the key of 'bob'" in caplog.text


@pytest.mark.parametrize("name", ["deadline", "drain", "rate"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_a_bound_is_a_finite_number(
    onnx_model: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.from_environment(
            {"DUCAT_SERVE_MODEL": str(onnx_model), f"DUCAT_SERVE_{name.upper()}": value}
        )
    with pytest.raises(click.BadParameter, match="finite"):
        serve_command.make_context("serve", [str(onnx_model), f"--{name}", value])


@pytest.mark.parametrize(
    "line",
    [
        *("nocolon", "name:short", ":" + "k" * 32, "two words:" + "k" * 32, "n:" + "é" * 32),
        *("n: " + "k" * 32, "n:\t" + "k" * 32, "n:" + "k k" * 16, "n:" + "k\x7f" * 16, "n:" + "k\0" * 16),
    ],
)
def test_a_bad_key_is_named_by_its_place_never_by_its_text(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{ALICE}\n{line}\n")
    with pytest.raises(UsageError, match="entry 2") as caught:
        Keys(file, None)
    assert line not in str(caught.value)


@pytest.mark.parametrize("name", ["team-a", "alice@example.org", "a", "_1.b", "n" * 64])
def test_names_of_clients_are_logged_as_they_are(
    predictor: Predictor, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audit = tmp_path / "audit.jsonl"
    with serving(predictor, api_keys=f"{name}:{ALICE}", audit_log=audit, access_log=True) as client:
        predictions(ask(client, bearer(ALICE)))
        assert not any(name in labels for _, *labels in metrics(client))
    assert json.loads(audit.read_text())["key"] == name
    assert f'"key": "{name}"' in caplog.text


@pytest.mark.parametrize("name", ["two words", "n" * 65, "zoë", 'a"b', "a\tb", "a/b", ""])
def test_a_name_that_is_refused_is_not_blamed_on_the_key(name: str) -> None:
    with pytest.raises(UsageError, match="entry 2: its NAME is not 1 to 64 letters") as caught:
        Keys(None, f"bob:{BOB},{name}:{ALICE}")
    assert ALICE not in str(caught.value)


def test_a_key_has_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_SECONDS", 0)
    file = tmp_path / "keys"
    file.write_text(f"alice:{ALICE}\nbob:{ALICE}\n")
    for from_file, text in ((file, None), (None, f"alice:{ALICE},bob:{ALICE}")):
        with pytest.raises(UsageError, match="'alice' and 'bob' have the same key") as caught:
            Keys(from_file, text)
        assert ALICE not in str(caught.value)
    file.write_text(f"alice:{ALICE}\nalice:{BOB}\n")
    keys = Keys(file, f"alice:{ALICE}")
    assert (keys.name_of(ALICE), keys.name_of(BOB)) == ("alice", "alice"), "old and new, while they change"
    file.write_text(f"mallory:{ALICE}\n")
    with caplog.at_level(logging.ERROR):
        assert (keys.name_of(ALICE), keys.name_of(BOB)) == ("alice", "alice")
    assert "The API keys stay as they were: 'alice' and 'mallory' have the same key" in caplog.text


@pytest.mark.parametrize("key", ["m" * 15, " " + "m" * 32, "m" * 32 + "\n", "m m" * 16, "é" * 32])
def test_an_admin_key_that_no_header_carries_is_refused_at_the_start(onnx_model: Path, key: str) -> None:
    with pytest.raises(
        UsageError, match="admin_key: a key has at least 16 characters, all from ! to ~"
    ) as error:
        Settings.from_environment({"DUCAT_SERVE_MODEL": str(onnx_model), "DUCAT_SERVE_ADMIN_KEY": key})
    assert key not in str(error.value)


def test_a_missing_file_of_keys_never_means_no_keys(
    tmp_path: Path, onnx_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError):
        Keys(tmp_path / "none", None)
    assert run(["serve", str(onnx_model), "--keys-file", str(tmp_path / "none")]) == 4
    assert "API keys" in capsys.readouterr().err


def test_comparing_keys_takes_no_short_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known key is compared, as digests of one length, wherever the right one stands."""
    lengths: list[tuple[int, int]] = []
    original = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        lengths.append((len(a), len(b)))
        return original(a, b)

    keys = Keys(None, ",".join(f"k{i}:{str(i) * 32}" for i in range(5)))
    monkeypatch.setattr(hmac, "compare_digest", counted)
    for key in ("0" * 32, "4" * 32, "wrong", ""):
        lengths.clear()
        keys.name_of(key)
        assert lengths == [(32, 32)] * 5


def test_the_page_may_load_nothing_but_itself(client: TestClient) -> None:
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy == page_headers(response.text)["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2, "one script, one style"
    assert "http" not in policy
    for word in ("onclick=", "style=", "javascript:", 'src="', "stylesheet"):
        assert word not in response.text, "the policy would block it"
    assert response.headers["x-frame-options"] == "DENY"


def test_settings_never_print_keys(onnx_model: Path) -> None:
    assert ALICE not in repr(Settings(model=onnx_model, api_keys=f"alice:{ALICE}"))
    with pytest.raises(DucatError) as caught:
        Keys(None, f"alice {ALICE}")
    assert ALICE not in str(caught.value)

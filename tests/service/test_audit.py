"""The audit log: what a line says, rotation, a full disk, and that nothing goes out unrecorded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictions, Predictor
from service.settings import Settings
from service.telemetry import audit
from service.telemetry.audit import AuditLog, Origin
from tests.support.application import ALICE, bearer, metrics, serving
from tests.support.http_client import DIGITS, GOOD, assert_error, encode, predictions, send, until
from tests.support.request_bodies import binary, binary_tensor

ORIGIN = Origin("id", "alice", "model", "1", "abc", "def", "float32", ("cat", "dog"))
ONE = Predictions(np.array([[0.0, 2.0]], np.float32), np.array([1], np.int64), np.array([0.0], np.float32))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_line_says_who_asked_what_answered_and_which_image(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    other = encode(DIGITS[1])
    with serving(predictor, audit_log=path, api_keys=f"alice:{ALICE}") as client:
        headers = {**bearer(ALICE), "x-request-id": "seven"}
        files = [("image", ("a.png", data, "image/png")) for data in (GOOD, other)]
        answer = client.post("/v1/predict", files=files, headers=headers)
        found = predictions(answer)
        assert_error(client.post("/v1/predict", content=b"x", headers=headers), 415, "unsupported_media_type")
    first, second = lines(path)
    assert abs(first.pop("confidence") - found[0]["confidence"]) < 1e-6
    assert first.pop("time").endswith("Z")
    assert first == {
        "request_id": "seven",
        "key": "alice",
        "model": "model",
        "version": "1",
        "weights_digest": predictor.spec.weights_digest,
        "function_digest": predictor.function_digest,
        "precision": "float32",
        "label": found[0]["label"],
        "class_id": found[0]["class_id"],
        "image_sha256": sha256(GOOD),
    }
    assert second["image_sha256"] == sha256(other)
    assert ALICE not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_arrays_and_v2_are_recorded_by_their_pixels(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving(predictor, audit_log=path) as client:
        buffer = tmp_path / "images.npy"
        np.save(buffer, DIGITS[:2])
        predictions(
            client.post(
                "/v1/predict", content=buffer.read_bytes(), headers={"content-type": "application/x-npy"}
            )
        )
        sent = binary(binary_tensor(1, 192), DIGITS[3].tobytes())
        assert client.post(**sent).status_code == 200
    assert [line["image_sha256"] for line in lines(path)] == [
        sha256(DIGITS[index].tobytes()) for index in (0, 1, 3)
    ]


def test_a_renamed_file_is_made_anew_without_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.record(ORIGIN, ["1"], ONE)
    until(lambda: log.waiting == 0)
    path.rename(tmp_path / "audit.jsonl.1")
    log.record(ORIGIN, ["2"], ONE)
    until(lambda: log.waiting == 0)
    log.close()
    assert [line["image_sha256"] for line in lines(path)] == ["2"]
    assert [line["image_sha256"] for line in lines(tmp_path / "audit.jsonl.1")] == ["1"]


def test_a_file_that_all_could_read_is_made_private(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "audit.jsonl"
    path.touch()
    path.chmod(0o666)
    AuditLog(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert caplog.records == []


def test_where_it_cannot_be_made_private_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def not_the_owner(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(audit.os, "fchmod", not_the_owner)  # type: ignore[attr-defined]
    path = tmp_path / "audit.jsonl"
    path.touch()
    path.chmod(0o644)
    log = AuditLog(path)
    log.record(ORIGIN, ["1"], ONE)
    log.close()
    assert len(lines(path)) == 1
    assert "-rw-r--r--" in caplog.text
    assert f"chmod 600 {path}" in caplog.text


class FullDisk:
    """`os.write` that puts half of what it is given into the file and then finds no room, until there is some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = True
        self.tried = threading.Event()
        self._real = os.write
        monkeypatch.setattr(audit.os, "write", self)  # type: ignore[attr-defined]
        monkeypatch.setattr(audit, "_RETRY_SECONDS", 0.01)
        monkeypatch.setattr(audit, "_STOP_SECONDS", 0.1)

    def __call__(self, file: int, data: bytes) -> int:
        if threading.current_thread().name != "audit" or not self.is_full:
            return self._real(file, data)
        self.tried.set()
        self._real(file, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_refuses_predictions_before_any_is_lost(
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(audit, "MOST_WAITING", 3)
    disk = FullDisk(monkeypatch)
    path = tmp_path / "audit.jsonl"
    with serving(predictor, audit_log=path) as client:
        for _ in range(3):
            predictions(send(client, GOOD))
        assert disk.tried.wait(30)
        refused = send(client, GOOD)
        assert_error(refused, 503, "audit_unavailable")
        assert refused.headers["retry-after"]
        assert_error(client.get("/v2/health/ready"), 503, "audit_unavailable")
        assert metrics(client)[("ducat_audit_waiting",)] == 3
        assert "cannot be written" in caplog.text
        disk.is_full = False
        until(lambda: metrics(client)[("ducat_audit_waiting",)] == 0)
        predictions(send(client, GOOD))
    assert len(lines(path)) == 4, "every line whole, and every prediction once"


def test_what_is_lost_at_the_end_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FullDisk(monkeypatch)
    log = AuditLog(tmp_path / "audit.jsonl")
    log.record(ORIGIN, ["1"], ONE)
    log.close()
    assert "1 predictions are not in the audit log" in caplog.text


def test_what_is_no_file_is_refused_at_the_start(tmp_path: Path, onnx_model: Path) -> None:
    from ducat_serve.cli.main import run

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "nowhere" / "audit.jsonl", tmp_path):
        with pytest.raises(DataError, match="audit log"):
            AuditLog(path)
    for path, code in ((tmp_path / "pipe", 4), (Path(os.devnull), 4), (tmp_path, 2)):
        assert run(["serve", str(onnx_model), "--audit-log", str(path)]) == code


def test_without_the_option_nothing_is_hashed(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_digests", None)
    assert Settings(model=Path("model.onnx")).audit_log is None
    with serving(predictor) as client:
        predictions(send(client, GOOD))
        assert ("ducat_audit_waiting",) not in metrics(client)

"""A server that asks for signatures loads nothing else: at the start, at a reload, and as a new version."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from ducat_serve.bundled import model_path
from ducat_serve.cli.main import run
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.signature import signature_path
from service.models.served import load
from service.models.verification import verify_apart
from service.settings import Settings
from tests.support.application import ADMIN, bearer, reload, serving_path
from tests.support.http_client import GOOD, assert_error, send
from tests.support.keys import KeyPair, key_pair, signed
from tests.support.model_repository import place

MODEL = model_path("digits-small", "onnx")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def repository(tmp_path: Path, keys: KeyPair) -> Path:
    """One model with one version, signed."""
    signed(place(MODEL, tmp_path / "models", "digits", "1"), keys.private)
    return tmp_path / "models"


def test_loading_checks_the_signature(repository: Path, keys: KeyPair, tmp_path: Path) -> None:
    file = repository / "digits/1/model.onnx"
    settings = Settings(model=file, require_signature=keys.public)
    load(file, settings)
    with pytest.raises(VerificationError, match="not made with the key"):
        load(file, settings.model_copy(update={"require_signature": key_pair(tmp_path / "other").public}))
    signature_path(file).unlink()
    with pytest.raises(VerificationError, match="is not signed"):
        load(file, settings)
    load(file, Settings(model=file))


@pytest.mark.integration
def test_a_running_server_takes_no_version_that_is_not_signed(
    repository: Path, keys: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_path(repository, require_signature=keys.public) as (client, models):
        new = place(MODEL, repository, "digits", "2")
        assert_error(reload(client), 422, "model_refused")
        answer = client.post("/v2/repository/models/digits/load", headers=bearer(ADMIN))
        assert (answer.status_code, answer.json()["code"]) == (422, "model_refused")
        assert caplog.text.count("is not signed") == 2
        assert models.versions("digits") == ["1"]
        assert send(client, GOOD).status_code == 200
        signed(new, keys.private)
        assert reload(client).status_code == 200
        assert models.versions("digits") == ["1", "2"]


@pytest.mark.integration
def test_the_process_that_looks_first_asks_for_it_too(repository: Path, keys: KeyPair) -> None:
    """Otherwise it would parse, for a server that asks for signatures, a file of anybody's."""
    file = repository / "digits/1/model.onnx"
    settings = Settings(model=file, require_signature=keys.public)
    asyncio.run(verify_apart(file, settings))
    signature_path(file).unlink()
    with pytest.raises(VerificationError, match="is not signed"):
        asyncio.run(verify_apart(file, settings))


def test_the_command_refuses_before_it_starts(
    repository: Path, keys: KeyPair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ["serve", str(repository), "--require-signature"]
    assert run([*serve, str(tmp_path / "none.pem")]) == 4
    assert run([*serve, str(keys.private)]) == 4
    assert "holds a private key" in capsys.readouterr().err
    assert run([*serve, str(key_pair(tmp_path / "other").public)]) == 3
    assert "not made with the key" in capsys.readouterr().err
    assert run(["serve", "digits-small", "--require-signature", str(keys.public)]) == 3


def test_a_checkpoints_export_must_be_signed_too(keys: KeyPair, tmp_path: Path) -> None:
    shutil.copy(model_path("digits-small", "safetensors"), tmp_path / "model.safetensors")
    shutil.copy(MODEL, tmp_path / "model.onnx")
    assert run(["serve", str(tmp_path), "--require-signature", str(keys.public)]) == 3
    assert run(["serve", f"{tmp_path}/model.safetensors", "--require-signature", str(keys.public)]) == 3


def test_the_setting_is_a_variable_and_never_empty(keys: KeyPair) -> None:
    variables = {"DUCAT_SERVE_MODEL": str(MODEL), "DUCAT_SERVE_REQUIRE_SIGNATURE": str(keys.public)}
    assert Settings.from_environment(variables).require_signature == keys.public
    with pytest.raises(UsageError, match="set but empty"):
        Settings.from_environment({**variables, "DUCAT_SERVE_REQUIRE_SIGNATURE": ""})
    with pytest.raises(UsageError, match="Did you mean DUCAT_SERVE_REQUIRE_SIGNATURE"):
        Settings.from_environment({**variables, "DUCAT_SERVE_REQUIRE_SIGNATURES": "key.pem"})

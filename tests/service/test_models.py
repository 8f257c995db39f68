"""Several models by name and version: who answers, and how they come and go while the server runs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ducat_serve.errors import DataError, UsageError
from ducat_serve.predictor import Predictions, Predictor
from service.models.registry import Models
from service.models.repository import Repository
from service.models.served import Verified
from service.settings import Settings
from tests.support.application import ADMIN, bearer, metrics, reload, serving_path
from tests.support.http_client import DIGITS, GOOD, assert_error, predictions
from tests.support.model_repository import place


@pytest.fixture
def repository(onnx_model: Path, other_model: Path, tmp_path: Path) -> Path:
    """paper in versions 2 and 10, plain in version 1; 10 is newer than 2."""
    place(onnx_model, tmp_path, "paper", "2")
    place(other_model, tmp_path, "paper", "10")
    place(other_model, tmp_path, "plain", "1")
    return tmp_path


@pytest.mark.parametrize("built_for_cuda", [False, True])
def test_the_cpu_is_worth_a_warning_only_where_a_gpu_was_to_be_used(
    built_for_cuda: bool,
    onnx_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("service.models.registry.is_built_for_cuda", lambda: built_for_cuda)
    predictor = Predictor(onnx_model, "cpu")
    predictor.fallback_reason = "there is none"
    Models(Settings(model=onnx_model)).serve("model", {"1": Verified(predictor, predictor)})
    [level] = [one.levelno for one in caplog.records if "Serving on the CPU" in one.getMessage()]
    assert level == (logging.WARNING if built_for_cuda else logging.INFO)


def ask(client: TestClient, query: str = "") -> Any:
    return client.post(f"/v1/predict{query}", content=GOOD, headers={"content-type": "image/png"})


def ask_v2(client: TestClient, path: str) -> Any:
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": [1, 8, 8, 3],
        "data": DIGITS[0].ravel().tolist(),
    }
    return client.post(f"/v2/models/{path}/infer", json={"inputs": [tensor]})


def admin(client: TestClient, path: str, **body: Any) -> Any:
    return client.post(f"/v2/repository/{path}", json=body, headers=bearer(ADMIN))


def states(client: TestClient, **body: Any) -> dict[tuple[str, str], str]:
    answer = admin(client, "index", **body)
    assert answer.status_code == 200
    return {(one["name"], one["version"]): one["state"] for one in answer.json()}


@pytest.mark.parametrize(
    ("query", "path", "name", "version"),
    [
        ("?model=paper&version=2", "paper/versions/2", "paper", "2"),
        ("?model=paper&version=10", "paper/versions/10", "paper", "10"),
        ("?model=paper", "paper", "paper", "10"),
        ("?model=plain", "plain", "plain", "1"),
    ],
)
def test_the_named_model_answers(repository: Path, query: str, path: str, name: str, version: str) -> None:
    predictor = Predictor(repository / name / version / "model.onnx")
    expected = predictor(DIGITS[:1])
    with serving_path(repository) as (client, _):
        answer = ask(client, query)
        assert predictions(answer) == expected.to_json(predictor.spec, 5)
        model = answer.json()["model"]
        assert (model["name"], model["version"]) == (name, version)
        assert model["weights_digest"] == predictor.spec.weights_digest
        assert client.get(f"/v1/model{query}").json()["version"] == version
        v2 = ask_v2(client, path).json()
        assert (v2["model_name"], v2["model_version"]) == (name, version)
        np.testing.assert_array_equal(np.float32(v2["outputs"][0]["data"]), expected.logits[0])


def test_hidden_folders_are_no_models(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    place(repository / "plain" / "1" / "model.onnx", repository, ".Trash-1000", "1")
    assert set(Repository(repository).find()) == {"paper", "plain"}
    assert "'.Trash-1000' begins with a dot" in caplog.text


def test_a_request_that_names_none_of_several_or_an_unknown_one(repository: Path) -> None:
    with serving_path(repository) as (client, _):
        answer = ask(client)
        assert_error(answer, 400, "model_required")
        assert "paper, plain" in answer.text
        assert_error(client.get("/v1/model"), 400, "model_required")
        for query in ("?model=other", "?model=", "?model=paper&version=3", "?model=../paper"):
            assert_error(ask(client, query), 404, "unknown_model")
        for path in ("other", "paper/versions/3"):
            assert_error(ask_v2(client, path), 404, "unknown_model")
            assert_error(client.get(f"/v2/models/{path}/ready"), 404, "unknown_model")
        listed = client.get("/v1/models").json()["models"]
        assert [(m["name"], m["version"]) for m in listed] == [
            ("paper", "2"),
            ("paper", "10"),
            ("plain", "1"),
        ]
        assert client.get("/v2/models/paper").json()["versions"] == ["2", "10"]


def test_models_come_and_go_while_others_answer(repository: Path, onnx_model: Path) -> None:
    with serving_path(repository) as (client, models):
        place(onnx_model, repository, "late", "1")
        assert states(client)["late", "1"] == "UNAVAILABLE"
        assert_error(ask(client, "?model=late"), 404, "unknown_model")
        assert admin(client, "models/late/load").status_code == 200
        assert predictions(ask(client, "?model=late"))
        assert states(client)["late", "1"] == "READY"
        assert admin(client, "models/late/unload", parameters={"unload_dependents": False}).status_code == 200
        assert_error(ask(client, "?model=late"), 404, "unknown_model")
        assert ("late", "1") not in states(client, ready=True)
        assert_error(admin(client, "models/late/unload"), 404, "unknown_model")
        assert_error(admin(client, "models/never/load"), 404, "unknown_model")
        assert_error(admin(client, "index", ready="yes"), 400, "invalid_request")
        for body in (b"[]", b"1", b'{"parameters": []}'):
            answer = client.post("/v2/repository/models/plain/load", content=body, headers=bearer(ADMIN))
            assert_error(answer, 400, "invalid_request")
        shutil.rmtree(repository / "paper" / "10")
        assert admin(client, "models/paper/load").status_code == 200
        assert ask(client, "?model=paper").json()["model"]["version"] == "2"
        served = [key for key in metrics(client, **bearer(ADMIN)) if key[0] == "ducat_model_info"]
        assert len(served) == 2 == len(models.all())
        assert predictions(ask(client, "?model=plain"))


def test_no_version_is_swapped_where_one_is_bad(repository: Path, onnx_model: Path) -> None:
    with serving_path(repository) as (client, _):
        before = states(client)
        shutil.copy(onnx_model, repository / "plain" / "1" / "model.onnx")
        shutil.copy(onnx_model, repository / "paper" / "10" / "model.onnx")
        (repository / "paper" / "2" / "model.onnx").write_bytes(b"garbage")
        old = ask(client, "?model=paper").json()["model"]["weights_digest"]
        assert_error(admin(client, "models/paper/load"), 422, "model_refused")
        assert ask(client, "?model=paper").json()["model"]["weights_digest"] == old
        # Reading all again takes what is good and names what is not.
        answer = reload(client)
        assert_error(answer, 422, "model_refused")
        assert "paper" in answer.text
        assert "plain" not in answer.text
        assert ask(client, "?model=paper").json()["model"]["weights_digest"] == old
        new = Predictor(onnx_model).spec.weights_digest
        assert ask(client, "?model=plain").json()["model"]["weights_digest"] == new
        assert states(client) == before


def test_a_new_model_that_is_refused_leaves_no_old_one(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_path(repository) as (client, _):
        place(repository / "plain" / "1" / "model.onnx", repository, "new", "1").write_bytes(b"garbage")
        for answer in (admin(client, "models/new/load"), reload(client)):
            assert_error(answer, 422, "model_refused")
            assert "new" in answer.text
            assert "old one" not in answer.text
        assert "Model new was refused: " in caplog.text
        assert "Refused: new. What was served stays" in answer.text


def test_a_repository_that_went_away_changes_nothing(repository: Path) -> None:
    with serving_path(repository) as (client, _):
        repository.rename(repository.with_name("moved"))
        assert_error(reload(client), 422, "model_refused")
        assert predictions(ask(client, "?model=paper"))
        assert_error(admin(client, "index"), 422, "repository_unreadable")
        assert ("plain", "1") in states(client, ready=True)


def test_only_admins_use_the_repository(repository: Path, client: TestClient) -> None:
    for path in ("index", "models/paper/load", "models/paper/unload"):
        assert_error(client.post(f"/v2/repository/{path}"), 404, "not_found")
    with serving_path(repository, api_keys=f"alice:{'a' * 32}") as (guarded, _):
        for path in ("index", "models/paper/load", "models/paper/unload"):
            for headers in ({}, bearer("a" * 32)):
                assert_error(guarded.post(f"/v2/repository/{path}", headers=headers), 401, "unauthorized")
        assert_error(ask(guarded, "?model=paper"), 401, "unauthorized")
        assert_error(guarded.get("/v1/models"), 401, "unauthorized")
        assert_error(
            admin(guarded, "models/paper/load", parameters={"config": "{}"}), 400, "invalid_parameters"
        )
        assert states(guarded)["paper", "2"] == "READY"


def test_a_model_that_computes_something_else_here_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a broken kernel would: finite, consistent answers that are not the graph's."""
    with serving_path(repository) as (client, _):
        before = predictions(ask(client, "?model=plain"))
        original, optimised = Predictor.__call__, Predictor.__init__

        def remember(self: Predictor, *args: Any, **options: Any) -> None:
            optimised(self, *args, **options)
            self.is_broken = options.get("optimised", True)  # type: ignore[attr-defined]

        def off(self: Predictor, images: Any) -> Predictions:
            answer = original(self, images)
            if not self.is_broken:  # type: ignore[attr-defined]
                return answer
            logits = answer.logits[:, ::-1]
            return Predictions(logits, logits.argmax(axis=1), answer.dummy_mass)

        with monkeypatch.context() as patch:
            patch.setattr(Predictor, "__init__", remember)
            patch.setattr(Predictor, "__call__", off)
            assert_error(admin(client, "models/plain/load"), 422, "model_refused")
        assert predictions(ask(client, "?model=plain")) == before


@pytest.mark.parametrize("layout", ["v1", "01", "0", "-1", "1.5", "2.tmp"])
def test_a_folder_that_is_no_version_is_left_out(
    onnx_model: Path, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    place(onnx_model, tmp_path, "cats", layout)
    with pytest.raises(DataError, match="neither"):
        Repository(tmp_path).find()
    file = place(onnx_model, tmp_path, "cats", "1")
    assert Repository(tmp_path).find() == {"cats": {"1": file}}
    assert f"'{layout}' is no version" in caplog.text


def test_nothing_is_ready_where_nothing_is_served(onnx_model: Path) -> None:
    with serving_path(onnx_model) as (client, models):
        assert admin(client, "models/model/unload").status_code == 200
        assert_error(client.get("/v2/health/ready"), 503, "not_ready")
        assert not models.is_ready
        assert_error(ask(client), 404, "unknown_model")
        assert reload(client).status_code == 200
        assert models.is_ready
        assert predictions(ask(client))


@pytest.mark.parametrize("name", ["my cats", "-cats", "k\u00e4tzchen", "c" * 65])
def test_a_folder_that_cannot_name_a_model_is_left_out(
    onnx_model: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    place(onnx_model, tmp_path, name, "1")
    with pytest.raises(DataError, match="neither"):
        Repository(tmp_path).find()
    file = place(onnx_model, tmp_path, "cats", "1")
    assert Repository(tmp_path).find() == {"cats": {"1": file}}
    assert f"'{name}' cannot name a model; rename it" in caplog.text


def test_what_is_put_beside_the_models_stops_no_reload(
    repository: Path, onnx_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving_path(repository) as (client, _):
        before = states(client)
        place(onnx_model, repository, "New folder", "1")
        stray = Path(shutil.copy(onnx_model, repository / "model.onnx"))
        assert reload(client).status_code == 200
        assert states(client) == before
        assert f"{stray} is not served" in caplog.text
        assert "'New folder' cannot name a model" in caplog.text


def test_a_folder_that_is_both_a_model_and_a_repository_is_not_guessed_at(
    repository: Path, onnx_model: Path
) -> None:
    shutil.copy(onnx_model, repository / "model.onnx")
    with pytest.raises(UsageError, match="both one model and a repository") as caught:
        Repository(repository)
    assert str(repository / "model.onnx") in str(caught.value.next_step)
    shutil.rmtree(repository / "paper")
    (repository / "plain").rename(repository / "no model")  # nothing else here could be served
    assert set(Repository(repository).find()) == {"model"}


def test_one_file_is_a_model_of_its_own_name(tmp_path: Path) -> None:
    file = tmp_path / "my cats!.onnx"
    assert Repository(file).find() == {"my-cats": {"1": file}}
    with pytest.raises(DataError, match="neither"):
        Repository(tmp_path).find()
    (tmp_path / "model.onnx").touch()
    assert Repository(tmp_path).find() == {"model": {"1": tmp_path / "model.onnx"}}

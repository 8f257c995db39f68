"""`ducat evaluate --url`: a real server, a real socket, its keys and its rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ducat_serve.cli.main import run
from ducat_serve.predictor import Predictor
from tests.support.server_process import Server, running
from training.data import load_dataset
from training.data.splits import choose_images

KEY = "s3cret-key-s3cret-key"
IMAGES, BUDGET = 12, 120
FEW = ["--dataset", "digits", "--eps", "0.1", "--max-examples", str(IMAGES)]


@pytest.fixture(scope="module")
def server(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It wants a key, takes 8 images at once and lets it ask about 8 a second, which is slower than any machine."""
    settings = {"DUCAT_SERVE_API_KEYS": f"alice:{KEY}", "DUCAT_SERVE_RATE": "8"}
    settings["DUCAT_SERVE_MAX_IMAGES"] = "8"
    with running(onnx_model, tmp_path_factory.mktemp("served"), **settings) as one:
        yield one


def test_a_server_is_attacked_within_its_rate_and_our_budget(
    server: Server,
    onnx_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUCAT_KEY", KEY)
    url = f"{server.url}/v1/predict"
    assert run(["evaluate", "--url", url, "--query-budget", str(BUDGET), *FEW, "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    (file,) = tmp_path.glob("127.0.0.1-*.robustness.json")
    assert report == json.loads(file.read_text())
    assert (report["artefact"], report["lattice"]) == ("server", "8bit")
    asked = report["server"]
    assert asked["url"] == url
    assert IMAGES < asked["queries"] <= asked["query_budget"] == BUDGET
    assert asked["classes_told"] == 10  # more than the five that it lists unless asked
    assert "as the server asked" in captured.err  # 429 was obeyed
    assert "queries were spent" in file.with_suffix(".md").read_text()
    assert KEY not in captured.out + captured.err + file.read_text()

    predictor = Predictor(onnx_model, "cpu")
    assert report["weights_digest"] == predictor.spec.weights_digest
    images, _ = choose_images(load_dataset("digits").test, IMAGES, 0)
    right = int((predictor(images.images).label == images.labels).sum())
    assert report["clean_accuracy"] == right / IMAGES


@pytest.mark.parametrize(
    ("arguments", "key", "code", "message"),
    [
        (["--query-budget", "600"], "", 1, "401"),
        (["--query-budget", "30"], KEY, 2, "The query budget of 30 is spent"),
        (["--query-budget", "60"], KEY, 2, "--query-budget 60 is too little for 12 images"),
        ([], KEY, 2, "give --query-budget N"),
        (["--query-budget", "600", "--scale", "1"], KEY, 2, "--scale is for a MODEL, not for --url"),
        (["--query-budget", "600", "--attack", "pgd"], KEY, 2, "there are only scores"),
    ],
)
def test_what_is_wrong_is_said_before_the_attacks(
    arguments: list[str],
    key: str,
    code: int,
    message: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUCAT_KEY", key)
    assert run(["evaluate", "--url", f"{server.url}/v1/predict", *FEW, *arguments]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_address_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--query-budget", "600", *FEW]
    assert run(["evaluate", "--url", "http://127.0.0.1:9/v1/predict", *asked]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert run(["evaluate", "--url", "http://127.0.0.1:9/", *asked]) == 2
    assert "is not the address of a server's /v1/predict" in capsys.readouterr().err
    assert run(["evaluate", *asked[2:]]) == 2
    assert "--url URL" in capsys.readouterr().err

"""`ducat bento`: built once in a store of its own, looked into, and served from a hostile folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from ducat_serve.cli.main import run
from ducat_serve.predictor import Predictor
from ducat_serve.signature import require_signature
from tests.conftest import PROJECT
from tests.support.http_client import DIGITS, GOOD
from tests.support.keys import key_pair, signed
from tests.support.server_process import WAIT, free_port, started

BIN = Path(sys.executable).parent
SECRETS = {
    "DUCAT_SERVE_API_KEYS": "webshop-eu:" + "s3cret-key-" * 3,
    "DUCAT_SERVE_ADMIN_KEY": "s3cret-admin-key",
    "DUCAT_SERVE_DEADLINE": "77",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BentoML's store, and nobody else's."""
    return tmp_path_factory.mktemp("bentoml")


def bento(model: Path, store: Path, *options: str) -> dict[str, Any]:
    """What `ducat bento --json` prints, run with keys in its environment."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ducat_serve", "bento", str(model), "--json", *options],
        env={**os.environ, **SECRETS, "BENTOML_HOME": str(store)},
        cwd=store,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    return {"code": done.returncode, **json.loads(done.stdout)}


@pytest.fixture(scope="module")
def built(onnx_model: Path, store: Path) -> Path:
    """The folder of a Bento for the CPU."""
    answer = bento(onnx_model, store)
    digest = Predictor(onnx_model).spec.weights_digest
    assert (answer["code"], answer["is_new"]) == (0, True)
    assert answer["tag"] == f"ducat:{digest[:12]}"
    assert answer["unpinned"] == []
    return Path(answer["path"])


def test_the_same_again_is_not_built_again(built: Path, onnx_model: Path, store: Path) -> None:
    before = (built / "bento.yaml").read_bytes()
    answer = bento(onnx_model, store)
    assert (answer["code"], answer["is_new"], answer["path"]) == (0, False, str(built))
    assert (built / "bento.yaml").read_bytes() == before


def test_everything_that_serves_is_in_it_and_nothing_else(built: Path, onnx_model: Path) -> None:
    source = built / "src"
    assert {path.name for path in source.iterdir()} == {
        *("bentofile.yaml", "ducat_serve", "model.onnx", "service", "serving.py")
    }
    assert (source / "model.onnx").read_bytes() == onnx_model.read_bytes()
    for package in ("ducat_serve", "service"):
        files = {path.relative_to(PROJECT) for path in (PROJECT / package).rglob("*.*") if path.is_file()}
        # Weights of bundled models would only make it larger: it serves the one model beside the packages.
        weights = {path for path in files if path.suffix in (".onnx", ".safetensors")}
        wanted = {path for path in files if path.suffix != ".pyc"} - weights
        found = {path.relative_to(source) for path in (source / package).rglob("*") if path.is_file()}
        assert found == wanted
    assert "File: `model.onnx`." in (built / "README.md").read_text(), "the model card"


def test_a_signed_model_with_a_bill_of_materials(onnx_model: Path, store: Path, tmp_path: Path) -> None:
    """The signature goes in and fits what is served, and the Bento requires what checks it."""
    keys, model = key_pair(tmp_path / "keys"), Path(shutil.copy(onnx_model, tmp_path / "digits.onnx"))
    signed(model, keys.private)
    answer = bento(model, store, "--sbom", "--name", "signed")
    assert (answer["code"], answer["unpinned"]) == (0, [])
    source = Path(answer["path"]) / "src"
    packed = source / "model.onnx"
    require_signature(packed.read_bytes(), packed, keys.public)
    bill = json.loads((source / "sbom.cdx.json").read_text())
    billed = {f"{one['name']}=={one['version']}" for one in bill["components"]}
    pins = (Path(answer["path"]) / "env/python/requirements.txt").read_text().split()
    assert f"model-signing=={version('model-signing')}" in pins
    assert set(pins) <= billed


def test_no_key_no_setting_and_no_path_of_this_machine_is_in_it(built: Path, tmp_path: Path) -> None:
    # 82: BentoML's timeout is a little more than the deadline, and lands in bento.yaml.
    private = [
        str(PROJECT),
        sys.prefix,
        str(tmp_path.parent),
        str(built.parents[2]),
        "s3cret",
        "webshop-eu",
        "timeout: 82",
    ]
    files = [path for path in built.rglob("*") if path.is_file()]
    assert len(files) > 30
    for file in files:
        data = file.read_bytes()
        for text in private:
            assert text.encode() not in data, (file, text)


def test_requirements_are_pinned_to_what_is_installed(built: Path) -> None:
    lines = (built / "env/python/requirements.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines), "each once"
    assert {"bentoml", "onnxruntime", "starlette", "uvloop", "pydantic"} <= set(pins)
    assert not {"torch", "onnx", "pytest", "ducat-serve", "onnxruntime-gpu"} & set(pins)
    for name, pin in pins.items():
        assert version(name) == pin


def test_its_dockerfile(built: Path, tmp_path: Path) -> None:
    """BentoML writes it: hadolint has wishes (unpinned apt packages), but finds no error."""
    dockerfile = built / "env/docker/Dockerfile"
    done = subprocess.run(
        [BIN / "hadolint", "--failure-threshold", "error", dockerfile],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    text = dockerfile.read_text()
    assert "ORT_DISABLE_TELEMETRY=1" in text
    for source in re.findall(r"^COPY .* (\./\S+) \./\S+$", text, flags=re.MULTILINE):
        assert (built / source).exists()


def test_for_cuda_into_a_folder(onnx_model: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bento"
    relative = os.path.relpath(out, store)
    answer = bento(onnx_model, store, "--device", "cuda", "--out", relative, "--name", "tiny")
    assert (answer["code"], answer["path"]) == (0, str(out)), "absolute, as `bentoml serve` needs it"
    assert answer["tag"].startswith("tiny:")
    requirements = (out / "env/python/requirements.txt").read_text().split()
    [runtime] = [line for line in requirements if line.startswith("onnxruntime")]
    assert runtime.startswith("onnxruntime-gpu[cuda,cudnn]")
    assert answer["unpinned"] == [line for line in requirements if "==" not in line]
    assert "NVIDIA_VISIBLE_DEVICES=all" in (out / "env/docker/Dockerfile").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["bento"], "nothing of the building is left"
    assert not (store / "bentos" / "tiny").exists()
    usual = tmp_path / "usual"
    usual.mkdir()
    assert out.stat().st_mode == usual.stat().st_mode, "whoever builds an image of it may be another user"
    again = bento(onnx_model, store, "--out", str(out))
    assert (again["code"], again["error"]["next"]) == (1, "remove it, or choose another --out")


def test_a_tag_that_is_taken_stays_what_it_is(built: Path, onnx_model: Path, store: Path) -> None:
    before = (built / "bento.yaml").read_bytes()
    answer = bento(onnx_model, store, "--device", "cuda")
    assert answer["code"] == 1
    assert answer["error"]["next"].startswith("bentoml delete ducat:")
    assert (built / "bento.yaml").read_bytes() == before


@pytest.mark.parametrize("by", ["tag", "folder", "container"])
def test_it_is_served_from_anywhere_and_answers_as_the_predictor(
    built: Path, store: Path, onnx_model: Path, tmp_path: Path, by: str
) -> None:
    """By BentoML, and by what starts a container of it: our own server. Neither has a port beside the one asked for."""
    place = tmp_path / "hostile"
    place.mkdir()
    for name in ("service", "serving", "ducat_serve"):
        (place / f"{name}.py").write_text("raise SystemExit('the wrong module was imported')\n")
    copy = shutil.copytree(built, store / "bentos/ducat/copy" if by == "tag" else tmp_path / "bento")
    information = (copy / "bento.yaml").read_text()
    (copy / "bento.yaml").write_text(information.replace(built.name, "copy", 1))
    page = copy / "src/service/page/static/index.html"
    page.write_text(page.read_text() + "<!-- of the Bento -->")
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    options = ["--host", "127.0.0.1", "--port", str(port)]
    if by == "container":
        environment |= {"BENTO_PATH": str(copy), "PATH": f"{BIN}{os.pathsep}{environment['PATH']}"}
        command = ["bash", str(copy / "env/docker/entrypoint.sh"), *options]
    else:
        which = str(copy) if by == "folder" else "ducat:copy"
        command = [str(BIN / "bentoml"), "serve", which, *options]
    with started(command, port, place, {**environment, "BENTOML_HOME": str(store)}) as server:
        processes = server.all_processes()
        servers = [one for one in processes if one.cmdline()[-1] != "service.decoding.worker"]
        assert len(servers) == (1 if by == "container" else 2), "BentoML has a supervisor"
        listening = {c.laddr for one in processes for c in one.net_connections() if c.status == "LISTEN"}
        assert listening == {("127.0.0.1", port)}
        assert "<!-- of the Bento -->" in server.get("/").text, "its own code, not what is installed"
        answer = httpx.post(
            f"{server.url}/v1/predict", files={"image": ("a.png", GOOD)}, trust_env=False, timeout=WAIT
        )
        predictor = Predictor(onnx_model, "cpu")
        [prediction] = answer.json()["predictions"]
        [expected] = predictor(DIGITS[:1]).to_json(predictor.spec, 5)
        assert prediction["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
        assert [choice["label"] for choice in prediction["top_k"]] == [c["label"] for c in expected["top_k"]]
        assert answer.json()["model"]["weights_digest"] == predictor.spec.weights_digest


def test_a_container_runs_any_other_command(built: Path) -> None:
    command = ["bash", str(built / "env/docker/entrypoint.sh"), "echo", "two words"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "two words\n"


def test_it_travels_as_one_file(built: Path, store: Path, onnx_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "ducat.bento"
    subprocess.run(
        [BIN / "bentoml", "export", f"{built.parent.name}:{built.name}", file],
        env={**os.environ, "BENTOML_HOME": str(store)},
        capture_output=True,
        check=True,
    )
    with tarfile.open(file) as archive:
        [member] = [name for name in archive.getnames() if name.endswith("src/model.onnx")]
        model = archive.extractfile(member)
        assert model is not None
        assert model.read() == onnx_model.read_bytes()


def test_what_is_refused(
    onnx_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    assert run(["bento", str(tmp_path / "nowhere.onnx")]) == 4
    broken = tmp_path / "model.onnx"
    data = bytearray(onnx_model.read_bytes())
    data[len(data) // 2] ^= 1
    broken.write_bytes(data)
    assert run(["bento", str(tmp_path)]) == 3
    assert run(["bento", str(onnx_model), "--name", "Not A Name"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    capsys.readouterr()
    assert run(["bento", str(onnx_model)]) == 1
    assert "pip install '.[serve]'" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()

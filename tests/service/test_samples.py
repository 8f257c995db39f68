"""Sample images of the operator's own: which folders are refused, and what a client can get of one."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from ducat_serve.errors import DataError
from ducat_serve.images import decode
from service.application import create_app
from service.models.registry import Models
from service.page.samples import MAX_BYTES, MAX_SAMPLES, read_samples
from service.settings import Settings
from tests.support.http_client import DIGITS, GOOD, assert_error, encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, and files that are none, in a folder beside a secret."""
    (tmp_path / "secret.png").write_bytes(GOOD)
    samples = tmp_path / "samples"
    (samples / "inner").mkdir(parents=True)
    (samples / "inner" / "deep.png").write_bytes(GOOD)
    (samples / "b c#?.JPG").write_bytes(encode(DIGITS[1], "JPEG"))
    (samples / "a.png").write_bytes(GOOD)
    (samples / "notes.txt").write_text("not for everyone")
    return samples


@pytest.fixture
def open_client(folder: Path, onnx_model: Path) -> Iterator[TestClient]:
    """Of a server that asks for keys; the page and its samples need none."""
    settings = Settings(model=onnx_model, samples=folder, api_keys=f"alice:{'k' * 32}")
    with TestClient(create_app(Models(settings)), raise_server_exceptions=False) as client:
        yield client


def test_everyone_gets_the_samples_and_nothing_else(open_client: TestClient, folder: Path) -> None:
    assert open_client.get("/v1/model").status_code == 401
    assert open_client.get("/samples").json() == ["a.png", "b c#?.JPG"]
    for path, name, kind in (
        ("a.png", "a.png", "image/png"),
        ("b%20c%23%3F.JPG", "b c#?.JPG", "image/jpeg"),
    ):
        response = open_client.get(f"/samples/{path}")
        assert response.content == (folder / name).read_bytes()
        assert response.headers["content-type"] == kind
        assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("notes.txt", "inner", "b", "A.png", "..%2fsecret.png", "%2e%2e%2fsecret.png", "a.png%00"):
        assert_error(
            open_client.get(f"/samples/{path}"), 404, "not_found" if "%2f" in path else "unknown_sample"
        )
    for path in ("../secret.png", "inner/deep.png", "inner%2fdeep.png", ""):
        assert_error(open_client.get(f"/samples/{path}"), 404, "not_found")
    (folder / "late.png").write_bytes(GOOD)
    assert_error(open_client.get("/samples/late.png"), 404, "unknown_sample")
    assert open_client.get("/samples").json() == ["a.png", "b c#?.JPG"], "what was there at the start"


def test_an_image_that_pillow_warns_of_writes_no_line(tmp_path: Path) -> None:
    """One PNG can hold a hundred thousand odd chunks, each of them another warning."""
    ihdr, rest = GOOD[:33], GOOD[33:]
    chunk = b"acTL" + struct.pack(">II", 0, 0)  # an animation of no frames
    odd = struct.pack(">I", 8) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(ihdr + odd + rest)
    with pytest.warns(UserWarning, match="APNG"):
        decode((tmp_path / "a.png").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_samples(tmp_path).images) == ["a.png"]


def test_without_a_folder_there_are_none(client: TestClient) -> None:
    assert client.get("/samples").json() == []
    assert_error(client.get("/samples/a.png"), 404, "unknown_sample")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    def refused(reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            read_samples(tmp_path / "samples")

    refused("There is no folder")
    samples = tmp_path / "samples"
    samples.mkdir()
    refused("holds no image")
    (samples / "text.png").write_text("text")
    refused("text.png cannot be a sample: not an image")
    (samples / "text.png").unlink()
    (samples / "folder.png").mkdir()
    refused("folder.png cannot be a sample")
    (samples / "folder.png").rmdir()
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    (samples / "large.png").write_bytes(encode(noise))
    assert (samples / "large.png").stat().st_size > MAX_BYTES
    refused("large.png is larger than")
    (samples / "large.png").unlink()


def test_of_too_many_the_first_are_taken(tmp_path: Path) -> None:
    for number in range(MAX_SAMPLES):
        (tmp_path / f"{number:02}.png").write_bytes(GOOD)
    assert read_samples(tmp_path).left_out == 0
    for name in ("one-more.png", "and-another.png"):
        (tmp_path / name).write_bytes(b"nobody reads it")
    found = read_samples(tmp_path)
    assert list(found.images) == [f"{number:02}.png" for number in range(MAX_SAMPLES)]
    assert found.left_out == 2


def test_the_command_refuses_before_it_serves(onnx_model: Path, tmp_path: Path) -> None:
    from ducat_serve.cli.main import run

    assert run(["serve", str(onnx_model), "--samples", str(tmp_path / "nowhere")]) == 4

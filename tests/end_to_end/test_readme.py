"""Every block of README.md runs, in order, as a reader would run it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import PROJECT

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
BIN = Path(sys.executable).parent


def tiny_imagenet(path: Path) -> None:
    """A Tiny-ImageNet of 4 classes in the original layout."""
    generator = np.random.default_rng(0)
    wnids = ["n00000001", "n00000002", "n00000003", "n00000004"]

    def jpeg() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "\n".join(wnids))
        archive.writestr("tiny-imagenet-200/words.txt", "\n".join(f"{w}\tword {w}" for w in wnids))
        annotations = []
        for wnid in wnids:
            for index in range(20):
                archive.writestr(f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{index}.JPEG", jpeg())
            archive.writestr(f"tiny-imagenet-200/val/images/val_{wnid}.JPEG", jpeg())
            annotations.append(f"val_{wnid}.JPEG\t{wnid}\t0\t0\t1\t1\n")
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", "".join(annotations))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with a photo in it, and data to train on beside it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "data").mkdir()
    tiny_imagenet(folder / "data" / "tiny-imagenet-200.zip")
    pixels = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.jpg")
    return folder


def environment(place: Path) -> dict[str, str]:
    """README's commands as they stand, made small through the environment, which every option reads."""
    return {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "DUCAT_DATA": str(place / "data"),
        "DUCAT_OFFLINE": "1",
        "DUCAT_TRAIN_NETWORK": "resnet-small",
        "DUCAT_TRAIN_EPOCHS": "2",
        "DUCAT_TRAIN_ATTACK_STEPS": "1",
        "DUCAT_TRAIN_BATCH_SIZE": "16",
        "DUCAT_EVALUATE_ATTACK": "pgd",
        "DUCAT_DEMO_EPOCHS": "2",
    }


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server was not ready in time")


@pytest.mark.slow
@pytest.mark.xdist_group("readme")
def test_every_block_runs(place: Path) -> None:
    variables, server, answers = environment(place), None, []
    try:
        for language, text in BLOCKS:
            code = text.strip()
            if code == "make test":
                continue  # this very run; test_make_targets looks at it
            if code in ("make demo", "source .venv/bin/activate"):
                where = PROJECT if (PROJECT / ".venv").exists() or code == "make demo" else place
                subprocess.run(["bash", "-ec", code], cwd=where, env=variables, check=True)
            elif language == "python":
                subprocess.run([sys.executable, "-c", code], cwd=place, env=variables, check=True)
            elif code.startswith("ducat serve"):
                server = subprocess.Popen(["bash", "-ec", f"exec {code}"], cwd=place, env=variables)
                wait_until_ready("http://127.0.0.1:3000", server)
            else:
                assert language == "bash", f"no way to run a {language} block"
                done = subprocess.run(
                    ["bash", "-ec", code], cwd=place, env=variables, check=True, capture_output=True
                )
                if code.startswith("curl"):
                    answers.append(json.loads(done.stdout))
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    prediction = answers[0]["predictions"][0]
    assert prediction["label"].startswith("word n")
    assert len(prediction["top_k"]) == 4
    assert "under pgd at" in answers[0]["model"]["robustness"]


def test_make_targets() -> None:
    """`make test` and `make demo` set up .venv/ and run the right thing; CI runs `make test`."""
    for target, command in (
        ("test", "-m pytest"),
        ("unit", "-m unit"),
        ("demo", "bin/ducat demo"),
        ("check", "lint-imports"),
    ):
        plan = subprocess.run(
            ["make", "--always-make", "--dry-run", target],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "python3 -m venv .venv" in plan
        assert "pip install" in plan
        assert command in plan
    assert "make test" in (PROJECT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    for document in [
        path for pattern in ("*.md", "docs/*.md", "results/*.md") for path in PROJECT.glob(pattern)
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"

"""What a user has right after `pip install ducat-serve[cpu]`: models that predict, without torch and offline."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from ducat_serve.bundled import KINDS, bundled_models
from tests.support.clean_installation import Distributions
from training.data import load_dataset

NAME = "digits-small"


def ducat(python: Path, place: Path, *arguments: str) -> Any:
    """The JSON of a command in an empty environment, in which every proxy leads nowhere."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), "OMP_NUM_THREADS": "1"}
    environment |= dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    command = [str(python), "-P", "-m", "ducat_serve", *arguments, "--json"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_has_the_files_of_every_model(distributions: Distributions) -> None:
    held = set(zipfile.ZipFile(distributions.wheel).namelist())
    files = {f"ducat_serve/bundled/{name}.{kind}" for name in bundled_models() for kind in (*KINDS, "md")}
    assert files | {"ducat_serve/bundled/index.json"} <= held
    assert f"ducat_serve/bundled/{NAME}.onnx" in held


def test_a_clean_installation_lists_inspects_and_predicts(clean_python: Path, tmp_path: Path) -> None:
    no_torch = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is not None)"
    subprocess.run([str(clean_python), "-c", no_torch], check=True, timeout=60)

    listed = ducat(clean_python, tmp_path, "models")["models"]
    assert [entry["name"] for entry in listed] == sorted(bundled_models())
    assert all(Path(file).is_relative_to(clean_python.parents[1]) for file in listed[0]["files"].values())

    test = load_dataset("digits").test
    paths = [f"{index}.png" for index in range(20)]
    for path, image in zip(paths, test.images, strict=False):
        Image.fromarray(image).save(tmp_path / path)
    answer = ducat(clean_python, tmp_path, "predict", NAME, *paths)
    labels = [int(prediction["label"]) for prediction in answer["predictions"]]
    assert sum(label == truth for label, truth in zip(labels, test.labels, strict=False)) >= 18

    inspected = ducat(clean_python, tmp_path, "inspect", NAME)
    assert inspected["sha256"] == bundled_models()[NAME].sha256["safetensors"]

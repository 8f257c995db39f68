"""The tutorial on one's own images runs as it is written; the one on digits has README's commands, which run there."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from tests.conftest import PROJECT
from tests.support.documents import blocks, run_block, running_server

TUTORIALS = PROJECT / "docs" / "tutorials"


# As many images as make four batches.
FEWER_SHAPES = {'("train", 300), ("test", 60)': '("train", 50), ("test", 12)'}


@pytest.mark.slow
def test_own_images_from_a_folder_to_a_served_model(tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as servers:
        for block in blocks(TUTORIALS / "own-images.md"):
            code = block.code
            for said, small in FEWER_SHAPES.items():
                code = code.replace(said, small)
            if block.is_server:
                servers.enter_context(running_server(block, "http://127.0.0.1:3001", tmp_path))
            else:
                printed[code] = run_block(replace(block, code=code).shortened(), tmp_path)
    assert sum('("train", 50)' in code for code in printed) == 1
    (answer,) = [json.loads(text) for code, text in printed.items() if code.startswith("curl")]
    assert {choice["label"] for choice in answer["predictions"][0]["top_k"]} == {
        "circle",
        "square",
        "triangle",
    }


# The tutorial's full size is one for a GPU: fewer and smaller photos, a smaller network, and weights from a file.
FEWER = {
    "COUNT = 170": "COUNT = 14",
    "torchvision:resnet50 --pretrained ": "torchvision:resnet18 --pretrained weights.pth ",
}
SMALLER = {
    "DUCAT_TRAIN_EPOCHS": "2",
    "DUCAT_TRAIN_IMAGE_SIZE": "32",
    "DUCAT_TRAIN_BATCH_SIZE": "16",
    "DUCAT_TRAIN_CROP_PADDING": "2",
    "DUCAT_TRAIN_DEVICE": "cpu",
    "DUCAT_EVALUATE_DEVICE": "cpu",
}


@pytest.mark.extended
def test_photos_from_a_folder_to_a_served_model(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "weights.pth")
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as servers:
        for block in blocks(TUTORIALS / "photos.md"):
            code = block.code
            for said, small in FEWER.items():
                code = code.replace(said, small)
            if block.is_server:
                servers.enter_context(running_server(block, "http://127.0.0.1:3002", tmp_path))
            else:
                printed[code] = run_block(replace(block, code=code), tmp_path, SMALLER)
    assert sum("COUNT = 14" in code for code in printed) == 1
    assert sum("weights.pth" in code for code in printed) == 2
    (answer,) = [json.loads(text) for code, text in printed.items() if code.startswith("curl")]
    best = answer["predictions"][0]["top_k"][0]["label"]
    assert best.split()[0] in ("red", "green", "blue")
    card = (tmp_path / "runs" / "photos" / "model.md").read_text()
    assert "weights.pth, SHA-256" in card


def test_the_tutorial_on_digits_has_readmes_commands() -> None:
    code = [block.code for block in blocks(TUTORIALS / "digits.md")]
    readme = [block.code for block in blocks(PROJECT / "README.md")]
    assert len(code) >= 6
    assert code == [one for one in readme if one in code]

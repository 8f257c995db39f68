"""Photos on the page of a model that takes 224 x 224: cropped as the server crops them, and shown so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ducat_serve.images import fit
from ducat_serve.networks.allowed import allow
from export.onnx_writer import export_onnx
from tests.conftest import PROJECT
from tests.support import tiny_network
from tests.support.browser import serving
from tests.support.checkpoints import SPEC, forged, untrained
from tests.support.http_client import encode
from tests.support.page import KEEP_SENT, PNG, expect_answer, label_of, last_sent, set_noise
from tests.support.server_process import Server

pytestmark = pytest.mark.slow

SIDE = 224
SIZE: dict[str, Any] = {"network": tiny_network.NAME, "image_size": (SIDE, SIDE)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    allow(tiny_network.NAME)
    folder = tmp_path_factory.mktemp("photos")
    spec = SPEC.model_copy(update=SIZE)
    export_onnx(forged(folder / "model.safetensors", untrained(spec), **SIZE), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def server_of_photos(model: Path) -> Iterator[Server]:
    with serving(model) as running:
        yield running


@pytest.mark.parametrize("size", [(300, 500), (640, 480), (100, 60)])
def test_a_photo_is_shown_and_sent_as_the_server_would_crop_it(
    look: Callable[..., Page], server_of_photos: Server, model: Path, size: tuple[int, int]
) -> None:
    """A real photo at this height and width: larger than the model, higher than wide, smaller."""
    with Image.open(PROJECT / "docs/photo.jpg") as photo:
        array = np.asarray(photo.convert("RGB").resize(size[::-1]))
    expected = np.asarray(fit(Image.fromarray(array), (SIDE, SIDE)))
    page = look(server_of_photos)
    page.evaluate(KEEP_SENT)
    page.get_by_label("Choose images").set_input_files({**PNG, "name": "photo.png", "buffer": encode(array)})
    expect_answer(page, label_of(model, expected))
    expect(page.get_by_text(f"{SIDE} × {SIDE} pixels, made from {size[1]} × {size[0]}")).to_be_visible()
    set_noise(page, 1)
    image = last_sent(page)
    assert image is not None
    assert image.shape == (SIDE, SIDE, 3)
    assert np.abs(image.astype(int) - expected).max() <= 2  # one of noise, one of rounding

"""The page of a two-tower model says which tower answered, instead of a dummy mass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from ducat_serve.predictor import Predictor
from tests.support.browser import serving
from tests.support.http_client import DIGITS, encode

pytestmark = pytest.mark.slow


def test_the_page_says_whose_answer_it_is(look: Callable[..., Page], towers_folder: Path) -> None:
    model = towers_folder / "model.onnx"
    mass = Predictor(model, "cpu", 1)(DIGITS).dummy_mass
    images = {"robust": DIGITS[int(mass.argmax())], "standard": DIGITS[int(mass.argmin())]}
    with serving(model) as server:
        page = look(server)
        files: list[FilePayload] = [
            {"name": f"{tower}.png", "mimeType": "image/png", "buffer": encode(image)}
            for tower, image in images.items()
        ]
        for file, tower in zip(files, images, strict=True):
            page.get_by_label("Choose images").set_input_files([file])
            expect(page.locator("#tower")).to_contain_text(f"Answered by the {tower} tower.")
            expect(page.locator("#dummy")).to_be_hidden()
            expect(page.locator("#no-dummy")).to_be_hidden()
        page.get_by_label("Choose images").set_input_files(files)
        rows = page.get_by_role("region", name="Several files").first.locator("tbody").get_by_role("row")
        for row, tower in enumerate(images):
            expect(rows.nth(row)).to_contain_text(f"{tower} tower")

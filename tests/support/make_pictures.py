"""Take the pictures of the page that the docs show, in a real Chromium, of a model that comes with the package:

python -m tests.support.make_pictures digits-small docs
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page

from ducat_serve.bundled import model_path
from tests.support.browser import chromium, serving
from training.data import load_dataset

WIDE = {"width": 1120, "height": 1450}
LOOKS: dict[str, dict[str, Any]] = {
    "page.png": {"viewport": WIDE, "color_scheme": "light"},
    "page-dark.png": {"viewport": WIDE, "color_scheme": "dark"},
    "page-under-attack.png": {"viewport": WIDE, "color_scheme": "light"},
    "page-dark-phone.png": {
        "viewport": {"width": 390, "height": 1040},
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}


def main(model: str, target: Path) -> None:
    """Serve ``model``, one of digits, with the first test image of each as a sample; take each of `LOOKS`."""
    with tempfile.TemporaryDirectory() as folder:
        _write_samples(Path(folder))
        options = ("--samples", folder, "--attack-demo")
        with serving(model_path(model, "onnx"), *options) as server, chromium() as browser:
            for name, look in LOOKS.items():
                page = browser.new_page(**look, device_scale_factor=1.5)
                page.goto(server.url)
                if name == "page-under-attack.png":
                    _attack_samples(page)
                else:
                    _try_a_sample(page)
                # Of the window alone: beyond it Chromium takes pictures as if there were no touch screen.
                page.screenshot(path=target / name)
                page.close()
                print(target / name)


def _write_samples(folder: Path) -> None:
    test = load_dataset("digits").test
    labels = test.labels.tolist()
    for digit in range(10):
        Image.fromarray(test.images[labels.index(digit)]).save(folder / f"digit-{digit}.png")


def _try_a_sample(page: Page) -> None:
    page.get_by_role("button", name="digit 8").click()
    page.get_by_text("Answered in").wait_for()
    page.locator("#noise").fill("30")
    page.get_by_text("with noise of 30/255").wait_for()

    if not page.viewport_size or page.viewport_size["width"] < WIDE["width"]:
        return
    _fit(page, 0, page.locator("#under-attack").evaluate("e => e.offsetTop - 8"))  # up to the next card


def _attack_samples(page: Page) -> None:
    """Have the server attack one sample after the other, until one is broken."""
    for digit in (8, 3, 9, 5, 1, 7, 2, 4, 6, 0):
        page.get_by_role("button", name=f"digit {digit}").click()
        page.get_by_text("Answered in").wait_for()
        page.get_by_role("button", name="Attack the chosen image").click()
        count = page.locator("#attack-count")
        count.filter(has_text="The answer").wait_for()
        if "changed" in count.inner_text():
            break
    top, height = page.locator("#under-attack").evaluate("e => [e.offsetTop, e.offsetHeight]")
    _fit(page, top - 16, height + 32)


def _fit(page: Page, top: int, height: int) -> None:
    """Make the window show ``height`` pixels of the page from ``top`` on."""
    page.set_viewport_size({"width": WIDE["width"], "height": height})
    page.evaluate(f"window.scrollTo(0, {top})")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

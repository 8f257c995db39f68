"""Take the pictures of the page that the docs show, in a real Chromium:

ducat demo --out runs/demo
python -m tests.support.make_pictures runs/demo docs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.support.browser import chromium, serving

LOOKS: dict[str, dict[str, Any]] = {
    "page.png": {"viewport": {"width": 1120, "height": 1450}, "color_scheme": "light"},
    "page-dark.png": {"viewport": {"width": 1120, "height": 1450}, "color_scheme": "dark"},
    "page-under-attack.png": {"viewport": {"width": 1120, "height": 640}, "color_scheme": "light"},
    "page-dark-phone.png": {
        "viewport": {"width": 390, "height": 1040},
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}


def main(run_folder: Path, target: Path) -> None:
    """Serve the model of ``run_folder`` with its samples, and write one picture for each of `LOOKS`."""
    options = ("--samples", str(run_folder / "samples"), "--attack-demo")
    with serving(run_folder, *options) as server, chromium() as browser:
        for name, look in LOOKS.items():
            page = browser.new_page(**look, device_scale_factor=1.5)
            page.goto(server.url)
            _try_a_sample(page)
            if name == "page-under-attack.png":
                _show_an_attack(page)
            # Of the window alone: beyond it Chromium takes pictures as if there were no touch screen.
            page.screenshot(path=target / name)
            page.close()
            print(target / name)


def _try_a_sample(page: Page) -> None:
    page.get_by_role("button", name="digit 8").click()
    page.get_by_text("Answered in").wait_for()
    page.locator("#noise").fill("20")
    page.get_by_text("with noise of 20/255").wait_for()


def _show_an_attack(page: Page) -> None:
    page.locator("#trio-after-answer strong").wait_for()
    page.locator("#under-attack").scroll_into_view_if_needed()
    page.locator("#under-attack").evaluate("e => window.scrollTo(0, e.offsetTop - 16)")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

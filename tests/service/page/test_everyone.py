"""The page by keyboard, for screen readers, on a phone, in the dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.support.http_client import DIGITS
from tests.support.page import (
    CONTRASTS,
    LINES_OF,
    OUTLINE,
    PNG,
    TOO_WIDE,
    expect_answer,
    label_of,
    set_noise,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow


def test_by_keyboard_alone(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    expect(page.get_by_role("button", name="digit 0")).to_be_visible()
    focused = page.locator("*:focus")

    def tab_to(name: str) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            assert focused.evaluate(OUTLINE) >= 2, (
                f"no visible focus on {focused.evaluate('e => e.outerHTML')}"
            )
            if name in focused.evaluate("e => e.id + e.textContent"):
                return
        raise AssertionError(f"{name} cannot be reached")

    tab_to("Skip to the prediction")
    tab_to("file")
    tab_to("digit 1")
    page.keyboard.press("Enter")
    expect_answer(page, label_of(measured, DIGITS[1]))
    tab_to("noise")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("status")).to_contain_text("with noise of 1/255")
    tab_to("The report")
    tab_to("About this model")
    page.keyboard.press("Enter")
    expect(page.get_by_text("SHA-256")).to_be_visible()


def test_a_screen_reader_finds_everything(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.get_by_role("button", name="digit 1").click()
    expect(page.get_by_text("Answered in")).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for name in ("Image", "Prediction", "How robust is it?"):
        expect(page.get_by_role("region", name=name, exact=True)).to_have_count(1)
    picture = page.get_by_role("img", name="The image as the model sees it")
    expect(picture).to_have_accessible_description(re.compile("8 × 8 pixels"))
    slider = page.get_by_role("slider", name="Add random noise")
    expect(slider).to_have_accessible_description(re.compile("Random noise is not an attack"))
    expect(page.get_by_role("meter", name="Dummy mass")).to_have_accessible_description(
        re.compile("dummy classes")
    )
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_phone(look: Callable[..., Page], server: Server, scheme: Any) -> None:
    small = {"width": 320, "height": 640}
    page = look(server, viewport=small, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.get_by_role("button", name="digit 1").tap()
    expect(page.get_by_text("Answered in")).to_be_visible()
    set_noise(page, 9)
    for summary in page.locator("summary:visible").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("main").evaluate(TOO_WIDE) == []
    is_dark = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgb(15,")
    assert is_dark == (scheme == "dark")


def test_the_heading_breaks_its_lines_between_what_it_says(look: Callable[..., Page], server: Server) -> None:
    page = look(server, viewport={"width": 320, "height": 640}, is_mobile=True)
    heading = page.locator("#model")
    expect(heading).to_contain_text("8 × 8 pixels")
    for width in range(320, 480, 10):
        page.set_viewport_size({"width": width, "height": 640})
        for words in ("10 classes", "8 × 8 pixels"):
            assert heading.evaluate(LINES_OF, words) == 1, f"{words} at {width} pixels"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_motion(
    look: Callable[..., Page], strict_server: Server, server: Server, scheme: Any
) -> None:
    """WCAG AA: every text has a contrast of 4.5 with what is behind it, errors and warnings included."""
    for one in (server, strict_server):
        page = look(one, color_scheme=scheme, reduced_motion="reduce")
        page.get_by_label("Choose images").set_input_files({**PNG, "buffer": b"no image"})
        expect(page.get_by_role("alert")).not_to_be_empty()
        if one is server:
            low = page.evaluate(CONTRASTS)
            page.get_by_label("Choose images").set_input_files(PNG)
            expect(page.get_by_text("Answered in")).to_be_visible()
            for summary in page.locator("summary:visible").all():
                summary.click()
        else:
            low = []
        low += page.evaluate(CONTRASTS)
        assert len(low) > 10
        assert [entry for entry in low if entry["contrast"] < 4.5] == []
        assert page.locator("#answer").evaluate("e => getComputedStyle(e).transitionDuration") == "0s"

"""The page's noise slider, and that its picture is the one that the server would have made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from ducat_serve.images import fit
from tests.support.http_client import DIGITS, encode, until
from tests.support.page import (
    KEEP_SENT,
    PNG,
    last_sent,
    set_noise,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow


def test_the_slider_asks_again_with_the_same_noise_scaled(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.evaluate(KEEP_SENT)
    page.get_by_label("Choose images").set_input_files(PNG)
    slider = page.get_by_role("slider", name="Add random noise")
    assert slider.get_attribute("max") == "102", "four times 0.1 of 255"
    expect(page.get_by_text("Random noise is not an attack")).to_be_visible()
    expect(page.get_by_text("The model is meant to withstand at most 0.1")).to_be_visible()
    original = DIGITS[0].astype(int)
    inner = (original >= 40) & (original <= 215)  # never cut off at black or white
    signs = []
    for level in (4, 40):
        set_noise(page, level)
        image = last_sent(page)
        assert image is not None
        signs.append(np.sign(image.astype(int) - original))
        assert (image == np.clip(original + level * signs[-1], 0, 255)).all()
    assert (signs[0][inner] == signs[1][inner]).all()
    assert (signs[0][inner] != 0).all()
    assert abs(signs[0][inner].mean()) < 0.4
    slider.fill("0")
    expect(page.get_by_role("status")).not_to_contain_text("noise")
    assert last_sent(page) is None, "without noise the file itself is sent"


@pytest.mark.parametrize("size", [(31, 53), (40, 23), (5, 6)])
def test_what_is_shown_and_sent_is_what_the_server_would_have_made(
    look: Callable[..., Page], server: Server, size: tuple[int, int]
) -> None:
    """Resizing and cropping in the browser are those of the server, to a rounding."""
    array = np.random.default_rng(0).integers(64, 192, (*size, 3), dtype=np.uint8)
    page = look(server)
    page.evaluate(KEEP_SENT)
    page.get_by_label("Choose images").set_input_files({**PNG, "buffer": encode(array)})
    expect(page.get_by_text(f"made from {size[1]} × {size[0]}: shorter side resized")).to_be_visible()
    set_noise(page, 1)
    expected = np.asarray(fit(Image.fromarray(array), (8, 8))).astype(int)
    image = last_sent(page)
    assert image is not None
    assert np.abs(image.astype(int) - expected).max() <= 2  # one of noise, one of rounding


def test_one_request_at_a_time_and_the_last_one_wins(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    page.evaluate(
        """() => {
            const real = window.fetch;
            const released = new Promise((resolve) => { window.release = resolve; });
            window.running = window.most = window.asked = 0;
            window.fetch = async (...how) => {
                // No prediction of the chosen image: what the page loads late, and its pair of kept examples.
                if (how[1]?.method !== "POST" || how[1].body.getAll("image").length !== 1) return real(...how);
                window.asked += 1;
                window.most = Math.max(window.most, ++window.running);
                await released;
                try { return await real(...how); } finally { window.running -= 1; }
            };
        }"""
    )
    slider = page.get_by_role("slider", name="Add random noise")
    slider.fill("1")
    until(lambda: bool(page.evaluate("window.asked === 1")))
    for level in range(2, 11):
        slider.fill(str(level))
        page.wait_for_timeout(200)  # each rests long enough to be asked
    assert page.evaluate("window.asked") == 1
    page.evaluate("window.release()")
    expect(page.get_by_role("status")).to_contain_text("with noise of 10/255")
    until(lambda: bool(page.evaluate("window.running === 0")))
    assert page.evaluate("window.most") == 1
    assert page.evaluate("window.asked") in (2, 3), "what was passed over on the way is never asked"

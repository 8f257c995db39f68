"""How the page gets to know its model: where the first question fails, and where another model takes its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.http_client import DIGITS, until
from tests.support.page import (
    KEEP_SENT,
    OTHER_PNG,
    PNG,
    change_model,
    expect_answer,
    label_of,
    last_sent,
    set_noise,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow

# Nobody answers what the page asks about models, from its first question on, until `window.isBack`.
DOWN = """(() => {
    const real = window.fetch;
    window.fetch = async (path, options) => {
        if (path.startsWith("/v1/model") && !window.isBack) throw new TypeError("gone");
        return real(path, options);
    };
})()"""


def down(page: Page) -> Page:
    page.add_init_script(DOWN)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server did not answer.")
    return page


def test_it_is_asked_again_with_the_next_image(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = down(look(server))
    chooser = page.get_by_label("Choose images")
    chooser.set_input_files(PNG)
    expect_answer(page, label_of(measured, DIGITS[0]))
    expect(page.get_by_role("meter", name="Dummy mass")).to_be_hidden()  # nobody knows whether it has dummies
    page.evaluate("window.isBack = true")
    chooser.set_input_files(OTHER_PNG)
    expect_answer(page, label_of(measured, DIGITS[5]))
    expect(page.get_by_text("resnet-small · 10 classes")).to_be_visible()
    expect(page.get_by_role("img", name="The image as the model sees it")).to_be_visible()
    expect(page.get_by_role("meter", name="Dummy mass")).to_be_visible()


def test_it_is_asked_again_by_hand(look: Callable[..., Page], server: Server) -> None:
    page = down(look(server))
    page.evaluate("window.isBack = true")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("resnet-small · 10 classes")).to_be_visible()
    expect(page.locator("#prediction")).to_be_focused()  # the button is gone


def test_a_model_of_another_size_gets_a_picture_of_its_size(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    change_model(page, "**/v1/model", function="0" * 64, image_size=[16, 16])
    page.reload()
    expect(page.locator("#model")).to_contain_text("16 × 16 pixels")
    page.unroute("**/v1/model")
    page.evaluate(KEEP_SENT)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect_answer(page, label_of(measured, DIGITS[0]))
    expect(page.locator("#model")).to_contain_text("8 × 8 pixels")
    expect(page.locator("#caption")).to_contain_text("8 × 8 pixels, the image's own size")
    assert page.locator("#preview").evaluate("canvas => canvas.width") == 8


def test_noise_is_put_on_the_picture_for_the_new_model(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    change_model(page, "**/v1/model", function="0" * 64, image_size=[16, 16])
    page.reload()
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.locator("#caption")).to_contain_text("16 × 16 pixels")
    expect(page.get_by_text("Answered in")).to_be_visible()
    page.unroute("**/v1/model")
    page.evaluate(KEEP_SENT)
    set_noise(page, 4)

    def side() -> int | None:
        image = last_sent(page)
        return None if image is None else image.shape[0]

    until(lambda: side() == 8)

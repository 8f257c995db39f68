"""The page where something goes wrong: bad files, a server that is gone, keys and limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.support.http_client import DIGITS, encode
from tests.support.page import (
    KEY,
    OTHER_PNG,
    PNG,
    expect_answer,
    label_of,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow


def test_an_error_is_announced_and_the_page_goes_on(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    chooser = page.get_by_label("Choose images")
    chooser.set_input_files(PNG)
    expect_answer(page, label_of(measured, DIGITS[0]))
    chooser.set_input_files({**PNG, "buffer": b"This is text, whatever its name says."})
    expect(page.get_by_role("alert")).to_have_text("Not an image in one of the formats PNG, JPEG, WEBP, BMP.")
    expect(page.get_by_text("Most likely classes")).to_be_hidden()
    expect(page.get_by_role("img", name="The image as the model sees it")).to_be_hidden()
    chooser.set_input_files(OTHER_PNG)
    expect_answer(page, label_of(measured, DIGITS[5]))


def test_a_server_that_is_gone_is_told(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    expect(page.get_by_text("resnet-small · 10 classes")).to_be_visible()
    page.evaluate(
        "() => { window.real = window.fetch; window.fetch = async () => { throw new TypeError('gone'); }; }"
    )
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.get_by_role("alert")).to_contain_text("The server did not answer.")
    page.evaluate("() => { window.fetch = window.real; }")
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, label_of(measured, DIGITS[0]))
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    expect(page.locator("#prediction")).to_be_focused()  # the button is gone


def test_keys_limits_and_a_model_that_nobody_measured(
    look: Callable[..., Page], strict_server: Server, onnx_model: Path
) -> None:
    page = look(strict_server)
    alert, field = page.get_by_role("alert"), page.get_by_label("API key")
    expect(field).to_be_visible()
    expect(alert).to_be_empty()
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(alert).to_contain_text("Send a known API key")
    for wrong, message in (("w" * 32, "Send a known API key"), ("schlüssel€", "without blanks")):
        field.fill(wrong)
        page.get_by_role("button", name="Use this key").click()
        expect(alert).to_contain_text(message)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(alert).to_contain_text("Send a known API key")  # what cannot be a key was not kept as one
    field.fill(KEY)
    field.press("Enter")
    expect_answer(page, label_of(onnx_model, DIGITS[0]))  # the image that was chosen before
    expect(page.get_by_text("Nobody measured the robustness of this model.")).to_be_visible()
    expect(page.get_by_role("group", name="Or try a sample")).to_be_hidden()

    large: FilePayload = {
        **PNG,
        "buffer": encode(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)),
    }
    page.get_by_label("Choose images").set_input_files(large)
    expect(alert).to_contain_text("The request body is over the limit of 50000 bytes.")
    page.get_by_label("Choose images").set_input_files(OTHER_PNG)
    expect_answer(page, label_of(onnx_model, DIGITS[5]))
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(alert).to_have_text(
        re.compile(
            r"^The budget of 2 images per day is spent; 0 are left\. Try again in \d+.(hours|minutes|s)\.$"
        )
    )

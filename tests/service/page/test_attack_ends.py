"""An attack that is watched ends with its image and its model, and says why it ended."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.support.http_client import DIGITS
from tests.support.page import OTHER_PNG, PNG
from tests.support.server_process import Server

pytestmark = pytest.mark.slow

# A server whose attack says what the test says, when the test says it, also to a page that no longer listens.
TELL = """() => {
    const real = window.fetch;
    window.fetch = async (path, options) => {
        if (!path.startsWith("/v1/attack")) return real(path, options);
        window.attackSignal = options.signal;
        const { readable, writable } = new TransformStream();
        const writer = writable.getWriter();
        window.tell = async (step) => {
            writer.write(new TextEncoder().encode(JSON.stringify(step) + "\\n"));
            await new Promise((resolve) => setTimeout(resolve, 50)); // until the page has read it
        };
        return new Response(readable);
    };
}"""
STEP = {"queries": 11, "label": "4", "confidence": 0.5}
PIXELS = base64.b64encode(DIGITS[0].tobytes()).decode()
LAST: dict[str, Any] = {
    **{**STEP, "queries": 21, "before": {"label": "0", "confidence": 0.9}},
    **{"original": PIXELS, "attacked": PIXELS},
}
NO_IMAGE: FilePayload = {**PNG, "buffer": b"no image"}


def attacked(page: Page) -> Page:
    """The page while it attacks an image, eleven questions in."""
    page.evaluate(TELL)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    page.get_by_role("button", name="Attack the chosen image").click()
    page.wait_for_function("() => Boolean(window.tell)")
    page.evaluate("step => window.tell(step)", STEP)
    expect(page.locator("#attack-count")).to_contain_text("11 questions asked; now 4")
    return page


@pytest.mark.parametrize("file", [OTHER_PNG, NO_IMAGE], ids=["image", "no image"])
def test_another_file_ends_it(look: Callable[..., Page], server: Server, file: FilePayload) -> None:
    page = attacked(look(server))
    page.get_by_label("Choose images").set_input_files(file)
    expect(page.get_by_role("button", name="Attack the chosen image")).to_be_visible()
    assert page.evaluate("window.attackSignal.aborted")
    page.evaluate("step => window.tell(step)", {**LAST, "stopped": "fooled"})
    expect(page.locator("#attack-count")).to_be_empty()
    expect(page.locator("#trio-caption")).not_to_contain_text("Found by")


def test_another_model_ends_it(look: Callable[..., Page], server: Server) -> None:
    page = attacked(look(server))
    page.locator("#which").dispatch_event("change")
    expect(page.get_by_role("button", name="Attack the chosen image")).to_be_visible()
    assert page.evaluate("window.attackSignal.aborted")
    expect(page.locator("#attack-count")).to_be_empty()


def test_what_it_found_goes_with_the_image_and_a_kept_example_stays(
    look: Callable[..., Page], server: Server
) -> None:
    page = attacked(look(server))
    expect(page.locator("#trio-caption")).to_contain_text("Both answers are the model's own")
    page.evaluate("step => window.tell(step)", {**LAST, "stopped": "fooled"})
    expect(page.locator("#trio-caption")).to_contain_text("Found by a search of 21 questions")
    page.get_by_label("Choose images").set_input_files(OTHER_PNG)
    expect(page.locator("#trio")).to_be_hidden()
    expect(page.locator("#attack-count")).to_be_empty()


def test_it_says_in_words_why_it_ended(look: Callable[..., Page], server: Server) -> None:
    page = attacked(look(server))
    for code, words in (
        ("rate_limited", "Stopped: more questions a second than the server allows."),
        ("budget_spent", "Stopped: the budget of images is spent."),
    ):
        page.evaluate("step => window.tell(step)", {**LAST, "stopped": code})
        expect(page.locator("#attack-count")).to_contain_text(words)


def test_it_is_stopped_by_hand(look: Callable[..., Page], server: Server) -> None:
    page = attacked(look(server))
    page.get_by_role("button", name="Stop the attack").click()
    expect(page.locator("#attack-count")).to_have_text("Stopped.")
    assert page.evaluate("window.attackSignal.aborted")

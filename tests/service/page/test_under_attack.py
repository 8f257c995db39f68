"""The model under attack: what an evaluation kept, and a search that the page looks on at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ducat_serve.predictor import Predictor
from tests.support.page import PNG
from tests.support.server_process import WAIT, Server

pytestmark = pytest.mark.slow
# What is drawn: the first and the third picture, and ten times their difference.
DRAWN = """() => ["before", "change", "after"].map((name) => {
    const canvas = document.getElementById("trio-" + name);
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
})"""


def test_kept_examples_are_asked_about_anew(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    kept = Predictor(measured).examples
    assert kept is not None
    assert any(example.fooled for example in kept.examples)
    page = look(server)
    region = page.get_by_role("region", name="Under attack")
    buttons = region.get_by_role("group", name="Attacked images").get_by_role("button")
    expect(buttons).to_have_count(len(kept.examples))
    labels = Predictor(measured).spec.labels
    for index, example in enumerate(kept.examples):
        buttons.nth(index).click()
        expect(buttons.nth(index)).to_have_attribute("aria-pressed", "true")
        before, after = page.locator("#trio-before-answer strong"), page.locator("#trio-after-answer strong")
        expect(before).to_have_text(labels[example.class_id])
        if example.fooled:
            expect(after).not_to_have_text(labels[example.class_id])
        else:
            expect(after).to_have_text(labels[example.class_id])
    before, change, after = page.evaluate(DRAWN)
    assert before != after
    for one, ten, other in zip(before, change, after, strict=True):
        expected = min(255, max(0, 128 + 10 * (other - one)))
        assert ten in (expected, 255), "alpha is 255"


def test_a_search_is_watched_and_stays_within_its_bound(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    button = page.get_by_role("button", name="Attack the chosen image")
    expect(button).to_be_disabled()
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    button.click()
    expect(page.locator("#attack-count")).to_have_text(
        re.compile(r"^\d+ questions asked; now \S+ with .* The answer (changed|stayed)"), timeout=2000 * WAIT
    )
    stayed = "stayed" in page.locator("#attack-count").inner_text()
    caption = "Not fooled: the furthest that a search of" if stayed else "Found by a search of"
    expect(page.locator("#trio-caption")).to_contain_text(caption)
    before, _, after = page.evaluate(DRAWN)
    changes = [abs(one - other) for one, other in zip(before, after, strict=True)]
    assert 0 < max(changes) <= 25, "0.1 of 255"
    expect(page.locator("#trio-before-answer strong")).to_have_count(1)


def test_without_the_option_no_search_is_offered(look: Callable[..., Page], strict_server: Server) -> None:
    page = look(strict_server)
    expect(page.get_by_label("API key")).to_be_visible()
    expect(page.get_by_role("region", name="Under attack")).to_be_hidden()

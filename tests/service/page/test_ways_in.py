"""The page in a real Chromium, against a real `ducat serve`: every way in."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ducat_serve.predictor import Predictor
from ducat_serve.report_text import broken_by_checks_in_words
from tests.support.http_client import DIGITS, encode
from tests.support.page import (
    OTHER_PNG,
    PNG,
    expect_answer,
    held,
    hold,
    label_of,
    release,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow
PASTE_NOTHING = "body => body.dispatchEvent(new ClipboardEvent('paste', { bubbles: true, cancelable: true }))"


def test_an_upload_shows_the_models_own_answer(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    expect(page.get_by_text("resnet-small · 10 classes · 8 × 8 pixels")).to_be_visible()
    page.get_by_label("Choose images").set_input_files(PNG)
    predictor = Predictor(measured)
    expected = predictor(DIGITS[:1]).to_json(predictor.spec, 5)[0]
    expect_answer(page, expected["label"])
    bars = page.get_by_role("list").filter(has=page.locator("meter")).get_by_role("listitem")
    expect(bars).to_have_count(5)
    for row, choice in zip(bars.all(), expected["top_k"], strict=True):
        expect(row).to_have_text(f"{choice['label']}{100 * choice['confidence']:.1f}\u00a0%")
        assert float(row.locator("meter").evaluate("e => e.value")) == pytest.approx(choice["confidence"])
    gauge = page.get_by_role("meter", name="Dummy mass")
    assert float(gauge.evaluate("e => e.value")) == pytest.approx(expected["dummy_mass"], rel=1e-4)
    expect(gauge).to_have_attribute("aria-valuetext", f"{100 * expected['dummy_mass']:.1f}\u00a0%")
    expect(page.get_by_text("it is not a defence")).to_be_visible()


def test_the_report_is_the_models_own(look: Callable[..., Page], server: Server, measured: Path) -> None:
    report = Predictor(measured).spec.robustness
    assert report is not None
    page = look(server)
    region = page.get_by_role("region", name="How robust is it?")
    expect(region).to_contain_text(
        f"Of 40 test images of {report.dataset}, {100 * report.clean_accuracy:.1f}\u00a0% were"
    )
    expect(region).to_contain_text("at most 0.1 per pixel and colour")
    figures = [f"{100 * x:.1f}\u00a0%" for x in (report.clean_accuracy, report.worst_case_accuracy)]
    expect(region.locator("#figures dd")).to_have_text(figures)
    region.get_by_text("Attack by attack").click()
    [pgd] = report.attacks
    after = f"{100 * pgd.worst_case_accuracy:.1f}\u00a0%"  # sanity checks may have broken more
    expect(region.get_by_role("row").last).to_have_text(re.compile(rf"^pgd{pgd.examples}{after}$"))
    for sentence in broken_by_checks_in_words(report):
        expect(region).to_contain_text(sentence)


def test_a_file_is_dropped(look: Callable[..., Page], server: Server, measured: Path, tmp_path: Path) -> None:
    """By the browser's own drag and drop, anywhere on the page."""
    (tmp_path / "dropped.png").write_bytes(encode(DIGITS[3]))
    page = look(server)
    devtools = page.context.new_cdp_session(page)

    def drag(kind: str, x: int) -> None:
        data = {"items": [], "files": [str(tmp_path / "dropped.png")], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": 300, "data": data})

    hint = page.get_by_text("Drop images to classify them")
    expect(hint).to_be_hidden()
    drag("dragEnter", 30)
    expect(hint).to_be_visible()
    drag("dragOver", 40)
    drag("drop", 40)
    expect_answer(page, label_of(measured, DIGITS[3]))
    expect(hint).to_be_hidden()


def test_an_image_is_pasted(look: Callable[..., Page], server: Server, measured: Path) -> None:
    """Through the browser's clipboard, by Ctrl+V."""
    page = look(server, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(encode(DIGITS[4])).decode(),
    )
    page.keyboard.press("Control+V")
    expect_answer(page, label_of(measured, DIGITS[4]))
    page.evaluate("navigator.clipboard.writeText('only text')")
    page.keyboard.press("Control+V")
    expect(page.get_by_role("alert")).to_have_text("There is no image file in what was pasted.")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()  # it would ask about the image before


def test_a_sample_is_picked(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    samples = page.get_by_role("group", name="Or try a sample").get_by_role("button")
    expect(samples).to_have_text(["digit 0", "digit 1", "digit 2"])
    samples.nth(2).click()
    expect_answer(page, label_of(measured, DIGITS[2]))
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "true")
    page.locator("body").evaluate(PASTE_NOTHING)
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "true")  # it is still shown
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "false")


def test_a_sample_picked_twice_is_remembered_once(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    for number in (2, 1, 2):
        page.get_by_role("button", name=f"digit {number}").first.click()
        expect_answer(page, label_of(measured, DIGITS[number]))
    past = page.get_by_role("region", name="This visit").get_by_role("button")
    expect(past).to_have_count(2)
    past.nth(1).click()
    samples = page.get_by_role("group", name="Or try a sample").get_by_role("button")
    expect(samples.nth(1)).to_have_attribute("aria-pressed", "true")  # shown again, it is marked again


def test_a_sample_that_comes_late_takes_nothing_away(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    hold(page, "/samples/digit-0")
    page.get_by_role("button", name="digit 0").click()
    held(page, 1)
    page.get_by_label("Choose images").set_input_files(OTHER_PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    answer = page.get_by_role("status").inner_text()
    release(page, 0)
    assert page.get_by_role("status").inner_text() == answer
    expect(page.get_by_role("button", name="digit 0")).to_have_attribute("aria-pressed", "false")

"""What was asked in this visit, how sure the model is, what it knows, and the same from a program."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from ducat_serve.predictor import Predictor
from tests.support.http_client import DIGITS, encode
from tests.support.page import KEY, OTHER_PNG, PNG, change_model, expect_answer, label_of
from tests.support.server_process import WAIT, Server

pytestmark = pytest.mark.slow


def test_what_was_asked_can_be_shown_again(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    expect(page.get_by_role("region", name="This visit")).to_be_hidden()
    chooser = page.get_by_label("Choose images")
    chooser.set_input_files(PNG)
    expect_answer(page, label_of(measured, DIGITS[0]))
    chooser.set_input_files({**OTHER_PNG, "name": "other.png"})
    past = page.get_by_role("region", name="This visit").get_by_role("listitem")
    expect(past).to_have_count(2)
    expect(past.first).to_contain_text(f"other.png{label_of(measured, DIGITS[5])}")
    past.nth(1).get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(past.first).to_contain_text("digit.png")
    expect(page.locator("#prediction")).to_be_focused()  # the entry was replaced by another one
    expect(past).to_have_count(2)
    expect_answer(page, label_of(measured, DIGITS[0]))


def test_it_says_where_the_model_is_unsure(look: Callable[..., Page], server: Server, measured: Path) -> None:
    answers = Predictor(measured)(DIGITS)
    order = answers.confidence.argsort()
    page = look(server)
    for index, is_unsure in ((order[0], True), (order[-1], False)):
        assert (answers.confidence[index] < 0.5) == is_unsure, "the model of the tests has both"
        page.get_by_label("Choose images").set_input_files({**PNG, "buffer": encode(DIGITS[index])})
        expect_answer(page, label_of(measured, DIGITS[index]))
        said = page.get_by_role("status").get_by_text("unsure", exact=True)
        expect(said).to_have_count(1 if is_unsure else 0)


def test_it_lists_what_the_model_knows(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    page.get_by_text("The 10 classes it knows").click()
    expect(page.locator("#class-list").get_by_role("listitem")).to_have_text(
        list(Predictor(measured).spec.labels)
    )


def test_very_many_classes_are_scrolled_downwards(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    labels = [f"an animal of the forest, number {number}" for number in range(200)]
    change_model(page, "**/v1/model", labels=labels, num_classes=200)
    page.reload()
    page.get_by_text("The 200 classes it knows").click()
    listed = page.get_by_role("region", name="The 200 classes it knows")
    expect(listed.get_by_role("listitem")).to_have_count(200)
    assert listed.evaluate("e => e.scrollWidth === e.clientWidth && e.scrollHeight > e.clientHeight")


def test_accuracy_is_told_class_by_class(look: Callable[..., Page], server: Server, measured: Path) -> None:
    report = Predictor(measured).spec.robustness
    assert report is not None
    page = look(server)
    page.get_by_text("Class by class").click()
    rows = page.locator("#class-rows").get_by_role("row")
    expect(rows).to_have_count(10)
    first = report.per_class[0]
    assert first.clean_accuracy is not None
    expect(rows.first).to_contain_text(f"{first.examples}{100 * first.clean_accuracy:.1f}")


def test_the_worst_case_is_told_at_every_size(look: Callable[..., Page], server: Server) -> None:
    """Where the report has several; the server's own has one."""
    page = look(server)
    expect(page.get_by_text("Class by class")).to_be_visible()
    expect(page.get_by_text("At several sizes of the attack")).to_be_hidden()

    def with_curve(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["spec"]["robustness"]["curve"] = [
            {"eps": eps, "worst_case_accuracy": accuracy, "worst_case_interval": [0, 1]}
            for eps, accuracy in ((4 / 255, 0.75), (8 / 255, 0.5))
        ]
        route.fulfill(response=answer, json=body)

    page.route("**/v1/model", with_curve)
    page.reload()
    page.get_by_text("At several sizes of the attack").click()
    expect(page.locator("#curve-rows").get_by_role("row")).to_have_text(
        ["4/25575.0\u00a0%", "8/25550.0\u00a0%"]
    )


def test_what_is_copied_works(
    look: Callable[..., Page], server: Server, measured: Path, tmp_path: Path
) -> None:
    (tmp_path / "digit.png").write_bytes(encode(DIGITS[0]))
    page = look(server, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_label("Choose images").set_input_files(PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    page.get_by_text("The same from a program").click()
    for name, command in (("curl", ["bash", "-c"]), ("Python", [sys.executable, "-c"])):
        button = page.get_by_role("button", name=f"Copy as {name}")
        button.click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        text = page.evaluate("navigator.clipboard.readText()")
        done = subprocess.run(
            [*command, text], cwd=tmp_path, capture_output=True, text=True, timeout=WAIT, check=True
        )
        assert re.search(
            rf'"label":"{label_of(measured, DIGITS[0])}"|^{label_of(measured, DIGITS[0])}$', done.stdout, re.M
        )
        expect(button).to_be_visible()


def test_what_is_copied_names_the_image_that_is_shown(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.get_by_text("The same from a program").click()
    for name in ("cat.png", "dog.png"):
        page.get_by_label("Choose images").set_input_files({**PNG, "name": name})
        for text in page.locator("#curl-text, #python-text").all():
            expect(text).to_contain_text(name)


def test_no_key_is_ever_copied(look: Callable[..., Page], strict_server: Server) -> None:
    page = look(strict_server)
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_text("model · resnet-small")).to_be_visible()
    page.get_by_text("The same from a program").click()
    for text in page.locator("#curl-text, #python-text").all():
        expect(text).to_contain_text("DUCAT_KEY")
        expect(text).not_to_contain_text(KEY)


def test_on_a_phone_the_answer_is_in_sight(look: Callable[..., Page], server: Server) -> None:
    small = {"width": 360, "height": 640}
    page = look(server, viewport=small, is_mobile=True, has_touch=True, reduced_motion="reduce")
    page.get_by_role("button", name="digit 1").tap()
    expect(page.get_by_text("Answered in")).to_be_visible()
    expect(page.locator("#headline")).to_be_in_viewport(ratio=1)
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("#noise").evaluate("e => { e.value = 3; e.dispatchEvent(new Event('input')); }")
    expect(page.locator("#headline")).to_contain_text("with noise of 3/255")
    assert page.evaluate("window.scrollY") == 0, "moving the slider leaves the page where it is"

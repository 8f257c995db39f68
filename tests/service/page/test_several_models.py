"""The page where several models are served."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Locator, Page, expect

from ducat_serve.predictor import Predictor
from tests.support.browser import serving
from tests.support.http_client import DIGITS, encode
from tests.support.model_repository import place
from tests.support.page import (
    PNG,
    change_model,
    expect_answer,
    held,
    hold,
    label_of,
    release,
)
from tests.support.server_process import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(onnx_model: Path, other_model: Path) -> dict[tuple[str, str], Path]:
    """By name and version."""
    return {("first", "1"): onnx_model, ("second", "1"): other_model, ("second", "2"): onnx_model}


@pytest.fixture(scope="module")
def several(files: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    for (name, version), file in files.items():
        place(file, repository, name, version)
    with serving(repository) as running:
        yield running


def chooser_of(page: Page, name: str) -> Locator:
    chooser = page.get_by_role("combobox", name=name)
    expect(chooser).to_be_visible()
    expect(page.locator("#model")).to_contain_text("first · ")
    return chooser


def test_one_of_several_models_is_chosen(
    look: Callable[..., Page],
    several: Server,
    files: dict[tuple[str, str], Path],
    onnx_model: Path,
    other_model: Path,
) -> None:
    page = look(several)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect_answer(page, label_of(onnx_model, DIGITS[0]))
    chooser = page.get_by_role("combobox", name="Model")
    expect(chooser.get_by_role("option")).to_have_text([f"{name}, version {v}" for name, v in files])
    for name, version in (("second", "1"), ("second", "2")):
        file = files[name, version]
        with page.expect_response(lambda response: "/v1/predict" in response.url) as answered:
            chooser.select_option(label=f"{name}, version {version}")
        assert f"model={name}&version={version}" in answered.value.url
        assert answered.value.json()["model"]["weights_digest"] == Predictor(file).spec.weights_digest
        expect_answer(page, label_of(file, DIGITS[0]))
        expect(page.get_by_text(re.compile(f"^{name} · resnet-small"))).to_be_visible()
    beside = page.get_by_role("combobox", name="Beside it")
    beside.select_option(label="second, version 1")
    other = label_of(other_model, DIGITS[0])
    expect(page.get_by_role("heading", name="second, version 1")).to_be_visible()
    same = "the same answer" if other == label_of(onnx_model, DIGITS[0]) else "another answer"
    expect(page.locator("#beside-headline")).to_contain_text(re.compile(rf"^{other} .*{same}"))
    beside.select_option(label="nothing")
    expect(page.locator("#beside-answer")).to_be_hidden()


def test_the_answer_stays_where_the_model_beside_gives_none(
    look: Callable[..., Page], several: Server, onnx_model: Path
) -> None:
    page = look(several)
    page.get_by_label("Choose images").set_input_files(PNG)
    expect_answer(page, label_of(onnx_model, DIGITS[0]))
    page.route(
        "**/v1/predict?model=second*",
        lambda route: route.fulfill(status=429, json={"error": {"code": "x", "message": "over the rate."}}),
    )
    chooser_of(page, "Beside it").select_option(label="second, version 1")
    expect(page.locator("#beside-headline")).to_have_text("Over the rate.")
    expect(page.get_by_role("heading", name="second, version 1")).to_be_visible()
    expect_answer(page, label_of(onnx_model, DIGITS[0]))


def test_whether_a_model_is_unsure_is_for_its_own_measurement_to_say(
    look: Callable[..., Page], several: Server, onnx_model: Path
) -> None:
    surest = DIGITS[int(Predictor(onnx_model)(DIGITS).confidence.argmax())]
    page = look(several)
    flagging = {"rejection": [{"score": "confidence", "threshold": 1.1}]}
    change_model(page, "**/v1/model?model=second*", robustness=flagging)
    chooser_of(page, "Beside it").select_option(label="second, version 2")
    page.get_by_label("Choose images").set_input_files({**PNG, "buffer": encode(surest)})
    expect(page.locator("#beside-headline").get_by_text("unsure", exact=True)).to_be_visible()
    expect(page.get_by_role("status").get_by_text("unsure", exact=True)).to_have_count(0)


def test_the_report_is_that_of_the_model_chosen_last(look: Callable[..., Page], several: Server) -> None:
    page = look(several)
    chooser = chooser_of(page, "Model")
    hold(page, "/v1/model?")
    for count, label in enumerate(("second, version 1", "first, version 1"), start=1):
        chooser.select_option(label=label)
        held(page, count)
    release(page, 1)
    release(page, 0)
    expect(page.locator("#model")).to_contain_text("first · ")


# Every question about models is refused for now; timers wait until the test runs them.
BUSY = """() => {
    window.asked = 0;
    window.timers = [];
    const real = window.fetch;
    window.fetch = async (path, options) => {
        if (path !== "/v1/models") return real(path, options);
        window.asked += 1;
        return new Response("{}", { status: 503, headers: { "Retry-After": "7" } });
    };
    const realTimeout = window.setTimeout;
    window.setTimeout = (call, wait, ...more) =>
        wait === 7000 ? window.timers.push(() => call(...more)) : realTimeout(call, wait, ...more);
}"""


def test_a_busy_server_is_asked_again_once_however_often_the_model_was_changed(
    look: Callable[..., Page], several: Server
) -> None:
    page = look(several)
    chooser = chooser_of(page, "Model")
    page.evaluate(BUSY)
    for count, label in enumerate(("second, version 1", "second, version 2", "first, version 1"), start=1):
        chooser.select_option(label=label)
        page.wait_for_function("count => window.timers.length === count", arg=count)
    page.evaluate("window.asked = 0; for (const run of window.timers) run();")
    assert page.evaluate("window.asked") == 1


def test_a_batch_is_answered_by_one_model(look: Callable[..., Page], several: Server) -> None:
    page = look(several)
    chooser = chooser_of(page, "Model")
    hold(page, "/v1/predict")
    images: list[FilePayload] = [{**PNG, "name": f"{number}.png"} for number in range(3)]
    page.get_by_label("Choose images").set_input_files(images)
    held(page, 1)
    chooser.select_option(label="second, version 1")
    expect(page.locator("#model")).to_contain_text("second · ")
    for index in range(3):
        addresses = held(page, index + 1)
        release(page, index)
    assert addresses == ["/v1/predict?model=first&version=1"] * 3
    expect(page.locator("#batch-count")).to_have_text("3 files, all answered. Model: first, version 1.")

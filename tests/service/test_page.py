"""The page in a real Chromium, against a real `ducat serve`: every way in, every way it can go wrong."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Request, expect

from ducat_serve.cli.main import run
from ducat_serve.images import fit
from ducat_serve.predictor import Predictor
from tests.support.browser import chromium, serving
from tests.support.http_client import DIGITS, encode, until
from tests.support.model_repository import place
from tests.support.server_process import WAIT, Server

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("page")]
KEY = "k" * 32
PNG: FilePayload = {"name": "digit.png", "mimeType": "image/png", "buffer": encode(DIGITS[0])}
OTHER_PNG: FilePayload = {**PNG, "buffer": encode(DIGITS[5])}
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


@pytest.fixture(scope="module")
def measured(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with a small robustness report."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(run_folder, folder, dirs_exist_ok=True)
    assert run(["evaluate", str(folder), "--attack", "pgd", "--max-examples", "40"]) == 0
    assert run(["export", str(folder), "--onnx"]) == 0
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def server(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    samples = tmp_path_factory.mktemp("samples")
    for number in range(3):
        (samples / f"digit-{number}.png").write_bytes(encode(DIGITS[number]))
    with serving(measured, "--samples", str(samples)) as running:
        yield running


@pytest.fixture(scope="module")
def strict_server(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Asks for a key, takes small bodies and two images a day; nobody measured its model."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice:{KEY}\n")
    options = ("--keys-file", str(keys), "--daily-budget", "2", "--max-body", "50000")
    with serving(onnx_model, *options) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * WAIT)
    with chromium() as started:
        yield started


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page of a server. What it asks of anybody else, and what it complains of, fails the test."""
    opened, strangers, complaints = [], [], []

    def opener(server: Server, **options: Any) -> Page:
        def remember(request: Request) -> None:
            if not request.url.startswith((server.url + "/", f"blob:{server.url}/")):
                strangers.append(request.url)

        context = browser.new_context(**options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * WAIT)
        page.on("request", remember)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(server.url)
        return page

    yield opener
    for context in opened:
        context.close()
    assert strangers == []
    assert [text for text in complaints if not REFUSED.match(text)] == []


def label_of(model: Path, image: NDArray[np.uint8]) -> str:
    predictor = Predictor(model)
    return predictor.spec.labels[int(predictor(image[None]).label[0])]


def expect_answer(page: Page, label: str) -> None:
    expect(page.get_by_role("status")).to_have_text(re.compile(rf"^{label} \d"))
    expect(page.get_by_text(re.compile(r"^Answered in \d+\sms"))).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()


def last_sent(page: Page) -> NDArray[np.uint8] | None:
    """The picture that the page made and sent last; None where it sent the file itself."""
    sent = page.evaluate("window.sent")
    if sent is None:
        return None
    image = Image.open(io.BytesIO(base64.b64decode(sent)))
    assert image.getextrema()[3:] in ((), ((255, 255),)), "nothing is transparent"
    return np.asarray(image.convert("RGB"))


# Chromium's own log of requests leaves files out of forms, so the page's fetch keeps what it was given.
KEEP_SENT = """() => {
    const real = window.fetch;
    window.fetch = async (path, options) => {
        const file = options?.body?.get("image");
        const bytes = file?.name === "noise.png" ? new Uint8Array(await file.arrayBuffer()) : null;
        if (file) window.sent = bytes && btoa(String.fromCharCode(...bytes));
        return real(path, options);
    };
}"""


def set_noise(page: Page, level: int) -> None:
    page.get_by_role("slider", name="Add random noise").fill(str(level))
    expect(page.get_by_role("status")).to_contain_text(f"with noise of {level}/255")


# Ways in


def test_an_upload_shows_the_models_own_answer(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    expect(page.get_by_text("resnet-small · 10 classes · 8 × 8 pixels")).to_be_visible()
    page.get_by_label("Choose an image").set_input_files(PNG)
    predictor = Predictor(measured)
    expected = predictor(DIGITS[:1]).to_json(predictor.spec.labels, 5)[0]
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
    expect(region.get_by_role("row").last).to_have_text(
        re.compile(rf"^pgd{report.attacks[0].examples}{figures[1]}$")
    )


def test_a_file_is_dropped(look: Callable[..., Page], server: Server, measured: Path, tmp_path: Path) -> None:
    """By the browser's own drag and drop, anywhere on the page."""
    (tmp_path / "dropped.png").write_bytes(encode(DIGITS[3]))
    page = look(server)
    devtools = page.context.new_cdp_session(page)

    def drag(kind: str, x: int) -> None:
        data = {"items": [], "files": [str(tmp_path / "dropped.png")], "dragOperationsMask": 1}
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": 300, "data": data})

    hint = page.get_by_text("Drop the image to classify it")
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


def test_a_sample_is_picked(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    samples = page.get_by_role("group", name="Or try a sample").get_by_role("button")
    expect(samples).to_have_text(["digit 0", "digit 1", "digit 2"])
    samples.nth(2).click()
    expect_answer(page, label_of(measured, DIGITS[2]))
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Choose an image").set_input_files(PNG)
    expect(samples.nth(2)).to_have_attribute("aria-pressed", "false")


# What goes wrong


def test_an_error_is_announced_and_the_page_goes_on(
    look: Callable[..., Page], server: Server, measured: Path
) -> None:
    page = look(server)
    chooser = page.get_by_label("Choose an image")
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
    page.get_by_label("Choose an image").set_input_files(PNG)
    expect(page.get_by_role("alert")).to_contain_text("The server did not answer.")
    page.evaluate("() => { window.fetch = window.real; }")
    page.get_by_role("button", name="Try again").click()
    expect_answer(page, label_of(measured, DIGITS[0]))
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_keys_limits_and_a_model_that_nobody_measured(
    look: Callable[..., Page], strict_server: Server, onnx_model: Path
) -> None:
    page = look(strict_server)
    alert, field = page.get_by_role("alert"), page.get_by_label("API key")
    expect(field).to_be_visible()
    expect(alert).to_be_empty()
    page.get_by_label("Choose an image").set_input_files(PNG)
    expect(alert).to_contain_text("Send a known API key")
    for wrong, message in (("w" * 32, "Send a known API key"), ("schlüssel", "without blanks")):
        field.fill(wrong)
        page.get_by_role("button", name="Use this key").click()
        expect(alert).to_contain_text(message)
    field.fill(KEY)
    field.press("Enter")
    expect_answer(page, label_of(onnx_model, DIGITS[0]))  # the image that was chosen before
    expect(page.get_by_text("Nobody measured the robustness of this model.")).to_be_visible()
    expect(page.get_by_role("group", name="Or try a sample")).to_be_hidden()

    large: FilePayload = {
        **PNG,
        "buffer": encode(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)),
    }
    page.get_by_label("Choose an image").set_input_files(large)
    expect(alert).to_contain_text("The request body is over the limit of 50000 bytes.")
    page.get_by_label("Choose an image").set_input_files(OTHER_PNG)
    expect_answer(page, label_of(onnx_model, DIGITS[5]))
    page.get_by_label("Choose an image").set_input_files(PNG)
    expect(alert).to_have_text(
        re.compile(
            r"^The budget of 2 images per day is spent; 0 are left\. Try again in \d+.(hours|minutes|s)\.$"
        )
    )


# Noise


def test_the_slider_asks_again_with_the_same_noise_scaled(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.evaluate(KEEP_SENT)
    page.get_by_label("Choose an image").set_input_files(PNG)
    slider = page.get_by_role("slider", name="Add random noise")
    assert slider.get_attribute("max") == "102", "four times 0.1 of 255"
    expect(page.get_by_text("Random noise is not an attack")).to_be_visible()
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
    page.get_by_label("Choose an image").set_input_files({**PNG, "buffer": encode(array)})
    expect(page.get_by_text(f"made from {size[1]} × {size[0]}: shorter side resized")).to_be_visible()
    set_noise(page, 1)
    expected = np.asarray(fit(Image.fromarray(array), (8, 8))).astype(int)
    image = last_sent(page)
    assert image is not None
    assert np.abs(image.astype(int) - expected).max() <= 2  # one of noise, one of rounding


def test_one_request_at_a_time_and_the_last_one_wins(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.get_by_label("Choose an image").set_input_files(PNG)
    expect(page.get_by_text("Answered in")).to_be_visible()
    page.evaluate(
        """() => {
            const real = window.fetch;
            const released = new Promise((resolve) => { window.release = resolve; });
            window.running = window.most = window.asked = 0;
            window.fetch = async (...how) => {
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


# For everyone


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


# The width of the outline that shows the focus; that of a hidden input is on the label after it.
OUTLINE = """(element) => {
    const shown = element.type === "file" ? element.nextElementSibling : element;
    const style = getComputedStyle(shown);
    return style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
}"""


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
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("main").evaluate(TOO_WIDE) == []
    is_dark = page.locator("body").evaluate("e => getComputedStyle(e).backgroundColor").startswith("rgb(15,")
    assert is_dark == (scheme == "dark")


# What sticks out of the window and is not in a box that scrolls.
TOO_WIDE = """(main) => [...main.querySelectorAll("*")]
    .filter((e) => !e.closest(".scroll, .samples, .unseen") && e.getBoundingClientRect().right > innerWidth)
    .map((e) => e.outerHTML)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_motion(
    look: Callable[..., Page], strict_server: Server, server: Server, scheme: Any
) -> None:
    """WCAG AA: every text has a contrast of 4.5 with what is behind it, errors and warnings included."""
    for one in (server, strict_server):
        page = look(one, color_scheme=scheme, reduced_motion="reduce")
        page.get_by_label("Choose an image").set_input_files({**PNG, "buffer": b"no image"})
        expect(page.get_by_role("alert")).not_to_be_empty()
        if one is server:
            low = page.evaluate(CONTRASTS)
            page.get_by_label("Choose an image").set_input_files(PNG)
            expect(page.get_by_text("Answered in")).to_be_visible()
            for summary in page.locator("summary").all():
                summary.click()
        else:
            low = []
        low += page.evaluate(CONTRASTS)
        assert len(low) > 10
        assert [entry for entry in low if entry["contrast"] < 4.5] == []
        assert page.locator("#answer").evaluate("e => getComputedStyle(e).transitionDuration") == "0s"


CONTRASTS = """() => {
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = numbers(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour.slice(0, 3);
        }
        return [255, 255, 255];
    };
    const found = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const element = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
        const two = [light(numbers(getComputedStyle(element).color).slice(0, 3)), light(behind(element))];
        const contrast = (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05);
        found.push({ text: walk.currentNode.data.trim(), contrast });
    }
    return found;
}"""


def test_the_policy_holds_in_the_browser(browser: Browser, server: Server) -> None:
    """Neither a script that was slipped in nor another origin gets through; the other tests see nothing blocked."""
    page = browser.new_page()
    page.goto(server.url)
    blocked: list[str] = []
    page.on("console", lambda message: blocked.append(message.text))
    assert page.evaluate(
        """async () => {
            const script = document.createElement("script");
            script.textContent = "window.slippedIn = true";
            document.head.append(script);
            const left = await fetch("https://example.org/").then(() => true, () => false);
            return [Boolean(window.slippedIn), left];
        }"""
    ) == [False, False]
    assert len([text for text in blocked if "Content Security Policy" in text]) >= 2
    page.close()


def test_one_of_several_models_is_chosen(
    look: Callable[..., Page], onnx_model: Path, other_model: Path, tmp_path: Path
) -> None:
    files = {("first", "1"): onnx_model, ("second", "1"): other_model, ("second", "2"): onnx_model}
    for (name, version), file in files.items():
        place(file, tmp_path, name, version)
    with serving(tmp_path) as server:
        page = look(server)
        page.get_by_label("Choose an image").set_input_files(PNG)
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

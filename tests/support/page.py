"""What the tests of the page share: images, what is expected of the page, and scripts that measure it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FilePayload, Page, Route, expect

from ducat_serve.predictor import Predictor
from tests.support.http_client import DIGITS, encode

KEY = "k" * 32
PNG: FilePayload = {"name": "digit.png", "mimeType": "image/png", "buffer": encode(DIGITS[0])}
OTHER_PNG: FilePayload = {**PNG, "buffer": encode(DIGITS[5])}
# The page's own complaints about what the server refused.
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of 4\d\d")


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
        const files = options?.body?.getAll("image") ?? [];
        if (files.length !== 1) return real(path, options); // nothing, or a pair of kept examples
        const [file] = files;
        const bytes = file.name === "noise.png" ? new Uint8Array(await file.arrayBuffer()) : null;
        window.sent = bytes && btoa(String.fromCharCode(...bytes));
        return real(path, options);
    };
}"""


# Keeps what the page asks of addresses with this in them until `release` lets it through, so that order is certain.
HOLD = """(part) => {
    const real = window.fetch;
    window.held = [];
    window.fetch = async (path, options) => {
        if (!path.includes(part)) return real(path, options);
        const one = { path };
        window.held.push(one);
        await new Promise((letThrough) => { one.letThrough = letThrough; });
        return (one.answer = real(path, options));
    };
}"""


def hold(page: Page, part: str) -> None:
    page.evaluate(HOLD, part)


def held(page: Page, count: int) -> list[str]:
    """The addresses that are held, once there are so many."""
    page.wait_for_function("(count) => window.held.length >= count", arg=count)
    return cast("list[str]", page.evaluate("window.held.map((one) => one.path)"))


def release(page: Page, index: int) -> None:
    """Let it through; the page has its answer afterwards, and has made of it what it does."""
    page.evaluate(
        """async (index) => {
            const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
            window.held[index].letThrough();
            await pause(0);
            await window.held[index].answer.catch(() => null);
            await pause(100);
        }""",
        index,
    )


def change_model(page: Page, address: str, *, function: str | None = None, **changes: object) -> None:
    """Tell the page other things about a model than its server says, from its next question on.

    ``function``: its digest, where it is to be another model than the one that answers.
    """

    def changed(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        body["spec"].update(changes)
        body["function_digest"] = function or body["function_digest"]
        route.fulfill(response=answer, json=body)

    page.route(address, changed)


def set_noise(page: Page, level: int) -> None:
    page.get_by_role("slider", name="Add random noise").fill(str(level))
    expect(page.get_by_role("status")).to_contain_text(f"with noise of {level}/255")


# The width of the outline that shows the focus; that of a hidden input is on the label after it.
OUTLINE = """(element) => {
    const shown = element.type === "file" ? element.nextElementSibling : element;
    const style = getComputedStyle(shown);
    return style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
}"""

# What sticks out of the window and is not in a box that scrolls.
TOO_WIDE = """(main) => [...main.querySelectorAll("*")]
    .filter((e) => !e.closest(".scroll, .samples, .unseen") && e.getBoundingClientRect().right > innerWidth)
    .map((e) => e.outerHTML)"""

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


# Over how many lines the words of an element's text go.
LINES_OF = """(element, words) => {
  const text = element.firstChild, range = document.createRange();
  const start = text.data.replace(/\\s/g, " ").indexOf(words);
  range.setStart(text, start);
  range.setEnd(text, start + words.length);
  return new Set([...range.getClientRects()].map((box) => box.top)).size;
}"""

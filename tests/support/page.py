"""What the tests of the page share: images, what is expected of the page, and scripts that measure it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import FilePayload, Page, expect

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
        const file = options?.body?.get("image");
        const bytes = file?.name === "noise.png" ? new Uint8Array(await file.arrayBuffer()) : null;
        if (file) window.sent = bytes && btoa(String.fromCharCode(...bytes));
        return real(path, options);
    };
}"""


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

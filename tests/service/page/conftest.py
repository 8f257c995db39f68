"""Servers and a browser for the tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.support.browser import chromium, serving
from tests.support.http_client import DIGITS, encode
from tests.support.page import KEY, REFUSED
from tests.support.server_process import WAIT, Server


@pytest.fixture(scope="package")
def measured(measured_folder: Path) -> Path:
    """An exported model with a small robustness report, and images that it was attacked on."""
    return measured_folder / "model.onnx"


@pytest.fixture(scope="package")
def server(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    samples = tmp_path_factory.mktemp("samples")
    for number in range(3):
        (samples / f"digit-{number}.png").write_bytes(encode(DIGITS[number]))
    with serving(measured, "--samples", str(samples), "--attack-demo") as running:
        yield running


@pytest.fixture(scope="package")
def strict_server(onnx_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Asks for a key, takes small bodies and two images a day; nobody measured its model."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"alice:{KEY}\n")
    options = ("--keys-file", str(keys), "--daily-budget", "2", "--max-body", "50000")
    with serving(onnx_model, *options) as running:
        yield running


@pytest.fixture(scope="package")
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

"""A real Chromium, and a real `ducat serve` for it to look at."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.support.server_process import Server, free_port, serve_command, started

ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Read now: no test sees variables called DUCAT_*.
IS_REQUIRED = bool(os.environ.get("DUCAT_TEST_REQUIRE_CHROMIUM"))


def find_chromium() -> str:
    """Path of the Chromium on this machine. Skips the test where there is none, and fails it in CI."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        assert not IS_REQUIRED, "no Chromium: apt-get install chromium"
        pytest.skip("needs Chromium (apt-get install chromium)")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """`ducat serve` of this model with these options, ready; it and its children are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with started(serve_command(model, "--port", str(port), *options), port, Path(folder)) as server:
            yield server

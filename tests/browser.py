"""A real Chromium, and a real `ducat serve` for it to look at."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.test_serve_process import WAIT, Server, free_port, serve_command

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
        port, log = free_port(), Path(folder) / "log.txt"
        with log.open("wb") as output:
            command = serve_command(model, "--port", str(port), *options)
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        server = Server(psutil.Process(process.pid), port, Path(folder), log)
        deadline = time.monotonic() + WAIT
        try:
            while not server.is_ready():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield server
        finally:
            for one in server.all_processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait(WAIT)

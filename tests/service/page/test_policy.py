"""The page's Content-Security-Policy, in a browser that obeys it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from tests.support.server_process import Server

pytestmark = pytest.mark.slow


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

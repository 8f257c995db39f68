"""The reference of the API at /docs: all of it, without scripts, under the same policy as the page."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from starlette.testclient import TestClient

from service.openapi.reference import reference_page
from tests.support.page import TOO_WIDE
from tests.support.server_process import Server


def test_every_operation_is_in_it(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    text = client.get("/docs").text
    operations = [
        (path, method, one)
        for path, methods in described["paths"].items()
        for method, one in methods.items()
        if method != "parameters"
    ]
    assert len(operations) > 15
    for path, method, one in operations:
        assert f'<article id="{one["operationId"]}">' in text
        assert f"{method.upper()} {path}" in text
    assert not re.search(r'(src|href)="(?!/|#)', text), "nothing from anywhere else"
    policy = client.get("/docs").headers["content-security-policy"]
    assert "script-src 'none'" in policy


def test_what_the_document_says_stays_text() -> None:
    operation = {
        "operationId": "x",
        "summary": "<script>alert(1)</script>",
        "tags": ["<b>"],
        "security": [],
        "responses": {"200": {"description": "<img src=x>", "content": {"<i>": {}}}},
    }
    text = reference_page({"tags": [{"name": "<b>"}], "paths": {"/<u>": {"get": operation}}})
    for markup in ("<script>", "<b>", "<img", "<i>", "<u>"):
        assert markup not in text


@pytest.mark.slow
def test_it_fits_a_phone_and_links_work(look: Callable[..., Page], server: Server) -> None:
    page = look(server, viewport={"width": 360, "height": 640}, is_mobile=True)
    page.get_by_role("link", name="its reference").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("API of this server")
    assert page.locator("main").evaluate(TOO_WIDE) == []
    page.get_by_role("link", name="POST /v1/predict").click()
    expect(page.locator("#predict")).to_be_in_viewport()

"""Several files at once: a table, and the same as CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.support.http_client import DIGITS, encode
from tests.support.page import PNG, expect_answer, label_of
from tests.support.server_process import Server

pytestmark = pytest.mark.slow


def file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def test_a_bad_file_costs_its_own_row_only(look: Callable[..., Page], server: Server, measured: Path) -> None:
    page = look(server)
    files = [file(f"{index}.png", encode(DIGITS[index])) for index in range(3)]
    files.insert(1, file('=bad,"1".png', b"no image"))
    page.get_by_label("Choose images").set_input_files(files)
    region = page.get_by_role("region", name="Several files").first
    expect(page.locator("#batch-count")).to_have_text("4 files, 1 without an answer.")
    rows = region.locator("tbody").get_by_role("row")
    expect(rows).to_have_count(4)
    for row, index in ((0, 0), (2, 1), (3, 2)):
        expect(rows.nth(row).get_by_role("cell").first).to_contain_text(label_of(measured, DIGITS[index]))
    expect(rows.nth(1)).to_contain_text("Not an image in one of the formats")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    assert saved.value.suggested_filename == "predictions.csv"
    with Path(saved.value.path()).open(newline="") as file_saved:
        found = list(csv.DictReader(file_saved))
    assert [row["file"] for row in found] == ["0.png", '\'=bad,"1".png', "1.png", "2.png"]
    assert [row["label"] for row in found] == [
        label_of(measured, DIGITS[0]),
        "",
        *(label_of(measured, DIGITS[index]) for index in (1, 2)),
    ]
    assert 0 < float(found[0]["confidence"]) <= 1
    assert found[1]["error"].startswith("Not an image")
    rows.nth(3).get_by_role("button").click()
    expect_answer(page, label_of(measured, DIGITS[2]))


def test_one_file_makes_no_table(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    page.get_by_label("Choose images").set_input_files([PNG])
    expect(page.get_by_text("Answered in")).to_be_visible()
    expect(page.locator("#batch")).to_be_hidden()

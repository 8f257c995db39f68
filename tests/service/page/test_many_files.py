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


def test_on_a_phone_the_table_is_in_sight(look: Callable[..., Page], server: Server) -> None:
    small = {"width": 390, "height": 844}
    page = look(server, viewport=small, is_mobile=True, has_touch=True, reduced_motion="reduce")
    names = [f"IMG_20240512_1234567{number} as a phone names it.png" for number in range(3)]
    page.get_by_label("Choose images").set_input_files([file(name, encode(DIGITS[0])) for name in names])
    expect(page.locator("#batch-count")).to_have_text("3 files, all answered.")
    for cell in page.locator("#batch-rows").get_by_role("row").first.get_by_role("cell").all()[:2]:
        expect(cell).to_be_in_viewport(ratio=1)


# A server that has answered enough for the moment when it is asked for the second time.
LIMITED = """() => {
    const real = window.fetch;
    let asked = 0;
    window.fetch = async (path, options) => {
        if (!path.startsWith("/v1/predict") || ++asked !== 2) return real(path, options);
        return new Response("{}", { status: 429, headers: { "Retry-After": "0.1" } });
    };
}"""


def test_a_file_waits_where_the_server_says_so(look: Callable[..., Page], server: Server) -> None:
    page = look(server)
    expect(page.get_by_text("resnet-small · 10 classes")).to_be_visible()
    page.evaluate(LIMITED)
    page.get_by_label("Choose images").set_input_files(
        [file(f"{n}.png", encode(DIGITS[n])) for n in range(3)]
    )
    expect(page.locator("#batch-count")).to_have_text("3 files, all answered.")
    expect(page.locator("#batch-rows").get_by_role("row")).to_have_count(3)

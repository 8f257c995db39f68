"""Every block of README.md runs, in order, as a reader would run it; and those of the page on training after it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.documents import Block, blocks, ducat_commands, missing_line, run_block, running_server
from tests.support.image_folders import write_colours

URL = "http://127.0.0.1:3000"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what README's commands take from the repository, and with images of the reader's own."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").mkdir()
    shutil.copy(PROJECT / "docs" / "photo.jpg", folder / "docs")
    write_colours(folder / "photos", train=60)  # more than a batch of 128
    return folder


@pytest.mark.slow
def test_every_block_runs(place: Path) -> None:
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as servers:
        for block in [*blocks(PROJECT / "README.md"), *blocks(PROJECT / "docs" / "how-to" / "train.md")]:
            code = block.code
            if code in ("make test", "make demo"):
                continue  # this very run, which test_make_targets looks at; tests/cli/test_demo.py runs the other
            if block.is_server:
                servers.enter_context(running_server(block, URL, place))
                continue
            in_project = code.startswith("source") and (PROJECT / ".venv").exists()
            printed[code] = run_block(block.shortened(), PROJECT if in_project else place)
    (answer,) = [json.loads(text) for code, text in printed.items() if code.startswith("curl")]
    assert len(answer["predictions"][0]["top_k"]) == 5
    assert "under pgd at" in answer["model"]["robustness"]


def test_only_commands_of_ducat_alone_need_no_shell() -> None:
    def needs_shell(code: str) -> bool:
        return not ducat_commands(Block("bash", code, None))

    assert ducat_commands(Block("bash", "ducat runs 'a b' \\\n    --json\nducat doctor", None)) == [
        ["runs", "a b", "--json"],
        ["doctor"],
    ]
    for code in (
        "ducat networks | grep res",
        "ducat predict m *.png",
        "ducat runs\nls",
        "ducat runs > a",
        "ls",
    ):
        assert needs_shell(code), code


def test_a_line_that_is_not_printed_is_found() -> None:
    printed = "│ clean │ 99.2% │\n│ worst case │ 81.6% │ 77.3% to 85.3% │\nStored in runs/demo.\n"
    assert missing_line("clean    1%\n...\nStored in runs/demo.", printed) is None
    assert missing_line("clean 99.2%\nbest case 81.6%", printed) == "best case 81.6%"
    assert missing_line("Stored in runs/demo.\nclean 99.2%", printed) == "clean 99.2%"
    assert missing_line("linf 0.1, bfloat16 on cpu.", "linf 0.1, float32 on cpu.") is None
    assert (
        missing_line("labels equal.", "labels equal except on 1 too close to a decision to compare.") is None
    )
    assert missing_line("fold none, bfloat16.", "fold none, float32.") == "fold none, bfloat16."


def test_make_targets() -> None:
    """`make test` and `make demo` set up .venv/ and run the right thing; CI runs `make test`."""
    for target, command in (
        ("test", "-m pytest"),
        ("unit", "-m unit"),
        ("demo", "bin/ducat demo"),
        ("check", "lint-imports"),
        ("docs", "-m mkdocs build --strict"),
    ):
        plan = subprocess.run(
            ["make", "--always-make", "--dry-run", target],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "python3 -m venv .venv" in plan
        assert "pip install" in plan
        assert command in plan
    assert "make test" in (PROJECT / ".ci" / "run").read_text()

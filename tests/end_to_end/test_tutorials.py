"""The tutorial on one's own images runs as it is written; the one on digits has README's commands, which run there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.support.documents import blocks, run_block, running_server

TUTORIALS = PROJECT / "docs" / "tutorials"


@pytest.mark.slow
def test_own_images_from_a_folder_to_a_served_model(tmp_path: Path) -> None:
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as servers:
        for block in blocks(TUTORIALS / "own-images.md"):
            if block.is_server:
                servers.enter_context(running_server(block, "http://127.0.0.1:3001", tmp_path))
            else:
                printed[block.code] = run_block(block.shortened(), tmp_path)
    (answer,) = [json.loads(text) for code, text in printed.items() if code.startswith("curl")]
    assert {choice["label"] for choice in answer["predictions"][0]["top_k"]} == {
        "circle",
        "square",
        "triangle",
    }


def test_the_tutorial_on_digits_has_readmes_commands() -> None:
    code = [block.code for block in blocks(TUTORIALS / "digits.md")]
    readme = [block.code for block in blocks(PROJECT / "README.md")]
    assert len(code) >= 6
    assert code == [one for one in readme if one in code]

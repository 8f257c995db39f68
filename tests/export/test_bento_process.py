"""A Bento that is in the store already."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import bentoml
import pytest
from bentoml._internal import configuration

from export.bento_process import build


@pytest.mark.parametrize(("content", "script"), [("same", "ours"), ("other", "BentoML's")])
def test_the_same_one_gets_its_start_script_where_a_build_was_cut_short(
    content: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env" / "docker" / "entrypoint.sh"
    file.parent.mkdir(parents=True)
    file.write_text("BentoML's")
    info = SimpleNamespace(labels={"content": content})
    there = SimpleNamespace(info=info, path=tmp_path, tag="ducat:1")
    monkeypatch.setattr(configuration, "get_uv_command", None)
    monkeypatch.setattr(bentoml, "get", lambda _: there)
    order = {"name": "ducat", "version": "1", "start": "ours", "labels": {"content": "same"}}
    assert build(order)["is_same"] == (content == "same")
    assert file.read_text() == script

"""What `ducat demo` looks at first and what it leaves; tests/cli/test_cli.py runs it."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from ducat_serve.cli.main import run


def test_the_demo_looks_for_its_packages_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "bentoml" else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert run(["demo"]) == 1
    captured = capsys.readouterr()
    assert "'bentoml', which is not installed" in captured.err
    assert "ducat train" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_demo_keeps_its_model_in_a_folder_of_its_own(tmp_path: Path) -> None:
    from ducat_serve.cli.commands.demo import _free_folder

    assert _free_folder(tmp_path) == tmp_path / "demo"
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo-2").mkdir()
    assert _free_folder(tmp_path) == tmp_path / "demo-3"

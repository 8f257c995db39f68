"""A network of the user's own comes from the folder that was named, and from no other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ducat_serve.errors import UsageError
from ducat_serve.networks.own import import_callable


def write(folder: Path, module: str, answer: str) -> Path:
    folder.mkdir()
    (folder / f"{module}.py").write_text(f"def make():\n    return {answer!r}\n")
    return folder


def test_one_module_of_a_name_in_a_process(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, "of_two_folders", name) for name in ("one", "other"))
    try:
        assert import_callable("of_two_folders:make", one)() == "one"
        assert import_callable("of_two_folders:make", one)() == "one"
        with pytest.raises(UsageError, match=r"imported another module named of_two_folders, from .*/one/"):
            import_callable("of_two_folders:make", other)
    finally:
        del sys.modules["of_two_folders"]
    assert import_callable("of_two_folders:make", other)() == "other"
    del sys.modules["of_two_folders"]


def test_an_installed_package_may_have_been_imported_before(tmp_path: Path) -> None:
    assert import_callable("json:dumps", tmp_path)([1]) == "[1]"

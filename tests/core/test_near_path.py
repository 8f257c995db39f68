"""What may have been meant by a path that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from ducat_serve.cli.main import run
from ducat_serve.regular_file import near_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs/digits").mkdir(parents=True)
    (tmp_path / "runs/digits/model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("runs/digitz", " Did you mean runs/digits?"),
        ("runs/digitz/model.safetensors", " Did you mean runs/digits/model.safetensors?"),
        ("runs/digitz/model.onnx", ""),
        ("runs/photos", ""),
        ("runs/digits", ""),
        ("n" * 5000, ""),
        ("\0", ""),
    ],
)
def test_a_name_that_is_like_another_is_taken_for_it(path: str, said: str, here: Path) -> None:
    del here
    assert near_path(Path(path)) == said


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (["export", "runs/digitz"], "runs/digits"),
        (["inspect", "runs/digits/model.safetensor"], "runs/digits/model.safetensors"),
        (["inspect", "runs/digits/modem.onnx"], ""),
        (["train", "--dataset", "folder:runs/digit"], "runs/digits"),
    ],
)
def test_commands_say_so_once(
    command: list[str], meant: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(command) == 4
    said = capsys.readouterr().err
    assert "Warning" not in said
    assert said.count("Error") == 1
    assert ("Did you mean" in said) == bool(meant)
    assert meant in said

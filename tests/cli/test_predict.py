"""`ducat predict`: which images it takes, what it prints on stdout, and what one bad file does."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.cli.main import run
from ducat_serve.errors import UsageError
from ducat_serve.predictor import Predictions, Predictor
from tests.support.http_client import DIGITS, GOOD
from tests.support.image_folders import make_unreadable

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three images, one of them further below, with a text and a hidden file; the working folder's."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, index in (("a.png", 0), ("b.gif", 1), ("more/c.tif", 2)):
        Image.fromarray(DIGITS[index]).save(folder / name)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    monkeypatch.chdir(tmp_path)
    return folder


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


def test_a_folder_is_walked_and_what_is_passed_over_is_said(
    onnx_model: Path, photos: Path, capsys: Capture
) -> None:
    assert run(["predict", str(onnx_model), "photos"]) == 0
    captured = capsys.readouterr()
    assert [row[0] for row in rows(captured.out)] == ["photos/a.png", "photos/b.gif", "photos/more/c.tif"]
    assert "no image: 1 .txt." in captured.err


def test_a_pattern_is_expanded_and_a_file_of_that_name_comes_first(
    onnx_model: Path, photos: Path, capsys: Capture
) -> None:
    (photos / "[a].png").write_bytes(GOOD)
    assert run(["predict", str(onnx_model), "photos/*.[pg]?[gf]", "photos/[a].png"]) == 0
    names = [row[0] for row in rows(capsys.readouterr().out)]
    assert names == ["photos/[a].png", "photos/a.png", "photos/b.gif", "photos/[a].png"]


def test_a_closed_stdin_is_no_image(
    onnx_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run(["predict", str(onnx_model), "-"]) == 4
    assert "standard input is closed" in capsys.readouterr().err


def test_stdin_is_an_image(onnx_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(GOOD)))
    assert run(["predict", str(onnx_model), "-", "--json"]) == 0
    assert [p["image"] for p in json.loads(capsys.readouterr().out)["predictions"]] == ["-"]


def test_one_bad_file_does_not_stop_the_others(onnx_model: Path, photos: Path, capsys: Capture) -> None:
    (photos / "bad.png").write_text("no image")
    arguments = ["photos/a.png", "photos/bad.png", "nowhere.png", "none/*.png", "photos/more"]
    assert run(["predict", str(onnx_model), *arguments]) == 4
    captured = capsys.readouterr()
    assert [row[0] for row in rows(captured.out)] == ["photos/a.png", "photos/more/c.tif"]
    assert "3 of IMAGES could not be predicted" in captured.err
    assert "send" not in captured.err
    for name in ("photos/bad.png", "nowhere.png", "none/*.png"):
        assert name in captured.err
    assert run(["predict", str(onnx_model), *arguments, "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert [p["image"] for p in document["predictions"]] == ["photos/a.png", "photos/more/c.tif"]
    assert [f["image"] for f in document["failed"]] == ["photos/bad.png", "nowhere.png", "none/*.png"]


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_an_image_on_which_the_model_says_nan_is_no_class(
    form: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    answer = Predictor.__call__

    def nan_for_the_first(self: Predictor, images: NDArray[np.uint8]) -> Predictions:
        found = answer(self, images)
        found.logits[0] = np.nan
        return found

    monkeypatch.setattr(Predictor, "_require_answers", lambda *_: None)
    monkeypatch.setattr(Predictor, "__call__", nan_for_the_first)
    assert run(["predict", "digits-small", "photos", *form]) == 4
    captured = capsys.readouterr()
    assert "photos/a.png: the model answers with NaN" in captured.err
    if form == ["--json"]:
        document = json.loads(captured.out)
        assert [f["image"] for f in document["failed"]] == ["photos/a.png"]
        assert [p["image"] for p in document["predictions"]] == ["photos/b.gif", "photos/more/c.tif"]
    else:
        assert "photos/a.png" not in captured.out
        assert "photos/b.gif" in captured.out


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
def test_an_image_in_the_place_of_the_model_is_called_one(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(DIGITS[0]).save(f"a.{suffix}")
    assert run(["predict", f"./a.{suffix}", "b.png", "digits-small"]) == 2
    said = capsys.readouterr().err
    assert f"a.{suffix} is an image, and MODEL comes first." in said
    assert f"Next: ducat predict digits-small a.{suffix} b.png" in said


def test_an_empty_folder_is_a_failure(onnx_model: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["predict", str(onnx_model), str(tmp_path / "empty")]) == 4
    said = capsys.readouterr().err
    assert "empty holds no image" in said
    assert "There was no image to predict." in said
    assert "could not be predicted" not in said


def test_links_to_folders_are_followed_unless_they_lead_back(
    onnx_model: Path, photos: Path, capsys: Capture
) -> None:
    Path("links").mkdir()
    Path("links/photos").symlink_to(photos)
    (photos / "more" / "up").symlink_to(photos)
    assert run(["predict", str(onnx_model), "links"]) == 0
    found = [row[0] for row in rows(capsys.readouterr().out)]
    assert found == [f"links/photos/{name}" for name in ("a.png", "b.gif", "more/c.tif")]


def test_a_folder_that_cannot_be_read_is_a_failure(
    onnx_model: Path, photos: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_unreadable(photos / "more", monkeypatch)
    assert run(["predict", str(onnx_model), "photos", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert [p["image"] for p in document["predictions"]] == ["photos/a.png", "photos/b.gif"]
    assert document["failed"] == [
        {"image": "photos/more", "error": "Cannot read photos/more: Permission denied."}
    ]


def test_a_fifo_is_not_waited_for(onnx_model: Path, photos: Path, capsys: Capture) -> None:
    os.mkfifo(photos / "more" / "pipe.png")
    assert run(["predict", str(onnx_model), "photos", "--json"]) == 4
    document = json.loads(capsys.readouterr().out)
    assert len(document["predictions"]) == 3
    assert document["failed"] == [
        {"image": "photos/more/pipe.png", "error": "Cannot read photos/more/pipe.png: it is not a file."}
    ]


def test_lines_hold_the_whole_name_and_the_further_classes(
    onnx_model: Path, tmp_path: Path, capsys: Capture
) -> None:
    name = tmp_path / f"{'long-' * 40}.png"
    name.write_bytes(GOOD)
    assert run(["predict", str(onnx_model), str(name), "--top", "3"]) == 0
    [[image, label, confidence, mass, others]] = rows(capsys.readouterr().out)
    assert (image, label) == (str(name), "0")
    assert confidence.endswith("%")
    assert 0 <= float(mass) <= 1
    assert len(others.split(", ")) == 2
    assert run(["predict", str(onnx_model), str(name), "--top", "1"]) == 0
    assert len(rows(capsys.readouterr().out)[0]) == 4


def test_csv_is_read_back(onnx_model: Path, photos: Path, capsys: Capture) -> None:
    (photos / 'a, "b".png').write_bytes(GOOD)
    assert run(["predict", str(onnx_model), "photos", "--csv", "--top", "2"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert table[0]["image"] == 'photos/a, "b".png'
    assert list(table[0]) == [
        "image",
        "label",
        "class_id",
        "confidence",
        "dummy_mass",
        "label_2",
        "confidence_2",
    ]
    for row in table:
        assert 1 >= float(row["confidence"]) >= float(row["confidence_2"]) >= 0
        assert row["label"] != row["label_2"]


def test_csv_has_a_column_for_no_more_classes_than_there_are(
    onnx_model: Path, photos: Path, capsys: Capture
) -> None:
    assert run(["predict", str(onnx_model), "photos", "--csv", "--top", "99"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("label_10,confidence_10")


def test_csv_and_json_exclude_each_other(onnx_model: Path, photos: Path) -> None:
    assert run(["predict", str(onnx_model), "photos", "--csv", "--json"]) == 2


def test_a_terminal_gets_a_table(
    onnx_model: Path, photos: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    assert run(["predict", str(onnx_model), "photos"]) == 0
    text = capsys.readouterr().out
    assert "dummy mass" in text
    assert "photos/more/c.tif" in text


def test_a_folder_with_nothing_but_an_export_is_that_export(
    onnx_model: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(onnx_model, tmp_path / "model.onnx")
    photo = str(photos / "a.png")
    answers = []
    for model in (tmp_path, onnx_model):
        assert run(["predict", str(model), photo, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "CPU"])
def test_a_device_that_is_none_is_not_taken_for_the_cpu(onnx_model: Path, device: Any) -> None:
    with pytest.raises(UsageError, match=f"device '{device}' is none of auto, cpu, cuda"):
        Predictor(onnx_model, device)

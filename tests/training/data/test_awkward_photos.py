"""Photos as people have them: turned, in CMYK, oddly named, broken, huge, too few. Used, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ducat_serve.cli.main import run
from ducat_serve.errors import DataError
from training.data import load_dataset

Capture = pytest.CaptureFixture[str]
SIZE = 16
NAMES = ['it\'s a "cat"', "собака и кот", "猫 40% [x]"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUCAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def photo(number: int, **options: object) -> bytes:
    """The left half dark, the right half light; no two are alike."""
    pixels = np.full((SIZE, SIZE, 3), 20 + number, np.uint8)
    pixels[:, SIZE // 2 :] = 200 + number
    file = io.BytesIO()
    mode = str(options.pop("mode", "RGB"))
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def folder(path: Path, *classes: str, images: int = 12) -> Path:
    for label in classes:
        for number in range(images):
            (path / label).mkdir(parents=True, exist_ok=True)
            (path / label / f"photo {number} 'of' ñ.jpg").write_bytes(photo(number))
    return path


def test_names_with_spaces_quotes_and_other_scripts(tmp_path: Path) -> None:
    data = load_dataset(f"folder:{folder(tmp_path / 'my photos', *NAMES)}", image_size=8)
    assert set(data.class_names) == set(NAMES)
    assert sum(len(split) for split in (data.train, data.val, data.test)) == 36


def test_turned_and_cmyk_photos_are_seen_as_a_person_sees_them(tmp_path: Path) -> None:
    """Orientation 6 says that the camera lay on its side: upright, dark is above light."""
    exif = Image.Exif()
    exif[0x0112] = 6
    place = folder(tmp_path / "photos", "a", "b")
    for label, content in {"a": photo(0, exif=exif), "b": photo(0, mode="CMYK")}.items():
        for file in (place / label).iterdir():
            file.write_bytes(content)
    data = load_dataset(f"folder:{place}", image_size=8)
    turned, cmyk = (data.train.images[data.train.labels == label][0] for label in (0, 1))
    assert (turned[0] < 60).all()
    assert (turned[-1] > 160).all()
    assert (cmyk[:, 0] < 60).all()
    assert (cmyk[:, -1] > 160).all()


def test_a_truncated_and_a_huge_photo_are_named_and_nothing_is_left(
    tmp_path: Path, cache: Path, capsys: Capture
) -> None:
    place = folder(tmp_path / "photos", "a", "b")
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    for bad, content in {"cut.jpg": photo(1)[:200], "huge.png": file.getvalue()}.items():
        (place / "a" / bad).write_bytes(content)
        command = [
            "train",
            "--dataset",
            f"folder:{place}",
            "--image-size",
            "8",
            "--out",
            str(tmp_path / "run"),
        ]
        assert run([*command, "--network", "resnet-small", "--epochs", "1", "--device", "cpu"]) == 4
        said = " ".join(capsys.readouterr().err.split())
        assert f"a/{bad}" in said
        assert "--skip-broken" in said
        assert not (tmp_path / "run").exists()
        assert not list((cache / "decoded").iterdir())
        (place / "a" / bad).unlink()


@pytest.mark.parametrize("images", [1, 2])
def test_a_class_with_too_few_photos_is_named(tmp_path: Path, images: int) -> None:
    place = folder(folder(tmp_path / "photos", "many"), "few", images=images)
    with pytest.raises(DataError, match="Class 'few' has 1") as caught:
        load_dataset(f"folder:{place}", image_size=8)
    assert "remove the class" in str(caught.value.next_step)


def test_copies_in_two_splits_are_warned_of_and_counted(tmp_path: Path, capsys: Capture) -> None:
    place = tmp_path / "photos"
    for split in ("train", "val"):
        folder(place / split, "a", "b", images=1)
    generator = np.random.default_rng(0)
    for number in range(3):
        picture = Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).resize(
            (64, 64)
        )
        picture.save(place / "train" / "a" / f"{number}.png")
        picture.resize((48, 48)).save(place / "val" / "a" / f"copy {number}.jpg", quality=90)
    run(["datasets", "check", str(place)])
    said = " ".join(capsys.readouterr().err.split())
    assert "images look like one of another split" in said

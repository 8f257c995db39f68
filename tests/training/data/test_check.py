"""`check_images`: sizes, suffixes, imbalance, broken images, and images that stand in two splits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from ducat_serve.output import Output
from tests.conftest import PROJECT
from tests.support.documents import blocks
from training.data.check import DataCheck, check_images
from training.data.selection import Selection

RNG = np.random.default_rng(0)


def photo() -> Image.Image:
    """Large shapes, as photos have them; no two are alike."""
    return Image.fromarray(RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (48, 40), Image.Resampling.BICUBIC
    )


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def photos(*names: str) -> dict[str, bytes]:
    return {name: encode(photo()) for name in names}


def pets(train: int = 6, test: int = 3) -> dict[str, bytes]:
    return photos(
        *(
            f"{split}/{label}/{i}.png"
            for split, n in (("train", train), ("test", test))
            for label in "ab"
            for i in range(n)
        )
    )


def check(folder: Path) -> DataCheck:
    return check_images(folder, Selection(), Output())


def test_a_sound_data_set_has_nothing_to_mend(tmp_path: Path) -> None:
    found = check(write(tmp_path, pets()))
    assert found.warnings == []
    assert found.splits == {"train": 12, "test": 6}
    assert found.classes == {"a": {"train": 6, "test": 3}, "b": {"train": 6, "test": 3}}
    assert (found.sizes, found.suffixes, found.imbalance) == ({(40, 48): 18}, {".png": 18}, 1)


def test_sizes_suffixes_and_what_is_passed_over_are_counted(tmp_path: Path) -> None:
    more = {
        "train/a/x.jpg": encode(photo().resize((20, 30)), "JPEG"),
        "train/a/y.heic": b"",
        "cover.png": b"",
    }
    found = check(write(tmp_path, pets() | more))
    assert found.sizes == {(40, 48): 18, (30, 20): 1}
    assert found.suffixes == {".png": 18, ".jpg": 1}
    assert any("2 different sizes" in warning for warning in found.warnings)
    assert any("1 .heic" in w and "1 images that have no class" in w for w in found.warnings)


def test_broken_images_are_named_and_the_others_counted(tmp_path: Path) -> None:
    found = check(write(tmp_path, pets() | {"train/a/0.png": b"none", "test/b/1.png": encode(photo())[:60]}))
    assert list(found.broken) == ["test/b/1.png", "train/a/0.png"]
    assert "2 images do not decode, first test/b/1.png" in found.warnings[0]
    assert sum(found.sizes.values()) == 16
    (tmp_path / "test/b/1.png").unlink()
    assert "1 image does not decode, first train/a/0.png" in check(tmp_path).warnings[0]


def test_the_drawings_of_the_tutorial_are_not_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small shapes on flat backgrounds share hashes, and their average greys, whatever their form and colour."""
    code = blocks(PROJECT / "docs" / "tutorials" / "own-images.md")[0].code
    fewer = code.replace('("train", 300), ("test", 60)', '("train", 80), ("test", 40)')
    assert fewer != code
    monkeypatch.chdir(tmp_path)
    exec(fewer, {})
    assert check(tmp_path / "shapes").warnings == []


def test_what_differs_in_colour_alone_is_not_alike(tmp_path: Path) -> None:
    """Red 190 and green 97 are the same grey."""
    flat = {
        f"{split}/{label}/{i}.png": encode(Image.new("RGB", (8, 8), colour))
        for split, colour in (("train", (190, 0, 0)), ("test", (0, 97, 0)))
        for label in "ab"
        for i in range(2)
    }
    assert check(write(tmp_path, flat)).duplicates == ()


def test_imbalance(tmp_path: Path) -> None:
    many = photos(*(f"train/a/{i}.png" for i in range(20)))
    found = check(write(tmp_path, many | photos("train/b/0.png", "train/b/1.png", "test/a/0.png")))
    assert found.imbalance == 10
    assert "10 times" in found.warnings[-1]


def test_classes_that_leave_nothing_for_val_or_differ_in_capitals_are_named(tmp_path: Path) -> None:
    found = check(
        write(
            tmp_path,
            photos("Cat/0.png", "Cat/1.png", *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3))),
        )
    )
    assert found.too_small == ["Cat"]
    assert "class 'Cat' has 1 training image, and val needs one" in found.warnings[0]
    assert found.warnings[1] == "the classes 'Cat' and 'cat' differ in capitals alone"


@pytest.mark.parametrize("change", ["same", "jpeg", "smaller", "larger", "brighter"])
def test_an_image_in_two_splits_is_found_however_it_was_saved(change: str, tmp_path: Path) -> None:
    original = photo()
    changed = {
        "same": encode(original),
        "jpeg": encode(original, "JPEG", quality=60),
        "smaller": encode(original.resize((24, 20))),
        "larger": encode(original.resize((72, 60), Image.Resampling.BICUBIC)),
        "brighter": encode(ImageEnhance.Brightness(original).enhance(1.03)),
    }[change]
    found = check(write(tmp_path, pets() | {"train/a/1.png": encode(original), "test/b/9.png": changed}))
    assert [(pair.one, pair.other) for pair in found.duplicates] == [("train/a/1.png", "test/b/9.png")]
    assert "accuracies would be too high" in " ".join(found.warnings)


def test_an_image_that_is_in_each_split_many_times_is_named_once_for_each_later_one(tmp_path: Path) -> None:
    """A placeholder, say: to name all pairs would take gigabytes."""
    placeholder = encode(photo())
    files = {
        f"{split}/a/same{i}.png": placeholder for split, n in (("train", 20), ("test", 10)) for i in range(n)
    }
    found = check(write(tmp_path, pets() | files))
    assert sorted(pair.other for pair in found.duplicates) == [f"test/a/same{i}.png" for i in range(10)]
    assert "10 images look like one of another split, first test/a/same0.png and" in found.warnings[0]


def test_the_same_image_twice_in_one_split_is_no_leak(tmp_path: Path) -> None:
    twice = encode(photo())
    assert check(write(tmp_path, pets() | {"train/a/1.png": twice, "train/a/2.png": twice})).duplicates == ()


def test_flat_images_of_different_greys_are_not_alike(tmp_path: Path) -> None:
    """All of them have the same hash, of zeros."""
    flat = {
        f"{split}/{label}/{i}.png": encode(Image.new("L", (8, 8), grey + 10 * i))
        for split, label, grey in (
            ("train", "a", 0),
            ("train", "b", 60),
            ("test", "a", 120),
            ("test", "b", 180),
        )
        for i in range(3)
    }
    assert check(write(tmp_path, flat)).duplicates == ()

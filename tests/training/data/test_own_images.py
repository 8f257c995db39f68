"""Images of one's own: layouts without splits, labels.csv, what is held out, passed over or broken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ducat_serve.errors import DataError, UsageError
from ducat_serve.output import Output
from training.data import Dataset, load_dataset
from training.data.check import check_images
from training.data.layouts import Listing, list_files, unused
from training.data.selection import Selection
from training.data.trees import Tree

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUCAT_CACHE", str(tmp_path / "cache"))


def picture(grey: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (grey, grey, grey)).save(file, format)
    return file.getvalue()


def write(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))
    return folder


def pets(*, below: str = "", images: int = 20) -> list[str]:
    return [f"{below}{label}/{number:02}.png" for label in ("cat", "dog") for number in range(images)]


def names(listing: Listing) -> dict[str, list[str]]:
    return {split: [name for name, _ in files] for split, files in listing.splits.items()}


def greys(data: Dataset) -> list[int]:
    return sorted(int(i[0, 0, 0]) for part in (data.train, data.val, data.test) for i in part.images)


@pytest.mark.parametrize("below", ["", "train/", "top/", "top/train/"])
def test_a_fifth_of_every_class_is_test(below: str, tmp_path: Path) -> None:
    listing = list_files(Tree(write(tmp_path / "pets", *pets(below=below))))
    assert listing.labels == ("cat", "dog")
    assert listing.val is None
    assert listing.test_share == 0.2
    assert [sum(label == k for _, label in listing.test) for k in (0, 1)] == [4, 4]
    assert sorted(name for files in names(listing).values() for name in files) == sorted(pets(below=below))


def test_the_same_images_are_test_wherever_the_data_set_lies(tmp_path: Path) -> None:
    folder = list_files(Tree(write(tmp_path / "pets", *pets())))
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for name in pets():
            archive.writestr(f"top/{name}", picture(0))
    packed = list_files(Tree(tmp_path / "pets.zip"))
    assert [f"top/{name}" for name, _ in folder.test] == [name for name, _ in packed.test]


def test_test_images_stay_test_when_images_are_added(tmp_path: Path) -> None:
    before = {name for name, _ in list_files(Tree(write(tmp_path / "a", *pets(images=40)))).test}
    after = {name for name, _ in list_files(Tree(write(tmp_path / "b", *pets(images=44)))).test}
    assert len(before - after) <= 4


def test_the_fractions_are_the_users(tmp_path: Path) -> None:
    name = f"folder:{write(tmp_path / 'pets', *pets())}"
    data = load_dataset(name, selection=Selection(val_fraction=0.25, test_fraction=0.4))
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 6, 16]
    assert greys(data) == list(range(40))
    other = load_dataset(name, seed=1, selection=Selection(val_fraction=0.25, test_fraction=0.4))
    np.testing.assert_array_equal(data.test.images, other.test.images)
    assert not np.array_equal(data.val.images, other.val.images)


def test_fractions_where_the_data_set_has_its_own(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *pets(below="train/"), *pets(below="test/", images=2))
    with pytest.raises(UsageError, match="names its test images itself"):
        load_dataset(f"folder:{folder}", selection=Selection(test_fraction=0.2))
    write(folder, *pets(below="val/", images=2))
    with pytest.raises(UsageError, match="names its val images itself"):
        load_dataset(f"folder:{folder}", selection=Selection(val_fraction=0.2))
    with pytest.raises(UsageError, match="images of your own, not for digits"):
        load_dataset("digits", selection=Selection(skip_broken=True))


def test_a_class_of_one_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *pets(), "emu/1.png")
    with pytest.raises(DataError, match="'emu' has 1 image"):
        list_files(Tree(folder))


@pytest.mark.parametrize("splits", [("Train", "Test"), ("training", "validation"), ("train", "Test")])
def test_folders_that_look_like_splits_are_no_classes(splits: tuple[str, str], tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *(n for split in splits for n in pets(below=f"{split}/", images=4)))
    with pytest.raises(DataError, match="looks like a folder of a split") as failure:
        list_files(Tree(folder))
    assert f"rename {splits[1]} to {'val' if splits[1] == 'validation' else 'test'}" in str(failure.value)


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "sports", *(f"{label}/{i}.png" for label in ("match", "training") for i in range(4))
    )
    assert list_files(Tree(folder)).labels == ("match", "training")


def test_a_train_folder_of_images_alone_is_no_class(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", "train/1.png", "test/1.png", "other/1.png")
    with pytest.raises(DataError, match="has 0 classes to train on"):
        list_files(Tree(folder))


# labels.csv


def labelled(folder: Path, text: str) -> Tree:
    write(folder, *(f"images/{number}.png" for number in range(6)))
    (folder / "labels.csv").write_bytes(text.encode())
    return Tree(folder)


def test_labels_by_csv_with_splits(tmp_path: Path) -> None:
    text = "\ufefffile,label,split\r\n" + "".join(
        f'images/{i}.png,"{("a, b", "c")[i % 2]}",{("train", "val", "test")[i // 2]}\r\n' for i in range(6)
    )
    listing = list_files(labelled(tmp_path / "set", text))
    assert listing.labels == ("a, b", "c")
    assert listing.train == [("images/0.png", 0), ("images/1.png", 1)]
    assert listing.val == [("images/2.png", 0), ("images/3.png", 1)]
    assert listing.test == [("images/4.png", 0), ("images/5.png", 1)]


def test_labels_by_csv_without_splits_are_held_out(tmp_path: Path) -> None:
    rows = "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(6))
    listing = list_files(labelled(tmp_path / "set", f"file,label\n{rows}"))
    assert [len(files) for files in listing.splits.values()] == [4, 2]


def test_paths_in_a_csv_may_begin_with_a_dot_and_end_with_a_blank(tmp_path: Path) -> None:
    rows = "".join(f"./images/{i}.png ,{'ab'[i % 2]}\n" for i in range(6))
    listing = list_files(labelled(tmp_path / "set", f"file,label\n{rows}"))
    assert sorted(name for name, _ in listing.train + listing.test) == [f"images/{i}.png" for i in range(6)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,breed\n1,a\n", "has the columns id, breed"),
        ("file,label\nimages/9.png,a\n", r"line 2: there is no file images/9\.png"),
        ("file,label\n../labels.csv,a\n", r"there is no file \.\./labels\.csv"),
        ("file,label,label\nimages/1.png,a,b\n", "has the columns file, label, label"),
        ("file,label\nimages\\1.png,a\n", r"no file images\\1\.png.*\n.*write / instead"),
        ("file,label\nimages/1.png,a\n./images/1.png,b\n", "line 3: .* is named a second time"),
        ("file,label\nimages/1.png,a\nimages/1.png,b\n", "line 3: .* is named a second time"),
        ("file,label\nimages/1.png,\n", "has no label"),
        ("file,label\nimages/1.png\n", "has no label"),
        ("file,label,split\nimages/1.png,a,dev\n", "'dev' is no split"),
        ("file,label\n", "names no image"),
        ('file,label\n"images/1.png"x,a\n', "is not CSV"),
        ("file,label\nimages/1.png,a\nimages/2.png,a\n", "1 class to train on"),
    ],
)
def test_labels_that_make_no_sense_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        list_files(labelled(tmp_path / "set", text))


def test_class_folders_come_before_a_labels_csv_beside_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *pets(below="train/"))
    (folder / "labels.csv").write_text("id,breed\n1,a\n")
    assert list_files(Tree(folder)).labels == ("cat", "dog")


# What is passed over


def test_what_has_no_class_is_counted_and_said(tmp_path: Path, capsys: Capture) -> None:
    folder = write(tmp_path / "pets", *pets(below="train/"), *pets(below="test/", images=2), "cover.png")
    for name in ("readme.TXT", "train/cat/a.heic", "train/cat/b.heic", "train/cat/.DS_Store", "Makefile"):
        (folder / name).write_text("none")
    tree = Tree(folder)
    left = unused(tree, list_files(tree))
    assert left.suffixes == {".heic": 2, ".txt": 1, "without a suffix": 1}
    assert left.images == ("cover.png",)
    load_dataset(f"folder:{folder}")
    said = capsys.readouterr().err.replace("\n", " ")
    assert "no images (2 .heic, 1 .txt, 1 without a suffix)" in said
    assert "1 images that have no class, first cover.png" in said


def test_gif_and_tiff_are_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *pets(images=4))
    (folder / "cat" / "a.gif").write_bytes(picture(100, "GIF"))
    (folder / "dog" / "b.TIF").write_bytes(picture(200, "TIFF"))
    assert greys(load_dataset(f"folder:{folder}")) == [*range(8), 100, 200]


# Broken images


def broken_pets(folder: Path) -> str:
    write(folder, *pets(below="train/"), *pets(below="test/", images=2))
    (folder / "train" / "cat" / "00.png").write_bytes(picture(0)[:40])
    (folder / "train" / "cat" / "a.gif").write_bytes(picture(100, "GIF"))  # not broken
    (folder / "test" / "dog" / "01.png").write_text("none")
    return f"folder:{folder}"


def test_broken_images_are_refused_unless_they_may_be_left_out(tmp_path: Path, capsys: Capture) -> None:
    name = broken_pets(tmp_path / "pets")
    with pytest.raises(DataError, match="1 of 41 images in train/ do not decode") as failure:
        load_dataset(name)
    assert "--skip-broken" in str(failure.value.next_step)
    data = load_dataset(name, selection=Selection(skip_broken=True))
    assert [len(data.train) + len(data.val), len(data.test)] == [40, 3]
    said = capsys.readouterr().err.replace("\n", " ")
    assert "2 of 45 images do not decode and are left out, first test/dog/01.png" in said


def test_damaged_and_refused_members_of_an_archive_are_broken_images_too(
    tmp_path: Path, capsys: Capture
) -> None:
    folder, path = write(tmp_path / "pets", *pets(below="train/"), *pets(below="test/", images=2)), "pets.zip"
    with zipfile.ZipFile(tmp_path / path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("train/cat/bz.png", picture(1), zipfile.ZIP_BZIP2)
        archive.writestr("train/cat/changed.png", b"to be changed" * 9)
    data = (tmp_path / path).read_bytes()
    (tmp_path / path).write_bytes(data.replace(b"to be changed", b"to be Changed", 1))
    name = f"folder:{tmp_path / path}"
    with pytest.raises(DataError, match="train/cat/") as failure:
        load_dataset(name)
    assert failure.value.next_step
    assert len(load_dataset(name, selection=Selection(skip_broken=True)).test) == 4
    said = capsys.readouterr().err.replace("\n", " ")
    assert "2 of 46 images do not decode and are left out, first train/cat/bz.png" in said
    found = check_images(tmp_path / path, Selection(), Output(silent=True)).broken
    assert list(found) == ["train/cat/bz.png", "train/cat/changed.png"]
    assert "truncated or corrupt (Bad CRC-32" in found["train/cat/changed.png"]


def test_a_class_that_is_broken_as_a_whole_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "pets", *pets(below="train/", images=2), *pets(below="test/", images=2))
    for number in range(2):
        (folder / "train" / "dog" / f"{number:02}.png").write_text("none")
    with pytest.raises(DataError, match="no image of class 'dog' is left"):
        load_dataset(f"folder:{folder}", selection=Selection(skip_broken=True))

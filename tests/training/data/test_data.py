"""Data sets by name: Tiny-ImageNet, digits, folders, and how they are split."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.errors import DataError, UsageError
from training.data import Dataset, load_dataset
from training.data.cache import Split
from training.data.splits import hold_out

Pixels = NDArray[np.uint8]


def shade(value: int, kind: str = "PNG") -> bytes:
    """A 4x4 image of one grey, which JPEG keeps exactly."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, kind)
    return file.getvalue()


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def shades(split: Split) -> list[tuple[int, int]]:
    """(grey, label) of every image, sorted."""
    return sorted((int(g), int(k)) for g, k in zip(split.images[:, 0, 0, 0], split.labels, strict=True))


# Tiny-ImageNet

TINY = {
    "tiny-imagenet-200/wnids.txt": b"n03\nn01\nn02\n",
    "tiny-imagenet-200/words.txt": b"n00\tentity\nn01\tgoldfish, Carassius auratus\nn03\tking penguin\n",
    "tiny-imagenet-200/val/val_annotations.txt": b"val_0.JPEG\tn03\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n",
    "tiny-imagenet-200/val/images/val_0.JPEG": shade(203, "JPEG"),
    "tiny-imagenet-200/val/images/val_1.JPEG": shade(201, "JPEG"),
    "tiny-imagenet-200/test/images/test_0.JPEG": shade(99, "JPEG"),  # has no label anywhere
    **{
        f"tiny-imagenet-200/train/n0{k}/images/n0{k}_{i}.JPEG": shade(10 * k + i, "JPEG")
        for k in (1, 2, 3)
        for i in range(4)
    },
    **{f"tiny-imagenet-200/train/n0{k}/n0{k}_boxes.txt": b"boxes" for k in (1, 2, 3)},
}


def load_tiny(folder: Path, files: dict[str, bytes]) -> Dataset:
    write_zip(folder / "tiny-imagenet-3.zip", files)
    return load_dataset("tiny-imagenet", data_dir=folder, offline=True)


def test_tiny_imagenet_in_its_original_layout(tmp_path: Path) -> None:
    """Labels follow the sorted wnids; val is the test split; the unlabelled test/ is not used."""
    data = load_tiny(tmp_path, TINY)
    assert data.title == "Tiny-ImageNet-3"
    assert data.class_names == ("goldfish, Carassius auratus", "n02", "king penguin")
    assert data.test.images[:, 0, 0, 0].tolist() == [203, 201]
    assert data.test.labels.tolist() == [2, 0]
    expected = [(10 * k + i, k - 1) for k in (1, 2, 3) for i in range(4)]
    assert sorted(shades(data.train) + shades(data.val)) == expected
    assert sorted(data.val.labels.tolist()) == [0, 1, 2]


def test_classes_of_the_same_words_are_told_apart_by_their_wnid(tmp_path: Path) -> None:
    files = {**TINY, "tiny-imagenet-200/words.txt": b"n01\tcrane\nn02\tcrane\nn03\tking penguin\n"}
    assert load_tiny(tmp_path, files).class_names == ("crane (n01)", "crane (n02)", "king penguin")


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("tiny-imagenet-20.zip", "Tiny-ImageNet-20"),
        ("tiny-imagenet-200.zip", "Tiny-ImageNet"),
        ("tiny-imagenet.zip", "Tiny-ImageNet"),
        ("tiny-imagenet-jpeg.zip", "Tiny-ImageNet (JPEG)"),
    ],
)
def test_the_title_says_which_variant_it_is(file: str, title: str, tmp_path: Path) -> None:
    write_zip(tmp_path / file, TINY)
    assert load_dataset("tiny-imagenet", data_dir=tmp_path, offline=True).title == title


def test_the_official_archive_comes_first(tmp_path: Path) -> None:
    write_zip(tmp_path / "tiny-imagenet-20.zip", TINY)
    write_zip(tmp_path / "tiny-imagenet-200.zip", TINY)
    assert load_dataset("tiny-imagenet", data_dir=tmp_path, offline=True).title == "Tiny-ImageNet"


def test_tiny_imagenet_lacks_a_class(tmp_path: Path) -> None:
    files = {name: data for name, data in TINY.items() if "/train/n02/images" not in name}
    with pytest.raises(DataError, match=r"train/n02/images/ holds no image"):
        load_tiny(tmp_path, files)


def test_tiny_imagenet_lacks_words(tmp_path: Path) -> None:
    files = {name: data for name, data in TINY.items() if "words" not in name}
    with pytest.raises(DataError, match=r"words\.txt"):
        load_tiny(tmp_path, files)


@pytest.mark.parametrize("line", ["val_9.JPEG\tn01\t0", "val_0.JPEG\tn09\t0", "val_0.JPEG", ""])
def test_an_annotation_that_fits_nothing(line: str, tmp_path: Path) -> None:
    files = {**TINY, "tiny-imagenet-200/val/val_annotations.txt": f"{line}\n".encode()}
    with pytest.raises(DataError, match=r"val_annotations\.txt names .* not there"):
        load_tiny(tmp_path, files)


# Real images


@pytest.fixture(scope="module")
def tiny(shared_data: Path) -> Dataset:
    return load_dataset("tiny-imagenet", data_dir=shared_data, offline=True)


def test_real_tiny_imagenet_has_its_shape(tiny: Dataset) -> None:
    assert tiny.title == "Tiny-ImageNet-20"
    assert len(tiny.class_names) == len(set(tiny.class_names)) == 20
    assert tiny.class_names[:2] == ("goldfish, Carassius auratus", "centipede")
    assert tiny.train.images.shape == (9000, 64, 64, 3)
    assert tiny.val.images.shape == (1000, 64, 64, 3)
    assert tiny.test.images.shape == (1000, 64, 64, 3)
    assert np.bincount(tiny.train.labels).tolist() == [450] * 20
    assert np.bincount(tiny.val.labels).tolist() == np.bincount(tiny.test.labels).tolist() == [50] * 20


@pytest.mark.parametrize(("wnid", "number"), [("n01443537", 10), ("n02002724", 499), ("n04259630", 0)])
def test_a_real_training_image_has_its_label(
    wnid: str, number: int, tiny: Dataset, shared_data: Path
) -> None:
    """Decoded here by Pillow alone; it must be among the images of its class and of no other."""
    with zipfile.ZipFile(shared_data / "tiny-imagenet-20.zip") as archive:
        top = "tiny-imagenet-200"
        words = dict(x.split("\t") for x in archive.read(f"{top}/words.txt").decode().splitlines())
        with archive.open(f"{top}/train/{wnid}/images/{wnid}_{number}.JPEG") as file:
            expected = np.asarray(Image.open(file).convert("RGB"))
    found = [
        tiny.class_names[label]
        for split in (tiny.train, tiny.val)
        for label in split.labels[(split.images == expected).all(axis=(1, 2, 3))]
    ]
    assert found == [words[wnid]]


def test_a_real_test_image_has_its_label(tiny: Dataset, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "tiny-imagenet-20.zip") as archive:
        top = "tiny-imagenet-200"
        words = dict(x.split("\t") for x in archive.read(f"{top}/words.txt").decode().splitlines())
        lines = archive.read(f"{top}/val/val_annotations.txt").decode().splitlines()
        for index in (0, 500, 999):
            name, wnid = lines[index].split("\t")[:2]
            with archive.open(f"{top}/val/images/{name}") as file:
                expected = np.asarray(Image.open(file).convert("RGB"))
            np.testing.assert_array_equal(tiny.test.images[index], expected)
            assert tiny.class_names[tiny.test.labels[index]] == words[wnid]


def test_cifar10_as_image_files_says_so(tmp_path: Path) -> None:
    files = {f"train/{k}/{i}.png": shade(10 * i) for k in ("cat", "dog") for i in range(2)}
    write_zip(tmp_path / "cifar10-jpeg.zip", {**files, "test/cat/1.png": shade(0)})
    data = load_dataset("cifar10", data_dir=tmp_path, offline=True)
    assert data.title == "CIFAR-10 (JPEG)"
    assert data.class_names == ("cat", "dog")


# Splits


def numbered(per_class: list[int]) -> Split:
    """Images that say their own number and label, so that a mix-up shows. Classes are interleaved."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(per_class)), per_class))
    images = np.zeros((len(labels), 1, 1, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    images[:, 0, 0, 1] = labels
    return Split(images, labels)


def numbers(split: Split) -> list[int]:
    found: list[int] = split.images[:, 0, 0, 0].tolist()
    return found


def test_hold_out_parts_the_images() -> None:
    """Every image is in exactly one part, with its label, in the original order."""
    split = numbered([100, 50, 30])
    rest, held_out = hold_out(split, 18, seed=3)
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(180))
    for part in (rest, held_out):
        assert numbers(part) == sorted(numbers(part))
        assert part.labels.tolist() == part.images[:, 0, 0, 1].tolist()


def test_hold_out_takes_the_same_share_of_every_class() -> None:
    rest, held_out = hold_out(numbered([100, 50, 30]), 18, seed=3)
    assert np.bincount(held_out.labels).tolist() == [10, 5, 3]
    assert np.bincount(rest.labels).tolist() == [90, 45, 27]


def test_hold_out_is_chosen_by_the_seed() -> None:
    split = numbered([100, 50, 30])
    chosen = [numbers(hold_out(split, 18, seed)[1]) for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize("count", [0, 1, 12])
def test_hold_out_leaves_an_image_of_every_class_on_both_sides(count: int) -> None:
    rest, held_out = hold_out(numbered([2, 10]), count, seed=0)
    assert set(rest.labels.tolist()) == set(held_out.labels.tolist()) == {0, 1}


def test_hold_out_needs_two_images_of_a_class() -> None:
    with pytest.raises(DataError, match="Class 1 has 1 training image"):
        hold_out(numbered([5, 1]), 2, seed=0)


# load_dataset


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifar-10", "cifar10"), ("tinyimagenet", "tiny-imagenet"), ("digit", "digits")]
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"Unknown data set '{name}'. Did you mean '{nearest}'") as failure:
        load_dataset(name)
    assert failure.value.exit_code == 2
    assert "folder:PATH" in str(failure.value.next_step)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no folder {tmp_path}/none"):
        load_dataset(f"folder:{tmp_path}/none")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_offline_and_absent(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.txt").write_text("not it")
    with pytest.raises(DataError, match=f"is not in {tmp_path}, and --offline") as failure:
        load_dataset(name, data_dir=tmp_path, offline=True)
    assert failure.value.exit_code == 4
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.txt"]


def folder_set(folder: Path, *splits: str) -> str:
    """20 train images a class and 3 of every other split; greys differ between all of them."""
    for part, split in enumerate(("train", *splits)):
        for label, name in enumerate(("cat", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(3 if part else 20):
                path = folder / split / name / f"{i:02}.png"
                path.write_bytes(shade(100 * label + 25 * part + i))
    return f"folder:{folder}"


def test_a_folder_with_val_and_test_is_taken_as_it_is(tmp_path: Path) -> None:
    data = load_dataset(folder_set(tmp_path / "pets", "val", "test"))
    assert data.title == "folder:pets"
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == 40
    assert shades(data.val) == [(g, k) for k in (0, 1) for g in range(100 * k + 25, 100 * k + 28)]
    assert shades(data.test) == [(g, k) for k in (0, 1) for g in range(100 * k + 50, 100 * k + 53)]


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_folder_with_one_held_out_split_is_tested_on_it(split: str, tmp_path: Path) -> None:
    """And val is a tenth of train, chosen by the seed."""
    name = folder_set(tmp_path / "pets", split)
    data = load_dataset(name)
    assert shades(data.test) == [(g, k) for k in (0, 1) for g in range(100 * k + 25, 100 * k + 28)]
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    expected = [(100 * k + i, k) for k in (0, 1) for i in range(20)]
    assert sorted(shades(data.train) + shades(data.val)) == expected
    assert shades(load_dataset(name, seed=1).val) != shades(data.val)
    assert shades(load_dataset(name, seed=1).test) == shades(data.test)


def test_digits_use_every_image_once() -> None:
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    assert data.title == "digits"
    assert data.class_names == tuple("0123456789")
    parts = (data.train, data.val, data.test)
    assert all(part.images.shape[1:] == (8, 8, 3) and part.images.dtype == np.uint8 for part in parts)
    found = [
        (image.tobytes(), int(k)) for part in parts for image, k in zip(part.images, part.labels, strict=True)
    ]
    bunch = load_digits()
    grey = (bunch.images * 255 / 16).round().astype(np.uint8)
    known = [(np.stack([g] * 3, axis=-1).tobytes(), int(k)) for g, k in zip(grey, bunch.target, strict=True)]
    assert len(found) == 1797
    assert sorted(found) == sorted(known)


def test_digits_test_split_is_the_same_for_every_seed() -> None:
    one, same, other = (load_dataset("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, other.test.images)
    np.testing.assert_array_equal(one.test.labels, other.test.labels)
    np.testing.assert_array_equal(one.val.images, same.val.images)
    assert one.val.images.shape == other.val.images.shape
    assert not np.array_equal(one.val.images, other.val.images)
    assert len(one.test) == 359


def test_digits_are_not_resized() -> None:
    assert len(load_dataset("digits", image_size=8).test) == 359
    with pytest.raises(UsageError, match="8x8"):
        load_dataset("digits", image_size=32)

"""Corrupted images: as published, in archives and folders, and generated where there are none."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.errors import DataError
from training.data.cache import Split
from training.data.corruptions import BENCHMARK, Wanted, find_published, read_published
from training.data.generated_corruptions import GeneratedCorruptions

Arrays = dict[str, NDArray[Any]]
WANTED = Wanted(("cat", "dog", "bird"), (8, 8))


def published() -> Arrays:
    """Four images of three classes; pixel values tell family, severity and image."""
    arrays: Arrays = {"labels": np.tile(np.array([2, 0, 1, 1], dtype=np.uint8), 5)}
    for number, family in enumerate(BENCHMARK):
        levels = (10 * number + np.arange(20)).astype(np.uint8)
        arrays[family] = np.broadcast_to(levels[:, None, None, None], (20, 8, 8, 3)).copy()
    return arrays


def as_folder(folder: Path, arrays: Arrays, name: str = "CIFAR-10-C") -> Path:
    target = folder / name
    target.mkdir(parents=True)
    for file, array in arrays.items():
        np.save(target / f"{file}.npy", array, allow_pickle=True)
    return target


def as_tar(folder: Path, arrays: Arrays) -> Path:
    unpacked = as_folder(folder / "unpacked", arrays)
    with tarfile.open(folder / "CIFAR-10-C.tar", "w") as archive:
        archive.add(unpacked, "CIFAR-10-C")
    return folder / "CIFAR-10-C.tar"


@pytest.mark.parametrize("write", [as_folder, as_tar])
def test_arrays_by_family_and_severity(tmp_path: Path, write: Callable[[Path, Arrays], Path]) -> None:
    images = read_published(write(tmp_path, published()), WANTED)
    assert images.title == "CIFAR-10-C"
    assert images.generated_by is None
    assert images.families == BENCHMARK
    split = images.at("impulse_noise", 3)  # the third family, the third block of four
    assert split.labels.tolist() == [2, 0, 1, 1]
    assert split.images.shape == (4, 8, 8, 3)
    assert split.images[:, 0, 0, 0].tolist() == [28, 29, 30, 31]


def test_a_part_of_the_images_is_the_same_in_every_family(tmp_path: Path) -> None:
    path = as_folder(tmp_path, published())
    images = read_published(path, Wanted(WANTED.classes, WANTED.image_size, count=2, seed=1))
    first, other = images.at("fog", 1), images.at("snow", 5)
    np.testing.assert_array_equal(first.labels, other.labels)
    at = first.images[:, 0, 0, 0].astype(int) - 10 * BENCHMARK.index("fog")
    np.testing.assert_array_equal(published()["labels"][at], first.labels)


def without(arrays: Arrays) -> Arrays:
    del arrays["frost"]
    return arrays


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without, "lacks the family frost"),
        (lambda a: {**a, "labels": a["labels"] + 1}, "other classes"),
        (lambda a: {**a, "labels": np.zeros(20, np.uint8)}, "other classes"),
        (lambda a: {**a, "labels": a["labels"][:19]}, "5 times"),
        (lambda a: {**a, "labels": np.sort(a["labels"])}, "5 times"),
        (lambda a: {**a, "labels": a["labels"].astype(float)}, "whole numbers"),
        (lambda a: {**a, "gaussian_noise": a["fog"][:10]}, r"expected is uint8 \[20, 8, 8, 3\]"),
        (lambda a: {**a, "gaussian_noise": a["fog"].astype(np.float32)}, "expected is uint8"),
        (lambda a: {**a, "gaussian_noise": np.array([{}], dtype=object)}, "damaged"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, spoil: Callable[[Arrays], Arrays], message: str) -> None:
    path = as_folder(tmp_path, spoil(published()))
    with pytest.raises(DataError, match=message):
        read_published(path, WANTED).at("gaussian_noise", 1)


def test_a_header_that_promises_terabytes_is_refused(tmp_path: Path) -> None:
    path = as_folder(tmp_path, published())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 42,)}
    )
    (path / "labels.npy").write_bytes(header.getvalue())
    with pytest.raises(DataError, match="promises"):
        read_published(path, WANTED)


def test_links_and_paths_out_of_a_tar_are_not_followed(tmp_path: Path) -> None:
    path = as_tar(tmp_path, without(published()))
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("CIFAR-10-C/frost.npy")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="lacks the family frost"):
        read_published(path, WANTED)
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("../evil.npy"))
    with pytest.raises(DataError, match="points outside"):
        read_published(path, WANTED)


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    path = tmp_path / "CIFAR-10-C.tar"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a readable tar archive"):
        read_published(path, WANTED)


def class_folders(root: Path) -> Path:
    """Two classes of two images; their level tells family and severity."""
    for number, family in enumerate(BENCHMARK):
        for severity in range(1, 6):
            for label in ("n01", "n02"):
                folder = root / "Tiny-ImageNet-C" / family / str(severity) / label
                folder.mkdir(parents=True)
                for name in "ab":
                    Image.new("RGB", (8, 8), (10 * number + severity,) * 3).save(folder / f"{name}.png")
    return root / "Tiny-ImageNet-C"


def test_class_folders(tmp_path: Path) -> None:
    path = class_folders(tmp_path)
    images = read_published(path, Wanted(("n02", "n01"), (8, 8)))
    split = images.at("shot_noise", 4)
    assert split.labels.tolist() == [1, 1, 0, 0]
    assert (split.images == 14).all()
    # A part of the classes, a smaller size.
    one = read_published(path, Wanted(("n02",), (4, 4))).at("shot_noise", 4)
    assert one.labels.tolist() == [0, 0]
    assert one.images.shape == (2, 4, 4, 3)
    with pytest.raises(DataError, match="other classes"):
        read_published(path, Wanted(("n02", "n03"), (8, 8)))
    (path / "fog" / "2" / "n01" / "a.png").unlink()
    with pytest.raises(DataError, match="lacks the family fog"):
        read_published(path, Wanted(("n02", "n01"), (8, 8)))


def test_published_images_are_found_by_the_name_of_the_data_set(tmp_path: Path) -> None:
    assert find_published("cifar10", tmp_path) is None
    (tmp_path / "CIFAR-100-C").mkdir()
    assert find_published("cifar10", tmp_path) is None
    assert find_published("digits", tmp_path) is None
    assert find_published("cifar100", tmp_path) == tmp_path / "CIFAR-100-C"


@pytest.mark.parametrize("side", [8, 32])
def test_generated_images_are_the_same_every_time_and_worse_with_severity(side: int) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (6, side // 4, side // 4, 3), dtype=np.uint8)
    clean = Split(blocks.repeat(4, 1).repeat(4, 2), np.arange(6))
    images = GeneratedCorruptions(clean, 0, "test images")
    assert "torchvision" in images.generated_by
    for family in images.families:
        first, again = images.at(family, 1), images.at(family, 1)
        np.testing.assert_array_equal(first.images, again.images)
        assert first.images.dtype == np.uint8
        assert first.images.shape == clean.images.shape
        np.testing.assert_array_equal(first.labels, clean.labels)
        changed = np.abs(images.at(family, 5).images.astype(int) - clean.images).mean()
        assert changed > 1, family
    noise = images.at("gaussian_noise", 5).images
    assert not np.array_equal(noise, GeneratedCorruptions(clean, 1, "").at("gaussian_noise", 5).images)
    assert not np.array_equal(noise[0] - clean.images[0], noise[1] - clean.images[1])

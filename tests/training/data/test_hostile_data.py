"""Data sets made to harm: archives that unfold to gigabytes, and names that are no text."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ducat_serve.errors import DataError
from training.data import cifar, load_dataset
from training.data.cifar import CIFAR100, read_cifar
from training.data.layouts import list_files
from training.data.trees import MAX_FILE_BYTES, Tree

MIB = 1 << 20


def peak_of(call: Callable[[], object]) -> tuple[DataError, int]:
    """The error of a call, and the most bytes that it held at once."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            call()
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(path: Path, size: int, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive with one image of ``size`` zeros, a thousandth of that on the disk."""
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("train/a/1.png", "w") as member:
        for _ in range(size // MIB):
            member.write(bytes(MIB))
    assert path.stat().st_size < size // 500
    return path


def test_a_zip_bomb_takes_no_more_memory_than_the_bound(tmp_path: Path) -> None:
    tree = Tree(bomb(tmp_path / "set.zip", 6 * MAX_FILE_BYTES))
    error, peak = peak_of(lambda: tree.read("train/a/1.png"))
    assert "train/a/1.png is larger than 64 MiB" in error.cause
    assert error.exit_code == 4
    assert peak < 3 * MAX_FILE_BYTES


def test_a_zip_bomb_whose_header_lies(tmp_path: Path) -> None:
    """It says that it is 10 bytes, in both of its headers."""
    path = bomb(tmp_path / "set.zip", 6 * MAX_FILE_BYTES)
    data, size = path.read_bytes(), (6 * MAX_FILE_BYTES).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    error, peak = peak_of(lambda: Tree(path).read("train/a/1.png"))
    assert "CRC" in error.cause
    assert peak < 3 * MAX_FILE_BYTES


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packing_that_cannot_be_stopped_is_refused(method: int, tmp_path: Path) -> None:
    """A few bytes of bzip2 unfold to 45 MB in one step."""
    tree = Tree(bomb(tmp_path / "set.zip", 4 * MIB, method))
    with pytest.raises(DataError, match="packed by another method than deflate"):
        tree.read("train/a/1.png")


def test_a_huge_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    with (tmp_path / "train" / "a" / "1.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="larger than 64 MiB"):
        Tree(tmp_path).read("train/a/1.png")


@pytest.mark.parametrize("file", ["wnids.txt", "words.txt", "val/val_annotations.txt"])
def test_lists_of_labels_that_are_no_text(file: str, tmp_path: Path) -> None:
    files = {
        "wnids.txt": b"n1\nn2\n",
        "words.txt": b"n1\ta\n",
        "val/val_annotations.txt": b"",
        file: b"\xff\xfe",
    }
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for wnid in ("n1", "n2"):
            archive.writestr(f"train/{wnid}/images/1.png", b"x")
        for name, data in files.items():
            archive.writestr(name, data)
    with pytest.raises(DataError, match=f"{file} is not UTF-8 text"):
        list_files(Tree(tmp_path / "set.zip"))


def class_folders(root: bytes, *names: bytes) -> Path:
    for split in (b"train", b"test"):
        for name in names:
            folder = Path(os.fsdecode(b"/".join((root, split, name))))
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / f"{index}.png")
    return Path(os.fsdecode(root))


def test_a_class_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = class_folders(os.fsencode(tmp_path), b"cat", b"dog\xff")
    with pytest.raises(DataError, match=r"class folder whose name is not UTF-8: 'dog\\xff'") as caught:
        load_dataset(f"folder:{folder}")
    assert caught.value.exit_code == 4


def test_a_data_set_whose_name_is_no_text(tmp_path: Path) -> None:
    folder = class_folders(os.fsencode(tmp_path / "set") + b"\xff", b"cat", b"dog")
    with pytest.raises(DataError, match=r"folder whose name is not UTF-8: 'set\\xff'"):
        load_dataset(f"folder:{folder}")


def test_other_names_that_are_no_text_do_not_matter(tmp_path: Path) -> None:
    """Of an image, and of a folder above: neither gets into a model."""
    folder = class_folders(os.fsencode(tmp_path) + b"/above\xff/set", b"cat", b"dog")
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / os.fsdecode(b"\xff.png"))
    assert load_dataset(f"folder:{folder}").class_names == ("cat", "dog")


# CIFAR


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB a member and 64 MiB in all: the real bounds would take seconds to reach."""
    monkeypatch.setattr(cifar, "MAX_MEMBER_BYTES", 16 * MIB)
    monkeypatch.setattr(cifar, "MAX_ARCHIVE_BYTES", 64 * MIB)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", ["train.bin", "fine_label_names.txt"])
def test_a_member_that_unfolds_to_too_much(name: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "c.tar.gz", (tarfile.TarInfo(name), bytes(48 * MIB)))
    error, peak = peak_of(lambda: read_cifar(path, CIFAR100))
    assert "unfolds to more than any CIFAR archive does" in error.cause
    assert peak < 32 * MIB


@pytest.mark.usefixtures("small_bounds")
def test_members_that_nobody_asked_for_are_passed_over(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "c.tar.gz", (tarfile.TarInfo("other.bin"), bytes(48 * MIB)))
    error, peak = peak_of(lambda: read_cifar(path, CIFAR100))
    assert "holds no train.bin" in error.cause
    assert peak < 32 * MIB


@pytest.mark.usefixtures("small_bounds")
def test_many_members_that_unfold_to_too_much_together(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo("other.bin"), bytes(12 * MIB)) for _ in range(8)]
    error, _ = peak_of(lambda: read_cifar(tar_of(tmp_path / "c.tar.gz", *members), CIFAR100))
    assert "unfolds to more" in error.cause


@pytest.mark.usefixtures("small_bounds")
def test_a_header_that_unfolds_to_too_much(tmp_path: Path) -> None:
    """Extended headers are read whole before any member is known."""
    header = tarfile.TarInfo("pax")
    header.type = tarfile.XHDTYPE
    path = tar_of(tmp_path / "c.tar.gz", (header, bytes(48 * MIB)))
    error, peak = peak_of(lambda: read_cifar(path, CIFAR100))
    assert "unfolds to more" in error.cause
    assert peak < 32 * MIB


def test_the_holes_of_a_sparse_member_are_not_filled(tmp_path: Path) -> None:
    member = tarfile.TarInfo("train.bin")
    member.pax_headers = {
        "GNU.sparse.map": "0,1", "GNU.sparse.size": str(3 << 30), "GNU.sparse.numblocks": "1",
    }  # fmt: skip
    path = tar_of(tmp_path / "c.tar.gz", (member, b"x"))
    error, peak = peak_of(lambda: read_cifar(path, CIFAR100))
    assert "holds no train.bin" in error.cause
    assert peak < 32 * MIB


def test_class_names_that_are_no_text(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(name), b"\xff") for name in ("train.bin", "test.bin", "fine_label_names.txt")]
    with pytest.raises(DataError, match=r"fine_label_names\.txt is not UTF-8 text"):
        read_cifar(tar_of(tmp_path / "c.tar.gz", *members), CIFAR100)

"""CIFAR archives as they are published: what is read, and what is refused."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ducat_serve.errors import DataError, UsageError
from training.data import load_dataset
from training.data.cifar import CIFAR10, CIFAR100, read_cifar

Pixels = NDArray[np.uint8]


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR100_NAMES = [f"fine_{i}" for i in range(100)]


def pixels(count: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def records(images: Pixels, *labels: list[int]) -> bytes:
    """The label bytes, then 1,024 red, 1,024 green and 1,024 blue bytes, row by row."""
    return b"".join(
        bytes(column[i] for column in labels) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for i, image in enumerate(images)
    )


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def cifar10_files() -> dict[str, bytes]:
    """Five batches of 4 images, labels 0 0 1 1, 2 2 3 3, ..., and 2 test images."""
    top = "cifar-10-batches-bin"
    return {
        f"{top}/batches.meta.txt": "\n".join([*CIFAR10_NAMES, "", ""]).encode(),
        f"{top}/readme.html": b"<html>",
        **{
            f"{top}/data_batch_{b}.bin": records(pixels(4, b), [2 * b - 2] * 2 + [2 * b - 1] * 2)
            for b in range(1, 6)
        },
        f"{top}/test_batch.bin": records(pixels(2, 6), [9, 3]),
    }


def cifar100_files() -> dict[str, bytes]:
    top = "cifar-100-binary"
    return {
        f"{top}/coarse_label_names.txt": b"aquatic_mammals\nfish\n",
        f"{top}/fine_label_names.txt": "\n".join([*CIFAR100_NAMES, ""]).encode(),
        f"{top}/test.bin": records(pixels(2, 8), [1, 0], [42, 99]),
        f"{top}/train.bin": records(pixels(4, 7), [0, 1, 1, 0], [99, 0, 0, 99]),
    }


def test_cifar10_pixels_labels_and_names(tmp_path: Path) -> None:
    data = read_cifar(write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_files()), CIFAR10)
    assert data.class_names == tuple(CIFAR10_NAMES)
    np.testing.assert_array_equal(data.train.images, np.concatenate([pixels(4, b) for b in range(1, 6)]))
    assert data.train.labels.tolist() == [k for k in range(10) for _ in range(2)]
    np.testing.assert_array_equal(data.test.images, pixels(2, 6))
    assert data.test.labels.tolist() == [9, 3]
    assert data.val is None


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    data = read_cifar(write_tar(tmp_path / "cifar-100-binary.tar.gz", cifar100_files()), CIFAR100)
    assert data.class_names == tuple(CIFAR100_NAMES)
    np.testing.assert_array_equal(data.train.images, pixels(4, 7))
    assert data.train.labels.tolist() == [99, 0, 0, 99]
    np.testing.assert_array_equal(data.test.images, pixels(2, 8))
    assert data.test.labels.tolist() == [42, 99]


def test_cifar10_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "cifar-10-binary.tar.gz", cifar10_files())
    data = load_dataset("cifar10", data_dir=tmp_path, offline=True)
    assert data.title == "CIFAR-10"
    assert data.train.labels.tolist() == data.val.labels.tolist() == list(range(10))
    with pytest.raises(UsageError, match="32x32"):
        load_dataset("cifar10", data_dir=tmp_path, offline=True, image_size=64)


def test_a_cifar_archive_packed_with_dot_is_read(tmp_path: Path) -> None:
    """`tar czf x.tar.gz .` starts with a member "."."""
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in cifar100_files().items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    assert read_cifar(path, CIFAR100).test.labels.tolist() == [42, 99]


@pytest.mark.parametrize("missing_bytes", [1, 8, 100, 20_000])
def test_a_truncated_cifar_archive(missing_bytes: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar.tar.gz", cifar10_files())
    path.write_bytes(path.read_bytes()[:-missing_bytes])
    with pytest.raises(DataError, match="truncated or corrupt") as failure:
        read_cifar(path, CIFAR10)
    assert failure.value.exit_code == 4


def test_a_cifar_archive_that_the_system_refuses_is_not_called_truncated(tmp_path: Path) -> None:
    """A link to itself cannot be opened by anybody, not even by root."""
    path = tmp_path / "cifar.tar.gz"
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"Cannot read .*cifar\.tar\.gz: Too many levels") as failure:
        read_cifar(path, CIFAR10)
    assert "may be read" in str(failure.value.next_step)


def test_a_flipped_pixel_in_a_cifar_archive(tmp_path: Path) -> None:
    """The tar format has no checksum of contents; the one of gzip comes after the end of the tar."""
    path = write_tar(tmp_path / "cifar.tar.gz", cifar100_files())
    archive = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    archive[archive.index(pixels(4, 7)[0, :, :, 0].tobytes()[:20])] ^= 1
    path.write_bytes(archive)
    with pytest.raises(DataError, match="CRC"):
        read_cifar(path, CIFAR100)


def test_a_broken_compressed_stream(tmp_path: Path) -> None:
    """zlib itself stops inside a file's contents, at a block of a type that does not exist."""
    # Longer than Python's read buffers, so that the headers before the damage are read in peace.
    long = {"cifar-100-binary/train.bin": records(pixels(100, 7), [0] * 100, [1] * 100)}
    path = write_tar(tmp_path / "cifar.tar.gz", {**cifar100_files(), **long})
    unpacked = gzip.decompress(path.read_bytes())
    stream = zlib.compressobj(wbits=31)
    half = stream.compress(unpacked[: len(unpacked) // 2]) + stream.flush(zlib.Z_SYNC_FLUSH)
    path.write_bytes(half + b"\x07" * 100)
    with pytest.raises(DataError, match=r"truncated or corrupt .*invalid block type"):
        read_cifar(path, CIFAR100)


@pytest.mark.parametrize("file", ["data_batch_3.bin", "test_batch.bin"])
@pytest.mark.parametrize("change", ["a byte less", "a byte more", "nothing at all"])
def test_records_of_a_wrong_length(file: str, change: str, tmp_path: Path) -> None:
    files = cifar10_files()
    name = f"cifar-10-batches-bin/{file}"
    files[name] = {"a byte less": files[name][:-1], "a byte more": files[name] + b"x"}.get(change, b"")
    with pytest.raises(DataError, match=f"{file} is not a whole number of 3073-byte records"):
        read_cifar(write_tar(tmp_path / "cifar.tar.gz", files), CIFAR10)


def test_a_label_out_of_range(tmp_path: Path) -> None:
    files = {**cifar10_files(), "cifar-10-batches-bin/test_batch.bin": records(pixels(2, 6), [9, 10])}
    with pytest.raises(DataError, match=r"test_batch\.bin holds label 10 of 10 classes"):
        read_cifar(write_tar(tmp_path / "cifar.tar.gz", files), CIFAR10)


def test_another_archive_is_not_cifar(tmp_path: Path) -> None:
    """For example the Python version, which is a pickle."""
    path = write_tar(tmp_path / "cifar.tar.gz", {"cifar-10-batches-py/data_batch_1": b"pickle"})
    with pytest.raises(DataError, match=r"holds no data_batch_1\.bin; it is not the binary version"):
        read_cifar(path, CIFAR10)


@pytest.mark.parametrize("name", ["../data_batch_1.bin", "/test_batch.bin"])
def test_a_path_out_of_the_cifar_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "cifar.tar.gz", {**cifar10_files(), name: b"evil"})
    with pytest.raises(DataError, match="points outside"):
        read_cifar(path, CIFAR10)

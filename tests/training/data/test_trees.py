"""Image trees: zip archives and folders, their layouts, decoding and the cache."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from ducat_serve.errors import DataError, DucatError
from ducat_serve.output import Output
from tests.support.image_folders import make_unreadable
from training.data import decoding
from training.data.cache import Decoded
from training.data.decoding import decode_tree
from training.data.layouts import Listing, list_files
from training.data.trees import Tree

Files = dict[str, bytes]


def png(colour: str | tuple[int, ...] = "red", size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, size, colour))


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def tree_of(*names: str) -> Files:
    return {name: png() for name in names}


def write_folder(folder: Path, files: Files) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:  # stored, so tests find the bytes of a member
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def listing(tmp_path: Path, *names: str) -> Listing:
    return list_files(Tree(write_folder(tmp_path / "set", tree_of(*names))))


def decoded(path: Path, image_size: int | None = None) -> Decoded:
    return decode_tree(Tree(path), image_size, Output())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own; decoded sets are the folders in it."""
    monkeypatch.setenv("DUCAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


TWO_CLASSES = ("train/a/1.png", "train/a/2.png", "train/b/1.png", "test/a/3.png", "test/b/3.png")


# Trees


def test_zip_and_folder_give_the_same_listing(tmp_path: Path) -> None:
    files = tree_of(*(f"top/{name}" for name in TWO_CLASSES), "top/train/b/notes.txt")
    folder = Tree(write_folder(tmp_path / "set", files))
    archive = Tree(write_zip(tmp_path / "set.zip", files))
    assert folder.names() == archive.names() == sorted(files)
    assert list_files(folder) == list_files(archive)
    assert list_files(folder).train == [
        ("top/train/a/1.png", 0),
        ("top/train/a/2.png", 0),
        ("top/train/b/1.png", 1),
    ]
    assert folder.read("top/train/a/1.png") == archive.read("top/train/a/1.png") == png()


def test_links_in_a_folder_lead_to_files_or_are_no_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {**tree_of(*TWO_CLASSES), "spare/1.png": png("blue")})
    (folder / "train" / "a" / "link.png").symlink_to(folder / "spare" / "1.png")
    (folder / "train" / "a" / "broken.png").symlink_to(folder / "nowhere.png")
    tree = Tree(folder)
    assert [name for name, _ in list_files(tree).train] == [
        "train/a/1.png",
        "train/a/2.png",
        "train/a/link.png",
        "train/b/1.png",
    ]
    assert tree.read("train/a/link.png") == png("blue")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """Subsets are put together so; one folder may be linked twice."""
    full = write_folder(tmp_path / "full", tree_of(*TWO_CLASSES))
    folder = tmp_path / "subset"
    folder.mkdir()
    (folder / "cat").symlink_to(full / "train" / "a")
    (folder / "dog").symlink_to(full / "train" / "a")
    assert Tree(folder).names() == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert list_files(Tree(folder)).labels == ("cat", "dog")
    splits = tmp_path / "splits"
    splits.mkdir()
    for split in ("train", "test"):
        (splits / split).symlink_to(full / split)
    assert list_files(Tree(splits)) == list_files(Tree(full))


def test_a_link_to_a_folder_above_it_is_not_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES))
    (folder / "train" / "a" / "up").symlink_to(folder)
    (folder / "train" / "a" / "here").symlink_to(".")
    assert Tree(folder).names() == sorted(TWO_CLASSES)


def test_a_folder_below_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES, "train/a/more/3.png"))
    make_unreadable(folder / "train" / "a" / "more", monkeypatch)
    with pytest.raises(DataError, match=r"Cannot read .*set/train/a/more: Permission denied"):
        Tree(folder)


def test_the_path_of_an_archive_is_no_url(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "memory::set.zip", tree_of(*TWO_CLASSES))
    assert Tree(path).names() == sorted(TWO_CLASSES)


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    tree = Tree(write_folder(tmp_path / "set", tree_of(*TWO_CLASSES)))
    (tmp_path / "set" / "train" / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*set/train/a/1\.png: No such file"):
        tree.read("train/a/1.png")


@pytest.mark.parametrize("name", ["../evil", "train/../../evil", "/evil", "C:\\evil", "..\\evil"])
def test_a_path_out_of_the_archive_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "set.zip", tree_of(*TWO_CLASSES, name))
    with pytest.raises(DataError, match="points outside") as failure:
        decoded(path)
    assert failure.value.exit_code == 4
    assert name in str(failure.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["set.zip"]
    assert not any((folder / "evil").exists() for folder in (tmp_path.parent, Path("/"), Path.cwd()))
    assert not cache.exists()


def test_a_truncated_zip_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", tree_of(*TWO_CLASSES))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="truncated or corrupt"):
        Tree(path)


def test_a_zip_that_the_system_refuses_is_not_called_truncated(tmp_path: Path) -> None:
    """A link to itself cannot be opened by anybody, not even by root."""
    path = tmp_path / "set.zip"
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"Cannot read .*set\.zip: Too many levels") as failure:
        Tree(path)
    assert "may be read" in str(failure.value.next_step)


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(png())
    with pytest.raises(DataError, match=r"set\.zip is not a readable zip"):
        Tree(path)


@pytest.mark.parametrize("name", ["photo.png", "set.tar.gz"])
def test_a_file_that_is_no_archive_is_not_called_corrupt(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(png())
    with pytest.raises(DataError, match=rf"{name} is neither a folder nor a zip or tar archive") as failure:
        Tree(path)
    assert failure.value.next_step == "give a folder, a .zip or an uncompressed .tar"


def test_an_archive_of_ones_own_is_not_to_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_bytes(png())
    for is_download in (False, True):
        with pytest.raises(DataError, match="truncated or corrupt") as failure:
            Tree(path, is_download=is_download)
        assert ("delete" in str(failure.value.next_step)) == is_download


def test_a_tar_may_end_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "SET.TAR"
    with tarfile.open(path, "w") as archive:
        archive.add(write_folder(tmp_path / "set", tree_of(*TWO_CLASSES)), "set")
    assert list_files(Tree(path)).labels == ("a", "b")


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_a_flipped_byte_anywhere_never_gives_other_bytes(flip: int, tmp_path: Path) -> None:
    """Whatever is hit, each member is read as it was, is gone, or a DataError is raised."""
    files = {"train/ä/1.png": b"pixels of one", "train/b/1.png": b"pixels of two"}
    path = write_zip(tmp_path / "set.zip", files)
    intact = path.read_bytes()
    refused = 0
    for position in range(len(intact)):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ flip]) + intact[position + 1 :])
        try:
            tree = Tree(path)
            contents = {tree.read(name) for name in tree.names()}
        except DataError:
            refused += 1
        else:
            assert contents <= set(files.values())
    assert refused > sum(map(len, files.values()))


def test_a_flipped_pixel_byte_in_a_zip_stops_decoding(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "set.zip", tree_of(*TWO_CLASSES))
    archive = bytearray(path.read_bytes())
    archive[archive.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(archive)
    with pytest.raises(DataError, match=r"train/a/1\.png is truncated or corrupt \(Bad CRC-32"):
        decoded(path)
    assert list(cache.iterdir()) == []


# Layouts


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class_folder_is_named(split: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES, "train/c/1.png"))
    (folder / "train" / "c" / "1.png").rename(folder / "spare.png")
    if split == "test":
        (folder / "spare.png").rename(folder / "train" / "c" / "1.png")
        (folder / "test" / "c").mkdir()
    with pytest.raises(DataError, match=f"class folder {split}/c holds no image"):
        list_files(Tree(folder))


def test_an_empty_class_folder_without_splits_is_named_by_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class folder top/c holds no image"):
        listing(tmp_path, "top/a/1.png", "top/b/1.png", "top/c/notes.txt")


@pytest.mark.parametrize("entry", ["train/c/", "train/c/.DS_Store"])
def test_an_empty_class_folder_in_a_zip_is_named(entry: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", {**tree_of(*TWO_CLASSES), entry: b""})
    with pytest.raises(DataError, match="class folder train/c holds no image"):
        list_files(Tree(path))


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class folder train/c holds no image"):
        listing(tmp_path, *TWO_CLASSES, "train/c/readme.txt")


def test_one_class_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has 1 class to train on;.* at least 2"):
        listing(tmp_path, "train/a/1.png", "test/a/1.png")


def test_no_train_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train/ folder"):
        listing(tmp_path, "val/a/1.png", "test/b/1.png")


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_lacks_is_named(split: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{split}/ has class 'zebra'"):
        listing(tmp_path, *TWO_CLASSES, f"{split}/zebra/1.png")


def test_val_beside_test_is_val(tmp_path: Path) -> None:
    found = listing(tmp_path, *TWO_CLASSES, "val/b/9.png")
    assert found.val == [("val/b/9.png", 1)]
    assert found.test == [("test/a/3.png", 0), ("test/b/3.png", 1)]


def test_val_alone_is_the_test_split(tmp_path: Path) -> None:
    found = listing(tmp_path, "train/a/1.png", "train/b/1.png", "val/b/9.png")
    assert found.val is None
    assert found.test == [("val/b/9.png", 1)]


def test_finder_leftovers_are_not_data(tmp_path: Path) -> None:
    """macOS puts `__MACOSX/` and `._name` files into its zips; `__MACOSX` sorts before `train`."""
    leftovers = tree_of("__MACOSX/train/a/._1.png", "train/a/._1.png", "train/.DS_Store")
    archive = write_zip(tmp_path / "set.zip", {**tree_of(*TWO_CLASSES), **leftovers})
    assert list_files(Tree(archive)) == listing(tmp_path, *TWO_CLASSES)


# Decoding


@pytest.mark.parametrize("broken", [("train/a/1.png", "train/b/1.png"), ("train/a/2.png", "train/b/1.png")])
@pytest.mark.parametrize("image_size", [None, 4])
def test_images_that_do_not_decode_are_named_and_counted(
    broken: tuple[str, str], image_size: int | None, tmp_path: Path, cache: Path
) -> None:
    files = {**tree_of(*TWO_CLASSES), broken[0]: png()[:-20], broken[1]: b"no image"}
    with pytest.raises(DataError, match=f"2 of 3 images in train/ do not decode, first {broken[0]}"):
        decoded(write_folder(tmp_path / "set", files), image_size)
    assert list(cache.iterdir()) == []


def test_no_image_decodes(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="none of the 3 images in train/ decodes"):
        decoded(write_folder(tmp_path / "set", dict.fromkeys(TWO_CLASSES, b"no image")))
    assert list(cache.iterdir()) == []


def test_different_sizes_need_image_size(tmp_path: Path, cache: Path) -> None:
    files = {**tree_of(*TWO_CLASSES), "train/b/1.png": png(size=(6, 5))}
    folder = write_folder(tmp_path / "set", files)
    with pytest.raises(DataError, match=r"1 of 3 images .* are not 4x4; train/b/1\.png is 5x6") as failure:
        decoded(folder)
    assert "--image-size" in str(failure.value.next_step)
    assert list(cache.iterdir()) == []
    assert decoded(folder, 3).train.images.shape == (3, 3, 3, 3)


@pytest.mark.usefixtures("cache")
def test_image_size_resizes_and_crops_the_centre(tmp_path: Path) -> None:
    """A 12x4 image of three squares becomes the middle one at half its size."""
    image = Image.new("RGB", (12, 4), "red")
    image.paste("blue", (4, 0, 8, 4))
    files = {**tree_of(*TWO_CLASSES), "train/b/1.png": encoded(image)}
    train = decoded(write_folder(tmp_path / "set", files), 2).train
    assert train.images.shape == (3, 2, 2, 3)
    assert (train.images[0] == (255, 0, 0)).all()
    assert train.images[2, :, :, 2].min() > train.images[2, :, :, 0].max()


@pytest.mark.usefixtures("cache")
def test_every_kind_of_png_becomes_rgb(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    half = Image.new("RGBA", (4, 4), (10, 20, 30, 255))
    half.paste((10, 20, 30, 0), (0, 0, 4, 2))
    files = {
        "train/a/1-grey.png": png((77,), mode="L"),
        "train/a/2-palette.png": encoded(palette),
        "train/a/3-palette-transparent.png": encoded(palette, transparency=1),
        "train/b/4-alpha.png": encoded(half),
        "train/b/5-grey-alpha.png": png((77, 0), mode="LA"),
        "train/b/6-bits.png": png((1,), mode="1"),
        "test/b/1.png": png(),
    }
    train = decoded(write_folder(tmp_path / "set", files)).train
    assert train.images.shape == (6, 4, 4, 3)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    top, bottom = train.images[:, 0, 0].tolist(), train.images[:, 3, 3].tolist()
    white, ink = [255, 255, 255], [10, 20, 30]
    assert top == [[77, 77, 77], ink, white, white, white, white]
    assert bottom == [[77, 77, 77], ink, white, ink, white, white]


# The cache


def _refuse(*_: object) -> NoReturn:
    raise AssertionError("decoded a second time")


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_second_load_maps_the_cache(
    kind: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**tree_of(*TWO_CLASSES), "train/b/1.png": png("blue")}
    path = write_zip(tmp_path / "s.zip", files) if kind == "zip" else write_folder(tmp_path / "s", files)
    first = decoded(path)
    monkeypatch.setattr(decoding, "decode", _refuse)
    second = decoded(path)
    assert isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    assert second.class_names == first.class_names == ("a", "b")
    assert second.digest == first.digest
    for one, other in ((first.train, second.train), (first.test, second.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert second.train.images[2, 0, 0].tolist() == [0, 0, 255]
    assert second.val is None
    assert len(list(cache.iterdir())) == 1


@pytest.mark.usefixtures("cache")
def test_val_of_its_own_is_cached_too(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", {**tree_of(*TWO_CLASSES), "val/b/1.png": png("blue")})
    for _ in range(2):
        val = decoded(folder).val
        assert val is not None
        assert val.images[:, 0, 0].tolist() == [[0, 0, 255]]
        assert val.labels.tolist() == [1]


def test_a_changed_zip_is_decoded_anew(tmp_path: Path, cache: Path) -> None:
    path = write_zip(tmp_path / "set.zip", tree_of(*TWO_CLASSES))
    first = decoded(path)
    write_zip(path, {**tree_of(*TWO_CLASSES), "train/a/1.png": png("blue")})
    second = decoded(path)
    assert second.digest != first.digest
    assert second.train.images[0, 0, 0].tolist() == [0, 0, 255]
    assert first.train.images[0, 0, 0].tolist() == [255, 0, 0]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("cache")
def test_a_changed_folder_is_decoded_anew(tmp_path: Path) -> None:
    """The same size and name; only the modification time tells."""
    red, blue = (encoded(Image.new("RGB", (4, 4), c), compress_level=0) for c in ("red", "blue"))
    folder = write_folder(tmp_path / "set", {**tree_of(*TWO_CLASSES), "train/a/1.png": red})
    first = decoded(folder)
    changed = folder / "train" / "a" / "1.png"
    before = changed.stat()
    changed.write_bytes(blue)
    assert changed.stat().st_size == before.st_size
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = decoded(folder)
    assert second.digest != first.digest
    assert second.train.images[0, 0, 0].tolist() == [0, 0, 255]


def test_another_image_size_is_decoded_anew(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES))
    assert [decoded(folder, size).train.images.shape[1] for size in (None, 2, 3)] == [4, 2, 3]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("name", ["index.json", "train.npy", "test_labels.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_cache_names_the_folder_to_delete(
    name: str, damage: str, tmp_path: Path, cache: Path
) -> None:
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES))
    decoded(folder)
    (entry,) = cache.iterdir()
    if damage == "missing":
        (entry / name).unlink()
    else:
        (entry / name).write_bytes((entry / name).read_bytes()[:-5])
    with pytest.raises(DataError, match="incomplete or corrupt") as failure:
        decoded(folder)
    assert str(entry) in str(failure.value.next_step)


def test_an_unwritable_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    monkeypatch.setenv("DUCAT_CACHE", str(tmp_path / "file" / "cache"))
    folder = write_folder(tmp_path / "set", tree_of(*TWO_CLASSES))
    with pytest.raises(DucatError, match="Cannot write") as failure:
        decoded(folder)
    assert failure.value.exit_code == 1
    assert str(tmp_path / "file" / "cache") in str(failure.value)
    assert (tmp_path / "file").read_bytes() == b"kept"

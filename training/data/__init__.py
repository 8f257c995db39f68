"""Data sets by name: found in the data folder or downloaded, decoded once, split into train, val and test."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ducat_serve.errors import DataError, UsageError, unknown_name
from ducat_serve.output import Output
from ducat_serve.regular_file import near_path
from training.data.cache import Decoded, Split, cache_root
from training.data.cifar import CIFAR10, CIFAR100, CifarFormat, read_cifar
from training.data.decoding import decode_tree
from training.data.digits import read_digits
from training.data.download import Archive, download
from training.data.layouts import count_classes, list_files, require_text
from training.data.selection import Selection
from training.data.splits import hold_out, val_count
from training.data.trees import Tree


@dataclass(frozen=True)
class DatasetInfo:
    """One line of `ducat datasets`. ``archive`` is None for the embedded data set."""

    name: str
    title: str
    classes: int
    image_size: int
    archive: Archive | None = None
    cifar: CifarFormat | None = None


@dataclass(frozen=True)
class Dataset:
    """Three splits of uint8 images [N, H, W, 3]. ``title`` is the true name, to be printed with any number.

    Models are chosen on ``val``; ``test`` is for `ducat evaluate` alone.
    """

    title: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str


DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("digits", "digits", 10, 8),
        DatasetInfo(
            "cifar10",
            "CIFAR-10",
            10,
            32,
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170_052_171,
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
            CIFAR10,
        ),
        DatasetInfo(
            "cifar100",
            "CIFAR-100",
            100,
            32,
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168_513_733,
                "03b5dce01913d631647c71ecec9e9cb8",
            ),
            CIFAR100,
        ),
        DatasetInfo(
            "tiny-imagenet",
            "Tiny-ImageNet",
            200,
            64,
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                248_100_043,
                "90528d7ca1a48142e341f4ef8d21d0de",
            ),
        ),
    )
}


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    selection: Selection = Selection(),  # noqa: B008 (frozen)
    output: Output | None = None,
) -> Dataset:
    """Load a data set by name, or `folder:PATH`.

    Args:
        name: a key of `DATASETS`, or `folder:PATH`: a folder or zip archive of class folders, below train/, val/ and
            test/ or on their own, or with a labels.csv.
        data_dir: where archives are looked for, and downloaded to; None is the user's cache folder.
        offline: never download.
        image_size: resize every image to this height and width.
        seed: chooses which training images are held out as val.
        selection: how much is held out, and what becomes of broken images.

    Raises:
        UsageError: unknown name, or a fraction where the data set names these images itself. DataError: missing,
            truncated or corrupt data.
    """
    output = output or Output()
    if not name.startswith("folder:") and (selection.test_fraction is not None or selection.skip_broken):
        raise UsageError(
            f"--test-fraction and --skip-broken are for images of your own, not for {name}.",
            "leave them out, or give --dataset folder:PATH",
        )
    title, decoded = _find(name, data_dir or default_data_dir(), offline, image_size, selection, output)
    if decoded.val is None:
        count = val_count(len(decoded.train))
        if selection.val_fraction is not None:
            count = round(selection.val_fraction * len(decoded.train))
        train, val = hold_out(decoded.train, count, seed, decoded.class_names)
    elif selection.val_fraction is not None:
        raise UsageError(f"{title} names its val images itself.", "leave out --val-fraction")
    else:
        train, val = decoded.train, decoded.val
    return Dataset(title, decoded.class_names, train, val, decoded.test, decoded.digest)


def held_out_splits(name: str, selection: Selection) -> frozenset[str]:
    """Which of val and test are chosen by us, because the data set does not name their images itself.

    Raises DataError where a folder cannot be listed.
    """
    if not name.startswith("folder:"):
        return frozenset({"val"})
    listing = list_files(Tree(_existing_folder(name)), selection)
    chosen = {"val": listing.val is None, "test": listing.test_share is not None}
    return frozenset(split for split, is_chosen in chosen.items() if is_chosen)


def dataset_reference(name: str) -> str:
    """A data set's name without the path that `folder:PATH` has."""
    return f"folder:{Path(name.removeprefix('folder:')).name}" if name.startswith("folder:") else name


def folder_path(name: str) -> Path:
    """The path of `folder:PATH`, with ~ as the home folder. Raises DataError for ~NAME of a user that is not there."""
    path = Path(name.removeprefix("folder:"))
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise DataError(
            f"There is no folder {path}: no user is called so.",
            "give --dataset folder:PATH with an existing path",
        ) from error


def _existing_folder(name: str) -> Path:
    path = folder_path(name)
    if not os.path.exists(path):  # noqa: PTH110 (a Path raises for a name that no file system takes)
        raise DataError(
            f"There is no folder {path}.{near_path(path)}", "give --dataset folder:PATH with an existing path"
        )
    return path


def default_data_dir() -> Path:
    """Where archives are kept when nobody says otherwise."""
    return cache_root() / "data"


def find_archive(info: DatasetInfo, data_dir: Path) -> Path | None:
    """The archive or folder of a data set in ``data_dir``, None if there is none."""
    return next(_candidates(info, data_dir), None)


def obtain(name: str, data_dir: Path, output: Output) -> Path | None:
    """Where the data set is in ``data_dir``; it is downloaded if it is not there. None for the embedded one.

    Raises UsageError for an unknown name, and what `download` raises.
    """
    info = dataset_info(name)
    if info.archive is None:
        return None
    return find_archive(info, data_dir) or download(info.archive, data_dir, output)


def dataset_info(name: str) -> DatasetInfo:
    """Raises UsageError for an unknown name."""
    if name not in DATASETS:
        raise unknown_name("data set", name, DATASETS)
    return DATASETS[name]


def unknown_dataset(name: str) -> UsageError:
    """Build the error for a name that is none; a folder or archive of that name is likely meant."""
    if os.path.exists(name):  # noqa: PTH110 (a Path raises for a name that no file system takes)
        return UsageError(f"Unknown data set '{name}'.", f"--dataset {shlex.quote(f'folder:{name}')}")
    return unknown_name("data set", name, [*DATASETS, "folder:PATH"])


def classes_of(info: DatasetInfo, path: Path | None) -> int:
    """How many classes the archive or folder at ``path`` really has; that of authors has those of the data set."""
    if path is None or info.archive is None or path.name == info.archive.filename:
        return info.classes
    return count_classes(Tree(path))


def _find(
    name: str,
    data_dir: Path,
    offline: bool,
    image_size: int | None,
    selection: Selection,
    output: Output,
) -> tuple[str, Decoded]:
    if name.startswith("folder:"):
        path = _existing_folder(name)
        require_text(path.resolve().name, "The data set is a folder")  # its name goes into the model file
        return f"folder:{path.resolve().name}", decode_tree(Tree(path), image_size, output, selection)
    if name not in DATASETS:
        raise unknown_dataset(name)
    info = DATASETS[name]
    if info.archive is None or info.cifar is not None:
        _refuse_resize(info, image_size)
    if info.archive is None:
        return info.title, read_digits()
    path = find_archive(info, data_dir) or _obtain(info, info.archive, data_dir, offline, output)
    if info.cifar is not None and path.name == info.archive.filename:
        return info.title, read_cifar(path, info.cifar)
    tree = Tree(path, is_download=path.name == info.archive.filename)
    return _title(info, path), decode_tree(tree, image_size, output)


def _candidates(info: DatasetInfo, data_dir: Path) -> Iterator[Path]:
    """What is there already: the official archive first, then zips and folders named after the data set."""
    if not data_dir.is_dir():
        return
    if info.archive is not None and (data_dir / info.archive.filename).is_file():
        yield data_dir / info.archive.filename
    pattern = re.compile(rf"{re.escape(info.name)}([-_.].*)?")
    for path in sorted(data_dir.iterdir()):
        if pattern.fullmatch(path.name) and (path.is_dir() or path.suffix == ".zip"):
            yield path


def _obtain(info: DatasetInfo, archive: Archive, data_dir: Path, offline: bool, output: Output) -> Path:
    if offline:
        raise DataError(
            f"{info.title} is not in {data_dir}, and --offline forbids to download it.",
            f"put {archive.filename} (or a folder {info.name}/) there, or drop --offline",
        )
    return download(archive, data_dir, output)


def _title(info: DatasetInfo, path: Path) -> str:
    """`cifar10-jpeg.zip` is "CIFAR-10 (JPEG)", `tiny-imagenet-20.zip` is "Tiny-ImageNet-20"."""
    variant = path.name.removesuffix(".zip").removeprefix(info.name).strip("-_. ")
    if not variant or variant == str(info.classes):
        return info.title
    return f"{info.title}-{variant}" if variant.isdigit() else f"{info.title} ({variant.upper()})"


def _refuse_resize(info: DatasetInfo, image_size: int | None) -> None:
    if image_size not in (None, info.image_size):
        raise UsageError(
            f"{info.title} has {info.image_size}x{info.image_size} images; --image-size is for images of your own.",
            "leave it out",
        )

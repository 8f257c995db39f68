"""Decode the files of a listing to uint8 arrays, with a cache so that it happens once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from ducat_serve.atomic import cannot_write
from ducat_serve.errors import DataError
from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.output import Output
from training.data.layouts import Files, list_files
from training.data.trees import Tree

CACHE_VERSION = 1


@dataclass(frozen=True)
class Split:
    """Images uint8 [N, H, W, 3] (often memory-mapped) and labels int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Decoded:
    """A decoded data set; ``val`` is None where it has to be held out of ``train``."""

    class_names: tuple[str, ...]
    train: Split
    val: Split | None
    test: Split
    digest: str


def cache_root() -> Path:
    """`$DUCAT_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("DUCAT_CACHE") or user_cache_path("ducat"))


def decode_tree(tree: Tree, image_size: int | None, output: Output) -> Decoded:
    """Decode a whole data set, or map it from the cache if the same source was decoded before.

    Args:
        tree: the archive or folder.
        image_size: resize and centre-crop every image to this size; None demands that all have one size.

    Raises:
        DataError: images that do not decode (named and counted), or sizes that differ.
    """
    digest = tree.digest()
    folder = cache_root() / "decoded" / f"{digest[:32]}-{image_size or 'native'}-v{CACHE_VERSION}"
    if not (folder / "index.json").is_file():
        _fill(folder, tree, image_size, output)
    return _map(folder, digest)


def _fill(folder: Path, tree: Tree, image_size: int | None, output: Output) -> None:
    listing = list_files(tree)
    splits = {"train": listing.train, "val": listing.val, "test": listing.test}
    output.say(f"Decoding {sum(len(f) for f in splits.values() if f):,} images of {tree.source.name} (once)")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".decoding-"))
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        size = (image_size, image_size) if image_size else _common_size(tree, listing.train)
        for split, files in splits.items():
            if files is None:
                continue
            images = np.lib.format.open_memmap(
                temporary / f"{split}.npy", mode="w+", dtype=np.uint8, shape=(len(files), *size, 3)
            )
            _decode_into(images, tree, files, resize=image_size is not None, label=split, output=output)
            images.flush()
            np.save(
                temporary / f"{split}_labels.npy", np.array([label for _, label in files], dtype=np.int64)
            )
        (temporary / "index.json").write_text(json.dumps({"class_names": listing.labels}))
        if not folder.exists():
            temporary.rename(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _common_size(tree: Tree, files: Files) -> tuple[int, int]:
    """The size of the first image that decodes; `_decode_into` then names and counts those that do not."""
    for name, _ in files:
        with contextlib.suppress(ImageError):
            image = decode(tree.read(name))
            return image.height, image.width
    raise DataError(f"{tree.source}: none of the {len(files)} images in train/ decodes.", "replace them")


def _decode_into(
    images: NDArray[np.uint8], tree: Tree, files: Files, *, resize: bool, label: str, output: Output
) -> None:
    size = (images.shape[1], images.shape[2])
    undecodable: list[str] = []
    misfits: list[str] = []

    def one(index: int) -> None:
        name = files[index][0]
        try:
            image = decode(tree.read(name))
        except ImageError as error:
            undecodable.append(f"{name} ({error})")
            return
        if resize:
            image = fit(image, size)
        if image.size != (size[1], size[0]):
            misfits.append(f"{name} is {image.height}x{image.width}")
            return
        images[index] = to_array(image)

    with ThreadPoolExecutor() as pool, output.progress(f"Decoding {label}", len(files)) as advance:
        for _ in pool.map(one, range(len(files))):
            advance()
    if undecodable:
        raise DataError(
            f"{tree.source}: {len(undecodable)} of {len(files)} images in {label}/ do not decode, "
            f"first {min(undecodable)}.",
            "remove or replace them",
        )
    if misfits:
        raise DataError(
            f"{tree.source}: {len(misfits)} of {len(files)} images in {label}/ are not "
            f"{size[0]}x{size[1]}; {min(misfits)}.",
            "give --image-size 64 (or another size) to resize and centre-crop all of them",
        )


def _map(folder: Path, digest: str) -> Decoded:
    def split(name: str) -> Split:
        images: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return Split(images, np.load(folder / f"{name}_labels.npy", allow_pickle=False))

    try:
        class_names: list[str] = json.loads((folder / "index.json").read_text())["class_names"]
        val = split("val") if (folder / "val.npy").is_file() else None
        return Decoded(tuple(class_names), split("train"), val, split("test"), digest)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The cache folder {folder} is incomplete or corrupt ({error}).", f"delete {folder} and run again"
        ) from error

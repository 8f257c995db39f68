"""Decode the image files of a tree to uint8 arrays in the cache."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.output import Output
from training.data.cache import Decoded, cached, new_images
from training.data.layouts import Files, list_files
from training.data.trees import Tree


def decode_tree(tree: Tree, image_size: int | None, output: Output) -> Decoded:
    """Decode a whole data set, or map it from the cache if the same source was decoded before.

    Args:
        tree: the archive or folder.
        image_size: resize and centre-crop every image to this size; None demands that all have one size.

    Raises:
        DataError: images that do not decode (named and counted), or sizes that differ.
    """

    def decode_into(folder: Path) -> tuple[str, ...]:
        listing = list_files(tree)
        splits = {"train": listing.train, "val": listing.val, "test": listing.test}
        count = sum(len(files) for files in splits.values() if files)
        output.say(f"Decoding {count:,} images of {tree.source.name} (once)")
        size = (image_size, image_size) if image_size else _common_size(tree, listing.train)
        for split, files in splits.items():
            if files is None:
                continue
            images = new_images(folder, split, (len(files), *size, 3))
            _decode_into(images, tree, files, resize=image_size is not None, label=split, output=output)
            images.flush()
            np.save(folder / f"{split}_labels.npy", np.array([label for _, label in files], dtype=np.int64))
        return listing.labels

    return cached(f"{tree.digest()[:32]}-{image_size or 'native'}", decode_into)


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

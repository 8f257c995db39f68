"""Decode the image files of a tree to uint8 arrays in the cache."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.errors import DataError
from ducat_serve.images import FILE_FORMATS, ImageError, decode, fit, to_array
from ducat_serve.output import Output
from ducat_serve.spec import MAX_IMAGE_SIZE
from training.data.cache import Decoded, cached, new_images
from training.data.layouts import Files, Listing, list_files, unused
from training.data.selection import Selection, share_in_words
from training.data.trees import BrokenFileError, Tree


def decode_tree(
    tree: Tree, image_size: int | None, output: Output, selection: Selection | None = None
) -> Decoded:
    """Decode a whole data set, or map it from the cache if the same source was decoded before.

    Args:
        tree: the archive or folder.
        image_size: resize and centre-crop every image to this size; None demands that all have one size.
        selection: of a data set of the user's own; None for one that is known by name, which is taken as it is.

    Raises:
        DataError: images that do not decode (named and counted), or sizes that differ.
    """

    def decode_into(folder: Path) -> tuple[str, ...]:
        listing = list_files(tree, selection or Selection())
        if selection is not None:
            _say_what_is_used(tree, listing, output)
            if selection.skip_broken:
                listing = without_broken(tree, listing, output)
        count = sum(len(files) for files in listing.splits.values())
        output.say(f"Decoding {count:,} images of {tree.source.name} (once)")
        size = (image_size, image_size) if image_size else _common_size(tree, listing.train)
        if max(size) > MAX_IMAGE_SIZE:  # before the disk is filled with them
            raise DataError(
                f"{tree.source.name} has images of {size[0]}x{size[1]} pixels; networks take at most {MAX_IMAGE_SIZE}.",
                "give --image-size 224, say",
            )
        for split, files in listing.splits.items():
            images = new_images(folder, split, (len(files), *size, 3))
            _decode_into(images, tree, files, resize=image_size is not None, label=split, output=output)
            images.flush()
            np.save(folder / f"{split}_labels.npy", np.array([label for _, label in files], dtype=np.int64))
        return listing.labels

    key = f"{tree.digest()[:32]}-{image_size or 'native'}"
    if selection is not None:
        key += f"-own-{selection.test_fraction or 'default'}" + "-sound" * selection.skip_broken
    return cached(key, decode_into)


def read_image(tree: Tree, name: str) -> Image.Image:
    """An image of a tree. Raises ImageError where it does not decode, and where its file is broken."""
    try:
        return decode(tree.read(name), formats=FILE_FORMATS)
    except BrokenFileError as error:
        raise ImageError(error.cause.rstrip(".")) from error


def without_broken(tree: Tree, listing: Listing, output: Output) -> Listing:
    """The images that decode; how many do not is said. Raises DataError where a class has none left to train on."""
    broken: dict[str, str] = {}

    def look(name: str) -> None:
        try:
            read_image(tree, name)
        except ImageError as error:
            broken[name] = str(error)

    names = [name for files in listing.splits.values() for name, _ in files]
    with ThreadPoolExecutor() as pool, output.progress("Looking for broken images", len(names)) as advance:
        for _ in pool.map(look, names):
            advance()
    if not broken:
        return listing
    first = min(broken)
    output.warn(
        f"{len(broken):,} of {len(names):,} images do not decode and are left out, first {first} ({broken[first]})."
    )
    left = {
        split: [(name, label) for name, label in files if name not in broken]
        for split, files in listing.splits.items()
    }
    gone = set(range(len(listing.labels))) - {label for _, label in left["train"]}
    if gone or not left["test"]:
        what = f"of class '{listing.labels[min(gone)]}' " if gone else "of test "
        raise DataError(f"{tree.source}: no image {what}is left.", "replace the broken images")
    return replace(listing, train=left["train"], val=left.get("val"), test=left["test"])


def _say_what_is_used(tree: Tree, listing: Listing, output: Output) -> None:
    if passed_over := str(unused(tree, listing)):
        output.warn(f"{tree.source}: passed over {passed_over}.")
    if listing.test_share is not None:
        output.say(
            f"{tree.source.name} names no test images: {share_in_words(listing.test_share)} "
            f"({len(listing.test):,} images) are held out, the same ones for every seed."
        )


def _common_size(tree: Tree, files: Files) -> tuple[int, int]:
    """The size of the first image that decodes; `_decode_into` then names and counts those that do not."""
    for name, _ in files:
        with contextlib.suppress(ImageError):
            image = decode(tree.read(name), formats=FILE_FORMATS)
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
            image = decode(tree.read(name), formats=FILE_FORMATS)
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
            "remove or replace them, or train with --skip-broken, which leaves them out",
        )
    if misfits:
        raise DataError(
            f"{tree.source}: {len(misfits)} of {len(files)} images in {label}/ are not "
            f"{size[0]}x{size[1]}; {min(misfits)}.",
            "give --image-size 64 (or another size) to resize and centre-crop all of them",
        )

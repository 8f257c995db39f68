"""Look at a data set of one's own before hours of training: what is broken, of which sizes, in two splits at once.

Near-duplicates are found by the difference hash (N. Krawetz, "Kind of Like That", 2013): of an image 9 pixels wide and
8 high, whether each pixel is darker than its right neighbour. Flat images, and small objects on them, share hashes
without being alike, so a pair also has to agree in every pixel of a small thumbnail, in colour. An average over the
thumbnail would not do: a small object hardly moves it.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.images import ImageError
from ducat_serve.output import Output
from training.data.decoding import read_image
from training.data.layouts import Listing, Unused, list_files, unused
from training.data.selection import Selection
from training.data.splits import held_out_of, val_count
from training.data.trees import Tree

MAX_BITS = 4  # of 64 that may differ; other sizes and compressions of one photo differ by a few
# Of 255, in each colour of each pixel of the thumbnail. Photos that were saved again as JPEG (quality 60), at half
# their size or a tenth brighter stay below; of 160,000 pairs of drawings on flat backgrounds the nearest differ by 39.
MAX_DIFFERENCE = 28
IMBALANCE = 10  # the largest class has so many times the images of the smallest
_THUMBNAIL = 8  # a larger one tells what JPEG and resizing do to fine structure
_AT_A_TIME = 1024  # thumbnails that are compared


@dataclass(frozen=True)
class Duplicate:
    """Two files of different splits that look alike; ``bits`` of their hashes differ.

    ``other`` is of the later split, and has no more than one such ``one`` in each of those before.
    """

    one: str
    other: str
    bits: int


@dataclass(frozen=True)
class DataCheck:
    """What was found. ``sizes`` counts images by (height, width), ``suffixes`` by how their names end."""

    classes: dict[str, dict[str, int]]  # images by class, then by split
    splits: dict[str, int]
    test_share: float | None  # of all images, where the data set names no test images
    sizes: dict[tuple[int, int], int]
    suffixes: dict[str, int]
    unused: Unused
    broken: dict[str, str]  # why, by path
    duplicates: tuple[Duplicate, ...]

    @property
    def to_train(self) -> int:
        """Images that are left to train on when some of train are held out to choose models on."""
        counts = [splits["train"] for splits in self.classes.values()]
        if "val" in self.splits:
            return sum(counts)
        share = val_count(sum(counts)) / sum(counts)
        return sum(count - held_out_of(count, share) for count in counts)

    @property
    def too_small(self) -> list[str]:
        """Classes that a training would be refused for: val, which the data set has not, would leave them nothing."""
        if "val" in self.splits:
            return []
        return [label for label, splits in self.classes.items() if splits["train"] < 2]

    def _near_names(self) -> list[str]:
        by_letters: dict[str, list[str]] = {}
        for label in self.classes:
            by_letters.setdefault(label.casefold(), []).append(f"'{label}'")
        return [" and ".join(names) for names in by_letters.values() if len(names) > 1]

    @property
    def imbalance(self) -> float:
        """Images of the largest class in train for one of the smallest."""
        counts = [splits.get("train", 0) for splits in self.classes.values()]
        return max(counts) / max(1, min(counts))

    @property
    def warnings(self) -> list[str]:
        """What one would want to mend before training, in words."""
        found = []
        if self.broken:
            name = min(self.broken)
            what = "1 image does" if len(self.broken) == 1 else f"{len(self.broken):,} images do"
            found.append(f"{what} not decode, first {name} ({self.broken[name]})")
        if self.duplicates:
            pair = self.duplicates[0]
            count = len({pair.other for pair in self.duplicates})
            what = "1 image looks" if count == 1 else f"{count:,} images look"
            found.append(
                f"{what} like one of another split, first {pair.other} and {pair.one}: where they show the same, "
                "accuracies would be too high"
            )
        found += [
            f"class '{label}' has 1 training image, and val needs one held out of it too: add images of it, remove "
            "the class, or lay out val/ and test/ yourself"
            for label in self.too_small
        ]
        found += [f"the classes {names} differ in capitals alone" for names in self._near_names()]
        if self.imbalance >= IMBALANCE:
            found.append(f"the largest class has {self.imbalance:.0f} times the images of the smallest")
        if len(self.sizes) > 1:
            found.append(f"images have {len(self.sizes):,} different sizes: train with --image-size")
        if passed_over := str(self.unused):
            found.append(f"passed over: {passed_over}")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "splits": self.splits,
            "classes": self.classes,
            "test_share": self.test_share,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.items()},
            "suffixes": self.suffixes,
            "unused": {"suffixes": dict(self.unused.suffixes), "images": list(self.unused.images)},
            "broken": self.broken,
            "duplicates": [vars(pair) for pair in self.duplicates],
            "imbalance": self.imbalance,
        }


def check_images(path: Path, selection: Selection, output: Output) -> DataCheck:
    """Look at every image of a folder or zip archive. Raises DataError where it has no layout that is known."""
    tree = Tree(path)
    listing = list_files(tree, selection)
    names = [name for files in listing.splits.values() for name, _ in files]
    looks: dict[str, _Look] = {}
    broken: dict[str, str] = {}

    def look(name: str) -> None:
        try:
            looks[name] = _Look.of(read_image(tree, name))
        except ImageError as error:
            broken[name] = str(error)

    with ThreadPoolExecutor() as pool, output.progress("Looking at images", len(names)) as advance:
        for _ in pool.map(look, names):
            advance()
    sizes = Counter(found.size for found in looks.values())
    return DataCheck(
        classes=_classes(listing),
        splits={split: len(files) for split, files in listing.splits.items()},
        test_share=listing.test_share,
        sizes=dict(sizes.most_common()),
        suffixes=dict(Counter(PurePosixPath(name).suffix.lower() for name in names).most_common()),
        unused=unused(tree, listing),
        broken=dict(sorted(broken.items())),
        duplicates=tuple(_duplicates(listing, looks)),
    )


@dataclass(frozen=True)
class _Look:
    """An image as it is compared: its size, its hash of 64 bits, and a thumbnail in colour."""

    size: tuple[int, int]
    hash: int
    thumbnail: NDArray[np.int16]

    @classmethod
    def of(cls, image: Image.Image) -> _Look:
        small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX))
        bits = np.packbits(small[:, :-1] < small[:, 1:])
        thumbnail = np.asarray(image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), np.int16)
        return cls((image.height, image.width), int.from_bytes(bits.tobytes()), thumbnail)


def _classes(listing: Listing) -> dict[str, dict[str, int]]:
    counts = {label: dict.fromkeys(listing.splits, 0) for label in listing.labels}
    for split, files in listing.splits.items():
        for _, label in files:
            counts[listing.labels[label]][split] += 1
    return counts


def _duplicates(listing: Listing, looks: dict[str, _Look]) -> list[Duplicate]:
    """Pairs of files of two splits, most alike first."""
    splits = [[name for name, _ in files if name in looks] for files in listing.splits.values()]
    found = []
    for number, later in enumerate(splits):
        for earlier in splits[:number]:
            found += _alike(later, earlier, looks)
    return sorted(found, key=lambda pair: (pair.bits, pair.one, pair.other))


def _alike(some: list[str], others: list[str], looks: dict[str, _Look]) -> list[Duplicate]:
    """For each of ``some`` the one of ``others`` that is most like it, where one looks alike.

    Not all of them: of a placeholder that is there a thousand times in each split, these would be a million.
    """
    if not others:
        return []
    hashes = np.array([looks[name].hash for name in others], np.uint64)
    thumbnails = np.stack([looks[name].thumbnail for name in others])
    found = []
    for name in some:
        bits = np.bitwise_count(hashes ^ np.uint64(looks[name].hash))
        if (nearest := _nearest(bits, thumbnails, looks[name])) is not None:
            found.append(Duplicate(others[nearest], name, int(bits[nearest])))
    return found


def _nearest(bits: NDArray[np.uint8], thumbnails: NDArray[np.int16], look: _Look) -> int | None:
    """The index of the image that agrees with ``look`` in its thumbnail too, and in the most bits of the hash."""
    candidates = np.flatnonzero(bits <= MAX_BITS)
    candidates = candidates[np.argsort(bits[candidates], kind="stable")]
    for start in range(0, len(candidates), _AT_A_TIME):
        some = candidates[start : start + _AT_A_TIME]
        is_alike = np.abs(thumbnails[some] - look.thumbnail).max(axis=(1, 2, 3)) <= MAX_DIFFERENCE
        if is_alike.any():
            return int(some[is_alike.argmax()])
    return None

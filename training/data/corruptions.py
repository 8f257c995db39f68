"""Corrupted test images as they are published: CIFAR-10-C, CIFAR-100-C and Tiny-ImageNet-C.

Hendrycks and Dietterich 2019, arXiv 1903.12261: the 15 families of the benchmark, each at 5 severities. The four
families that its authors keep for validation are left alone. Archives are read in place and never unpacked.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from ducat_serve.images import FILE_FORMATS, ImageError, decode, fit, to_array
from training.data.cache import Split
from training.data.trees import Tree
from training.randomness import subset

SEVERITIES = 5
BENCHMARK = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
PUBLISHED = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C", "tiny-imagenet": "Tiny-ImageNet-C"}
_MOST_BYTES = 256 << 20  # a family of CIFAR-10-C has 154 MB
_MOST_LABELS = 1_000_000
_LABELS = "labels.npy"


class CorruptedImages(Protocol):
    """The same images, corrupted in several ways.

    ``title`` names them; ``generated_by`` is None for images as published, else the libraries that made them.
    """

    @property
    def title(self) -> str: ...
    @property
    def generated_by(self) -> str | None: ...
    @property
    def families(self) -> tuple[str, ...]: ...

    def at(self, family: str, severity: int) -> Split:
        """Images uint8 [N, H, W, 3] and labels of one family at a severity of 1 to 5."""
        ...


@dataclass(frozen=True)
class Wanted:
    """Which of the images are wanted, and of what model.

    Args:
        classes: the names of the model's classes, in its order; for class folders, the names of the folders.
        image_size: height and width that the model takes.
        count: that many images of a seeded shuffle; None for all.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    count: int | None = None
    seed: int = 0

    def choose(self, total: int) -> NDArray[np.int64]:
        """The places of the images among ``total``, in order; the same as for clean images."""
        if self.count is None or self.count >= total:
            return np.arange(total)
        chosen: NDArray[np.int64] = subset(total, self.count, self.seed).numpy()
        return chosen


def find_published(dataset: str, data_dir: Path) -> Path | None:
    """The archive or folder of a data set's corrupted images, or None where it is not there."""
    title = PUBLISHED.get(dataset)
    candidates = [] if title is None else [data_dir / f"{title}.tar", data_dir / title]
    return next((path for path in candidates if path.exists()), None)


def read_published(path: Path, wanted: Wanted) -> CorruptedImages:
    """Recognise .npy files (CIFAR) or folders of images (Tiny-ImageNet) at ``path``.

    Raises DataError: damaged, a missing family, other shapes, or images of other classes or another size.
    """
    tree = Tree(path)
    title = path.name.removesuffix(".tar")
    lists = [name for name in tree.names() if PurePosixPath(name).name == _LABELS]
    if len(lists) == 1:
        return _Arrays.open(tree, title, lists[0].removesuffix(_LABELS), wanted)
    return _Folders.open(tree, title, wanted)


@dataclass(frozen=True)
class _Arrays:
    """FAMILY.npy: uint8 [5 * N, H, W, 3], the severities one after the other, with labels.npy beside."""

    tree: Tree
    title: str
    root: str
    index: NDArray[np.int64]
    labels: NDArray[np.int64]  # of one severity
    image_size: tuple[int, int]
    families: tuple[str, ...] = BENCHMARK
    generated_by: None = None
    _last: dict[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, tree: Tree, title: str, root: str, wanted: Wanted) -> _Arrays:
        present = set(tree.names())
        for family in BENCHMARK:
            if f"{root}{family}.npy" not in present:
                raise _missing(tree, family, f"{root}{family}.npy")
        labels = _read_npy(tree, f"{root}{_LABELS}")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not 0 < len(labels) <= _MOST_LABELS:
            raise DataError(f"{tree.source}: {_LABELS} is {_described(labels)}, not a list of whole numbers.")
        blocks = labels.astype(np.int64).reshape(SEVERITIES, -1) if len(labels) % SEVERITIES == 0 else None
        if blocks is None or (blocks != blocks[0]).any():
            raise DataError(
                f"{tree.source}: {_LABELS} does not name the same images {SEVERITIES} times, once for each severity."
            )
        found = np.unique(blocks[0])
        if len(found) != len(wanted.classes) or found[0] != 0 or found[-1] != len(wanted.classes) - 1:
            raise DataError(
                f"{tree.source} holds images of other classes than the model's: {len(found)}, numbered {found[0]} to "
                f"{found[-1]}, and the model has {len(wanted.classes)}.",
                f"move {tree.source.name} away to have corruptions generated, or name the right --data-dir",
            )
        return cls(tree, title, root, wanted.choose(blocks.shape[1]), blocks[0], wanted.image_size)

    def at(self, family: str, severity: int) -> Split:
        name = f"{self.root}{family}.npy"
        if family not in self._last:
            self._last.clear()  # one family at a time in memory
            images = _read_npy(self.tree, name)
            expected = (SEVERITIES * len(self.labels), *self.image_size, 3)
            if images.dtype != np.uint8 or images.shape != expected:
                raise DataError(
                    f"{self.tree.source}: {name} is {_described(images)}; expected is uint8 {list(expected)}."
                )
            self._last[family] = images
        start = (severity - 1) * len(self.labels)
        return Split(self._last[family][start + self.index], self.labels[self.index])


@dataclass(frozen=True)
class _Folders:
    """FAMILY/SEVERITY/CLASS/*.JPEG, with the same names of files everywhere."""

    tree: Tree
    title: str
    root: str
    files: tuple[str, ...]  # CLASS/NAME of the images that are wanted
    labels: NDArray[np.int64]
    image_size: tuple[int, int]
    families: tuple[str, ...] = BENCHMARK
    generated_by: None = None

    @classmethod
    def open(cls, tree: Tree, title: str, wanted: Wanted) -> _Folders:
        marker = f"{BENCHMARK[0]}/1/"
        first = next((name for name in tree.names() if f"/{marker}" in f"/{name}"), None)
        if first is None:
            raise _missing(tree, BENCHMARK[0], f"{_LABELS} and {marker}CLASS/*.JPEG")
        root = first[: first.index(marker)]
        number = {name: label for label, name in enumerate(wanted.classes)}
        prefix = f"{root}{marker}"
        below = [name.removeprefix(prefix) for name in tree.names() if name.startswith(prefix)]
        files = sorted(name for name in below if name.split("/")[0] in number)
        lacking = sorted(set(number) - {name.split("/")[0] for name in files})
        if lacking:
            raise DataError(
                f"{tree.source} holds images of other classes than the model's: {prefix} has no folder {lacking[0]}.",
                f"move {tree.source.name} away to have corruptions generated, or name the right --data-dir",
            )
        chosen = tuple(files[i] for i in wanted.choose(len(files)))
        present = set(tree.names())
        for family in BENCHMARK:
            for severity in range(1, SEVERITIES + 1):
                for file in chosen:
                    name = f"{root}{family}/{severity}/{file}"
                    if name not in present:
                        raise _missing(tree, family, name)
        labels = np.array([number[name.split("/")[0]] for name in chosen], dtype=np.int64)
        return cls(tree, title, root, chosen, labels, wanted.image_size)

    def at(self, family: str, severity: int) -> Split:
        images = np.empty((len(self.files), *self.image_size, 3), dtype=np.uint8)

        def one(index: int) -> None:
            name = f"{self.root}{family}/{severity}/{self.files[index]}"
            try:
                image = decode(self.tree.read(name), formats=FILE_FORMATS)
            except ImageError as error:
                raise DataError(f"{self.tree.source}: {name} does not decode ({error}).") from error
            images[index] = to_array(fit(image, self.image_size))

        with ThreadPoolExecutor() as pool:
            list(pool.map(one, range(len(self.files))))
        return Split(images, self.labels)


def _read_npy(tree: Tree, name: str) -> NDArray[Any]:
    """An array of plain numbers. Raises DataError for pickled objects, and for a header that promises more bytes."""
    content = tree.read(name, _MOST_BYTES)
    try:
        file = io.BytesIO(content)
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
        # Compared before anything is allocated: a header of some bytes can ask for terabytes.
        if int(np.prod(shape, dtype=object)) * dtype.itemsize != len(content) - file.tell():
            raise ValueError(f"its header promises {dtype} {list(shape)}")
        file.seek(0)
        array: NDArray[Any] = np.load(file, allow_pickle=False)
    except (ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{tree.source}: {name} is no .npy file of numbers, or it is damaged ({error})."
        ) from error
    return array


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _missing(tree: Tree, family: str, name: str) -> DataError:
    return DataError(
        f"{tree.source} lacks the family {family}: there is no {name}.",
        "get the archive from its authors again, or move it away to have corruptions generated",
    )

"""How image data sets are laid out in a tree.

train/, val/ and test/ with a folder per class; folders of classes alone; labels.csv; and Tiny-ImageNet's own layout.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ducat_serve.errors import DataError, UsageError
from ducat_serve.images import IMAGE_SUFFIXES
from training.data import label_file
from training.data.label_file import read_labels
from training.data.selection import TEST_SHARE, Selection, held_out
from training.data.trees import Tree

Files = list[tuple[str, int]]  # (path in the tree, class index)
ByClass = dict[str, list[str]]  # paths in the tree, by the name of their class
_LAYOUTS = (
    "lay it out as train/<class>/*.png, with val/<class>/*.png or test/<class>/*.png if you have them; as "
    "<class>/*.png; or with a labels.csv of the columns file,label"
)
_SPLITS = ("train", "val", "test")
# What else people call the folder of a split, in small letters.
_OTHER_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True)
class Listing:
    """Which files belong to which class of which split. ``val`` is None where none is given.

    ``test_share`` is the share of all images that was held out as test; None where the data set names its test images.
    """

    labels: tuple[str, ...]
    train: Files
    val: Files | None
    test: Files
    test_share: float | None = None

    @property
    def splits(self) -> dict[str, Files]:
        """The files of each split that there is."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: files for name, files in splits.items() if files is not None}


@dataclass(frozen=True)
class Unused:
    """Files that no class has: how many of each suffix are no images, and the images outside of all classes."""

    suffixes: Mapping[str, int]
    images: tuple[str, ...]

    def __str__(self) -> str:
        """Empty where everything is used."""
        parts = []
        if self.suffixes:
            counts = ", ".join(f"{count:,} {suffix}" for suffix, count in self.suffixes.items())
            parts.append(f"files that are no images ({counts})")
        if self.images:
            parts.append(f"{len(self.images):,} images that have no class, first {self.images[0]}")
        return "; ".join(parts)


def list_files(tree: Tree, selection: Selection = Selection()) -> Listing:  # noqa: B008 (frozen)
    """Recognise the layout and list the files. Raises DataError where none fits, or one is incomplete."""
    root = _root(tree)
    present = set(tree.names())
    if f"{root}wnids.txt" in present:
        return _tiny_imagenet(tree, root)
    places = {split: f"{root}{split}/" for split in _SPLITS}
    splits = {split: _by_class(tree, place) for split, place in places.items()}
    if not splits["train"] and f"{root}{label_file.NAME}" in present:
        splits = _labelled(tree, root)
    else:
        _refuse_misnamed_splits(tree, root)
        if not any(name.startswith(places["train"]) for name in present):
            places["train"] = root
            splits = {"train": _by_class(tree, root), "val": {}, "test": {}}
    _refuse_odd_classes(tree, places, splits)
    return _listing(tree, root, splits, selection)


def count_classes(tree: Tree) -> int:
    """How many classes the data set has, without a look at what its images hold. Raises as `list_files` does."""
    root = _root(tree)
    if f"{root}wnids.txt" in tree.names():
        return len(tree.read_text(f"{root}wnids.txt").split())
    return len(list_files(tree).labels)


def class_folders(tree: Tree, class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the class folders in the order of ``class_names``, which Tiny-ImageNet has other words for."""
    wnids = f"{_root(tree)}wnids.txt"
    return tuple(sorted(tree.read_text(wnids).split())) if wnids in tree.names() else class_names


def unused(tree: Tree, listing: Listing) -> Unused:
    """What is in the tree and in no class; hidden files apart."""
    used = {name for files in listing.splits.values() for name, _ in files}
    suffixes: Counter[str] = Counter()
    images = []
    for name in tree.names():
        path = PurePosixPath(name)
        if name in used or path.name == label_file.NAME or _is_hidden(path.parts):
            continue
        if _is_image(name):
            images.append(name)
        else:
            suffixes[path.suffix.lower() or "without a suffix"] += 1
    return Unused(dict(sorted(suffixes.items())), tuple(images))


def _root(tree: Tree) -> str:
    """Archives usually have one folder at the top: the prefix up to `train/`, `labels.csv` or the class folders."""
    names = tree.names()
    tops = sorted({name.split("/", 1)[0] for name in names} - {"__MACOSX"})
    present = set(names)
    for prefix in ("", *(f"{top}/" for top in tops)):
        if f"{prefix}{label_file.NAME}" in present or any(n.startswith(f"{prefix}train/") for n in names):
            return prefix
    if {"val", "test"} & set(tops):
        raise DataError(f"{tree.source} has no train/ folder.", _LAYOUTS)
    folders = [top for top in tops if not top.startswith(".") and any(n.startswith(f"{top}/") for n in names)]
    if len(folders) == 1:
        return f"{folders[0]}/"
    return ""


def _labelled(tree: Tree, root: str) -> dict[str, ByClass]:
    """The images of labels.csv; without a column of splits all of them are train."""
    splits: dict[str, ByClass] = {split: {} for split in _SPLITS}
    for row in read_labels(tree, root):
        splits[row.split or "train"].setdefault(row.label, []).append(row.file)
    return splits


def _refuse_misnamed_splits(tree: Tree, root: str) -> None:
    """Raise DataError for folders such as Train/ and Test/, which would be classes, or passed over."""
    meant = {}
    for folder in tree.folders(root):
        split = _OTHER_NAMES.get(folder.lower(), folder.lower())
        if split in _SPLITS:
            meant[folder] = split
    wrong = {folder: split for folder, split in meant.items() if folder != split}
    # One of them alone may well be a class: people train for sports.
    if wrong and "train" in meant.values() and len(set(meant.values())) > 1:
        raise DataError(
            f"{tree.source}: {root}{next(iter(wrong))} looks like a folder of a split, which are called "
            "train, val and test.",
            "; ".join(f"rename {root}{folder} to {root}{split}" for folder, split in wrong.items()),
        )


def _refuse_odd_classes(tree: Tree, places: Mapping[str, str], splits: Mapping[str, ByClass]) -> None:
    """Raise DataError for classes to train on that are fewer than 2, no text, elsewhere missing or empty.

    ``places`` is where the class folders of each split are.
    """
    classes = set(splits["train"])
    if len(classes) < 2:
        found = f"{len(classes)} class{'es' * (len(classes) != 1)}"
        raise DataError(f"{tree.source} has {found} to train on; a classifier needs at least 2.", _LAYOUTS)
    for name in sorted(classes):
        require_text(name, f"{tree.source} has a class folder")
    for split, members in splits.items():
        strange = sorted(set(members) - classes)
        if strange:
            raise DataError(
                f"{tree.source}: {places[split]} has class '{strange[0]}', which train/ does not have."
            )
        empty = sorted(name for name, files in members.items() if not files)
        if empty:
            raise DataError(
                f"{tree.source}: the class folder {places[split]}{empty[0]} holds no image.",
                "remove the folder or put images into it",
            )


def _listing(tree: Tree, root: str, splits: dict[str, ByClass], selection: Selection) -> Listing:
    test_share = None
    if not splits["test"] and not splits["val"]:
        test_share = TEST_SHARE if selection.test_fraction is None else selection.test_fraction
        splits = _hold_out(splits["train"], root, test_share)
    elif selection.test_fraction is not None:
        raise UsageError(
            f"{tree.source} names its test images itself, and a test fraction of {selection.test_fraction} is wanted.",
            "leave out --test-fraction",
        )
    classes = sorted(splits["train"])
    index = {name: i for i, name in enumerate(classes)}
    files = {split: _flatten(members, index) for split, members in splits.items()}
    # With val/ alone it is the final test, as for ImageNet; models are then chosen on a part of train/.
    val = files["val"] if splits["test"] and splits["val"] else None
    return Listing(tuple(classes), files["train"], val, files["test"] or files["val"], test_share)


def _hold_out(everything: ByClass, root: str, share: float) -> dict[str, ByClass]:
    splits: dict[str, ByClass] = {split: {} for split in _SPLITS}
    for label, files in everything.items():
        # Names without what is above the data set, so that an archive and a folder are split alike.
        chosen = held_out([name.removeprefix(root) for name in files], share, label)
        splits["test"][label] = [name for name in files if name.removeprefix(root) in chosen]
        splits["train"][label] = [name for name in files if name.removeprefix(root) not in chosen]
    return splits


def _by_class(tree: Tree, prefix: str) -> ByClass:
    members: ByClass = {}
    for name in tree.names():
        if not name.startswith(prefix):
            continue
        parts = PurePosixPath(name[len(prefix) :]).parts
        if len(parts) < 2 or _is_hidden(parts):
            continue
        files = members.setdefault(parts[0], [])
        if _is_image(name):
            files.append(name)
    for folder in tree.folders(prefix):
        if not _is_hidden((folder,)):
            members.setdefault(folder, [])
    return members


def _tiny_imagenet(tree: Tree, root: str) -> Listing:
    wnids = sorted(tree.read_text(f"{root}wnids.txt").split())
    if len(wnids) < 2:
        raise DataError(
            f"{tree.source}: wnids.txt names {len(wnids)} classes; a classifier needs at least 2."
        )
    index = {wnid: i for i, wnid in enumerate(wnids)}
    names = dict(
        line.split("\t", 1) for line in tree.read_text(f"{root}words.txt").splitlines() if "\t" in line
    )
    present = set(tree.names())
    train: Files = []
    for wnid in wnids:
        prefix = f"{root}train/{wnid}/images/"
        files = [name for name in tree.names() if name.startswith(prefix) and _is_image(name)]
        if not files:
            raise DataError(f"{tree.source}: {prefix} holds no image, but wnids.txt names {wnid}.")
        train += [(name, index[wnid]) for name in files]
    test: Files = []
    for line in tree.read_text(f"{root}val/val_annotations.txt").splitlines():
        file, wnid = [*line.split("\t"), ""][:2]
        name = f"{root}val/images/{file}"
        if wnid not in index or name not in present:
            raise DataError(f"{tree.source}: val_annotations.txt names {file} of {wnid}, which is not there.")
        test.append((name, index[wnid]))
    if not test:
        raise DataError(f"{tree.source}: val/val_annotations.txt names no image.")
    return Listing(_labels_of(wnids, names), train, None, test)


def _labels_of(wnids: list[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """A name for each wnid: its words, and the wnid itself beside them where another class has the same words."""
    words = [names.get(wnid, wnid) for wnid in wnids]
    shared = {word for word, count in Counter(words).items() if count > 1}
    return tuple(
        f"{word} ({wnid})" if word in shared else word for wnid, word in zip(wnids, words, strict=True)
    )


def require_text(name: str, where: str) -> None:
    """Raise DataError for a name of bytes that are no UTF-8: no model file could hold it."""
    shown = os.fsencode(name).decode(errors="backslashreplace")
    if shown != name:
        raise DataError(f"{where} whose name is not UTF-8: '{shown}'.", "rename it")


def _flatten(members: ByClass, index: dict[str, int]) -> Files:
    return [(name, index[label]) for label in sorted(members) for name in members[label]]


def _is_hidden(parts: tuple[str, ...]) -> bool:
    """Hidden files, and what macOS puts into its archives."""
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES

"""How image data sets are laid out in a tree: class folders, and Tiny-ImageNet's own layout."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath

from ducat_serve.errors import DataError
from ducat_serve.images import IMAGE_SUFFIXES
from training.data.trees import Tree

Files = list[tuple[str, int]]  # (path in the tree, class index)


@dataclass(frozen=True)
class Listing:
    """Which files belong to which class of which split. ``val`` is None where none is given."""

    labels: tuple[str, ...]
    train: Files
    val: Files | None
    test: Files


def list_files(tree: Tree) -> Listing:
    """Recognise the layout and list the files. Raises DataError where neither layout fits."""
    root = _root(tree)
    if f"{root}wnids.txt" in tree.names():
        return _tiny_imagenet(tree, root)
    return _class_folders(tree, root)


def _root(tree: Tree) -> str:
    """Archives usually have one folder at the top: the prefix up to `train/`."""
    tops = {name.split("/", 1)[0] for name in tree.names()} - {"__MACOSX"}
    if "train" in tops:
        return ""
    for top in sorted(tops):
        if any(name.startswith(f"{top}/train/") for name in tree.names()):
            return f"{top}/"
    raise DataError(
        f"{tree.source} has no train/ folder.",
        "lay it out as train/<class>/*.png and val/<class>/*.png or test/<class>/*.png",
    )


def _class_folders(tree: Tree, root: str) -> Listing:
    splits = {split: _by_class(tree, f"{root}{split}/") for split in ("train", "val", "test")}
    classes = sorted(splits["train"])
    if len(classes) < 2:
        raise DataError(
            f"{tree.source}: train/ has {len(classes)} class folder{'s' * (len(classes) != 1)}; "
            "a classifier needs at least 2.",
            "lay it out as train/<class>/*.png",
        )
    for name in classes:
        require_text(name, f"{tree.source}: train/ has a class folder")
    held_out = splits["test"] or splits["val"]
    if not held_out:
        raise DataError(f"{tree.source} has neither val/ nor test/.", "add test/<class>/*.png")
    for split, members in splits.items():
        strange = sorted(set(members) - set(classes))
        if strange:
            raise DataError(f"{tree.source}: {split}/ has class '{strange[0]}', which train/ does not have.")
        empty = sorted(name for name, files in members.items() if not files)
        if empty:
            raise DataError(
                f"{tree.source}: the class folder {split}/{empty[0]} holds no image.",
                "remove the folder or put images into it",
            )
    index = {name: i for i, name in enumerate(classes)}
    files = {split: _flatten(members, index) for split, members in splits.items()}
    # With val/ alone it is the final test, as for ImageNet; models are then chosen on a part of train/.
    val = files["val"] if splits["test"] and splits["val"] else None
    return Listing(tuple(classes), files["train"], val, _flatten(held_out, index))


def _by_class(tree: Tree, prefix: str) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name in tree.names():
        if not name.startswith(prefix):
            continue
        parts = PurePosixPath(name[len(prefix) :]).parts
        if len(parts) < 2 or any(part.startswith((".", "__MACOSX")) for part in parts):
            continue
        files = members.setdefault(parts[0], [])
        if _is_image(name):
            files.append(name)
    for folder in tree.folders(prefix):
        if not folder.startswith((".", "__MACOSX")):
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
    return Listing(tuple(names.get(wnid, wnid) for wnid in wnids), train, None, test)


def require_text(name: str, where: str) -> None:
    """Raise DataError for a name of bytes that are no UTF-8: no model file could hold it."""
    shown = os.fsencode(name).decode(errors="backslashreplace")
    if shown != name:
        raise DataError(f"{where} whose name is not UTF-8: '{shown}'.", "rename it")


def _flatten(members: dict[str, list[str]], index: dict[str, int]) -> Files:
    return [(name, index[label]) for label in sorted(members) for name in members[label]]


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES

"""`labels.csv`: which image is of which class, and of which split, where folders do not say so."""

from __future__ import annotations

import csv
import io
import posixpath
from dataclasses import dataclass

from ducat_serve.errors import DataError
from training.data.trees import Tree

NAME = "labels.csv"
_COLUMNS = "file,label[,split]"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Labelled:
    """One row: the path in the tree, the name of the class, and the split if there is such a column."""

    file: str
    label: str
    split: str | None


def read_labels(tree: Tree, root: str) -> list[Labelled]:
    """The rows of ``root``labels.csv. Paths in it are relative to it.

    Raises DataError for other columns or one that is there twice, a file that is not there or named twice, and an
    unknown or missing split.
    """
    where = f"{tree.source}: {root}{NAME}"
    text = tree.read_text(f"{root}{NAME}").removeprefix("\ufeff")  # Excel begins UTF-8 files so
    present, seen = set(tree.names()), set[str]()
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
        columns = reader.fieldnames or []
        if not {"file", "label"} <= set(columns) or len(set(columns)) < len(columns):
            raise DataError(f"{where} has the columns {', '.join(columns)}.", f"name them {_COLUMNS}")
        for row in reader:
            # As `find` writes paths, with ./ before them, and as people align them, with blanks behind.
            file = root + posixpath.normpath((row["file"] or "").strip())
            label = (row["label"] or "").strip()
            split = (row["split"] or "").strip() if "split" in columns else None
            line = f"{where}, line {reader.line_num}"
            if file not in present:
                raise DataError(f"{line}: there is no file {row['file']}.", _advice(row["file"] or ""))
            if file in seen:
                raise DataError(f"{line}: {row['file']} is named a second time.", "give every file one label")
            if not label:
                raise DataError(f"{line}: {row['file']} has no label.", "give every file one label")
            if split is not None and split not in SPLITS:
                raise DataError(f"{line}: '{split}' is no split.", f"write one of {', '.join(SPLITS)}")
            seen.add(file)
            rows.append(Labelled(file, label, split))
    except csv.Error as error:
        raise DataError(f"{where} is not CSV: {error}.", f"its columns are {_COLUMNS}") from error
    if not rows:
        raise DataError(f"{where} names no image.", f"its columns are {_COLUMNS}")
    return rows


def _advice(path: str) -> str:
    return "write / instead of \\" if "\\" in path else "give paths relative to labels.csv"

"""Model repositories on disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def place(file: Path, repository: Path, name: str, version: str) -> Path:
    """Copy a model file to where the repository has this version of this model."""
    folder = repository / name / version
    folder.mkdir(parents=True)
    return Path(shutil.copy(file, folder / "model.onnx"))

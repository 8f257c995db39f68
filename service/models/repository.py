"""Where models come from: one file, or a model repository with the layout that Triton and KServe use.

models/            given to `ducat serve models/`
  cats/
    1/model.onnx
    2/model.onnx
  digits/
    1/model.onnx
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from ducat_serve.errors import DataError, UsageError

log = logging.getLogger("ducat_serve.service")
FILE = "model.onnx"
CHECKPOINT = "model.safetensors"
ONLY_VERSION = "1"  # of a model that is served from one file
# What may stand in a URL and in a metric's label.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Repository:
    """The models below a path, as they are on disk now.

    Args:
        path: a model file; or a folder with `model.onnx` in it; or one with NAME/VERSION/model.onnx.
        name: of the model where the path is one; None for its file's own name.

    Raises UsageError where the name cannot name a model.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = None if name is None else _checked_name(name)
        self._is_folder = path.is_dir()  # for good: a folder that goes away does not become a file

    @property
    def only_name(self) -> str | None:
        """What the one model of this path is called; None where there may be any number."""
        if not self._is_folder:
            return self._name or _name_of(self._path)
        if (self._path / FILE).exists():
            return self._name or Path(FILE).stem
        return None

    def find(self) -> Mapping[str, Mapping[str, Path]]:
        """Files by name and version, sorted; version 1 and the file's own name where the path is one model.

        Folders that are no version are left out, with a warning, and so are hidden ones.
        Raises DataError where there is no model, UsageError for a folder that cannot name one, or a name for several.
        """
        if (only := self.only_name) is not None:
            return {only: {ONLY_VERSION: self._path / FILE if self._is_folder else self._path}}
        if self._name is not None:
            raise UsageError(
                f"--name is for one model, and {self._path} is a repository, whose folders name its models.",
                f"ducat serve {self._path}",
            )
        found: dict[str, dict[str, Path]] = {}
        for file in sorted(self._path.glob(f"*/*/{FILE}")):
            name, version = file.parent.parent.name, file.parent.name
            if name.startswith("."):  # a bin or a checkout of the file system's own
                log.warning("%s is not served: '%s' begins with a dot", file, name)
                continue
            _checked_name(name)
            if not _VERSION.fullmatch(version):  # half copied, put aside: as Triton does
                log.warning("%s is not served: '%s' is no version (1, 2, 3, ...)", file, version)
                continue
            found.setdefault(name, {})[version] = file
        if not found:
            raise DataError(
                f"There is neither {FILE} nor NAME/VERSION/{FILE} in {self._path}.",
                self._next_step(),
            )
        return found

    def _next_step(self) -> str:
        if (self._path / CHECKPOINT).is_file():  # a run that was not exported
            return f"ducat export {shlex.quote(str(self._path))}"
        return "give a model.onnx, a folder with one, or a run folder that was trained"


def _name_of(file: Path) -> str:
    """Of a single file: its own name, as far as that can be in a URL."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-.")[:64] or "model"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name a model.", "rename it with letters, digits and . _ -, at most 64 of them"
        )
    return name

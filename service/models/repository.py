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
from collections.abc import Iterator, Mapping
from pathlib import Path

from ducat_serve.errors import DataError, UsageError, command_line

log = logging.getLogger("ducat_serve.service")
FILE = "model.onnx"
CHECKPOINT = "model.safetensors"
ONLY_VERSION = "1"  # of a model that is served from one file
# What may stand in a URL and in a metric's label.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RENAME = "rename it with letters, digits and . _ -, at most 64 of them, the first no sign"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class Repository:
    """The models below a path, as they are on disk now.

    Args:
        path: a model file; or a folder with `model.onnx` in it; or one with NAME/VERSION/model.onnx.
        name: of the model where the path is one; None for its file's own name.

    Raises UsageError where the name cannot name a model, or a folder is both one model and several.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = None if name is None else _checked_name(name)
        # Both for good: a folder that goes away does not become a file, and no file that somebody puts into a
        # repository hides its models from the next reload.
        self._is_folder = path.is_dir()
        self._is_one = not self._is_folder or (path / FILE).exists()
        if self._is_folder and self._is_one and (inner := next(self._versions(), None)) is not None:
            raise UsageError(
                f"{path} is both one model and a repository: it holds {FILE} and {inner[2].relative_to(path)}.",
                f"move {path / FILE} out of it, or serve that alone: {command_line('ducat', 'serve', path / FILE)}",
            )

    @property
    def only_name(self) -> str | None:
        """What the one model of this path is called; None where there may be any number."""
        if not self._is_folder:
            return self._name or _name_of(self._path)
        if self._is_one:
            return self._name or Path(FILE).stem
        return None

    def find(self) -> Mapping[str, Mapping[str, Path]]:
        """Files by name and version, sorted; version 1 and the file's own name where the path is one model.

        What is neither a model's folder nor a version's is left out, with a warning: it must not keep the models
        beside it from being loaded. Raises DataError where there is no model, UsageError for a name for several.
        """
        if (only := self.only_name) is not None:
            return {only: {ONLY_VERSION: self._path / FILE if self._is_folder else self._path}}
        if self._name is not None:
            raise UsageError(
                f"--name is for one model, and {self._path} is a repository, whose folders name its models.",
                f"ducat serve {self._path}",
            )
        if (self._path / FILE).exists():
            log.warning(
                "%s is not served: it lies in a repository, outside of NAME/VERSION", self._path / FILE
            )
        found: dict[str, dict[str, Path]] = {}
        for name, version, file in self._versions():
            found.setdefault(name, {})[version] = file
        if not found:
            raise DataError(
                f"There is neither {FILE} nor NAME/VERSION/{FILE} in {self._path}.",
                self._next_step(),
            )
        return found

    def _versions(self) -> Iterator[tuple[str, str, Path]]:
        """Name, version and file of everything in a repository, sorted; the others are named in the log."""
        for file in sorted(self._path.glob(f"*/*/{FILE}")):
            name, version = file.parent.parent.name, file.parent.name
            if name.startswith("."):  # a bin or a checkout of the file system's own
                log.warning("%s is not served: '%s' begins with a dot", file, name)
            elif not _NAME.fullmatch(name):
                log.warning("%s is not served: '%s' cannot name a model; %s", file, name, _RENAME)
            elif not _VERSION.fullmatch(version):  # half copied, put aside: as Triton does
                log.warning("%s is not served: '%s' is no version (1, 2, 3, ...)", file, version)
            else:
                yield name, version, file

    def _next_step(self) -> str:
        if (self._path / CHECKPOINT).is_file():  # a run that was not exported
            return f"ducat export {shlex.quote(str(self._path))}"
        return "give a model.onnx, a folder with one, or a run folder that was trained"


def _name_of(file: Path) -> str:
    """Of a single file: its own name, as far as that can be in a URL."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-.")[:64] or "model"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a model.", _RENAME)
    return name

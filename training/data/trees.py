"""A zip archive or a folder as the same thing: names and bytes. Archives are read in place, never unpacked."""

from __future__ import annotations

import functools
import hashlib
import threading
import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from ducat_serve.errors import DataError


class Tree(Protocol):
    """Files by their POSIX path relative to the root."""

    source: Path

    def names(self) -> list[str]:
        """All file paths, sorted."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below ``prefix`` (which ends in "/"), as far as they are known."""
        ...

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises DataError where it is corrupt."""
        ...

    def digest(self) -> str:
        """SHA-256 that changes when the contents do."""
        ...


def open_tree(path: Path) -> Tree:
    """Open a zip archive or a folder.

    Raises:
        DataError: missing, not a zip, truncated, or holding paths that point outside of it.
    """
    if path.is_dir():
        return FolderTree(path)
    return ZipTree(path)


class FolderTree:
    """A folder on disk. Its digest covers names, sizes and modification times, not every byte."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def names(self) -> list[str]:
        return self._names

    @functools.cached_property
    def _names(self) -> list[str]:
        return sorted(p.relative_to(self.source).as_posix() for p in self.source.rglob("*") if p.is_file())

    def folders(self, prefix: str) -> list[str]:
        folder = self.source / prefix
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def read(self, name: str) -> bytes:
        try:
            return (self.source / name).read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read {self.source / name}: {error.strerror}.") from error

    def digest(self) -> str:
        # The path keeps apart two folders whose files happen to agree in name, size and time.
        digest = hashlib.sha256(f"{self.source.resolve()}\n".encode())
        for name in self.names():
            stat = (self.source / name).stat()
            digest.update(f"{name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


class ZipTree:
    """A zip archive read in place, so nothing can be written outside of any folder."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(source)
            self._names = sorted(i.filename for i in self._zip.infolist() if not i.is_dir())
        except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
            raise _corrupt(source, str(error)) from error
        for name in self._names:
            refuse_escape(name, source)

    def names(self) -> list[str]:
        return self._names

    def folders(self, prefix: str) -> list[str]:
        entries = (i.filename for i in self._zip.infolist() if i.is_dir() and i.filename.startswith(prefix))
        return sorted({entry[len(prefix) :].split("/")[0] for entry in entries} - {""})

    def read(self, name: str) -> bytes:
        try:
            with self._lock:  # ZipFile shares one file position
                return self._zip.read(name)
        except (zipfile.BadZipFile, OSError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
            raise _corrupt(self.source, f"{name}: {error}") from error
        except Exception as error:  # zlib.error and friends
            raise _corrupt(self.source, f"{name}: {type(error).__name__}: {error}") from error

    def digest(self) -> str:
        with self.source.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_escape(name: str, source: Path) -> None:
    """Raise DataError for a member path that leaves its archive ("zip slip")."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts[:1]):
        raise DataError(
            f"{source} holds the path '{name}', which points outside of the archive; nothing was read.",
            "do not use this archive; get it from its original source",
        )


def _corrupt(source: Path, detail: str) -> DataError:
    return DataError(
        f"{source} is not a readable zip archive; it is truncated or corrupt ({detail}).",
        f"delete {source} and run the command again to download it, or copy it again",
    )

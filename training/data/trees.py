"""A zip or tar archive or a folder as the same thing: names and bytes. Archives are read in place, never unpacked."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import zipfile
from contextlib import nullcontext
from pathlib import Path, PurePosixPath

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.tar import TarFileSystem
from fsspec.implementations.zip import ZipFileSystem

from ducat_serve.errors import DataError
from ducat_serve.folder_walk import files_below

MAX_FILE_BYTES = 64 << 20  # of an image or a list of labels; an archive of megabytes can hold gigabytes
# Whose decompression can be stopped at a number of bytes. The others give whatever a few bytes of input unfold to.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


class BrokenFileError(DataError):
    """A file of a data set is damaged or out of bounds; the others may be sound."""


class Tree:
    """The files of a zip or uncompressed tar archive or a folder, by their POSIX path relative to its root.

    Links in a tar archive are left out; those in a folder are followed, to files and to folders.

    Args:
        source: the archive or folder.
        is_download: whether ducat downloads it where it is not there.

    Raises:
        DataError: missing, not such an archive, truncated, holding paths that point outside of it, or a folder with
            something below it that cannot be read.
    """

    def __init__(self, source: Path, *, is_download: bool = False) -> None:
        self.source = source
        self._is_download = is_download
        self._is_folder = source.is_dir()
        # fsspec does not promise that several threads can read one archive; files of a folder are apart.
        self._lock = nullcontext() if self._is_folder else threading.Lock()
        try:
            if self._is_folder:
                self._files = DirFileSystem(str(source.absolute()), LocalFileSystem())
            elif source.suffix.lower() == ".tar":
                self._files = TarFileSystem(source.open("rb"))
            else:  # an open file, because fsspec reads "::" and "://" in a path as parts of a URL
                self._files = ZipFileSystem(source.open("rb"))
            self._names = _files_in(source) if self._is_folder else self._files_in_archive()
        except DataError:
            raise
        except Exception as error:  # zipfile, codecs and the operating system have their own
            raise self._unreadable("", error) from error

    def names(self) -> list[str]:
        """All file paths, sorted."""
        return self._names

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders directly below ``prefix`` (which ends in "/")."""
        if not self._files.isdir(prefix):
            return []
        paths = self._files.ls(prefix, detail=False)
        return sorted(PurePosixPath(path).name for path in paths if self._files.isdir(path))

    def read(self, name: str, most: int = MAX_FILE_BYTES) -> bytes:
        """A file's bytes.

        Raises:
            BrokenFileError: it is corrupt, or larger than ``most`` bytes, 64 MiB unless given.
            DataError: the system refuses to read it.
        """
        try:
            with self._lock:
                method = self._files.info(name).get("compress_type", zipfile.ZIP_STORED)
                if method not in _BOUNDED:
                    raise self._refused(name, "is packed by another method than deflate")
                with self._files.open(name) as file:
                    # Not what the archive says it is, but what comes out; one byte more tells which it was.
                    content: bytes = file.read(most + 1)
        except DataError:
            raise
        except Exception as error:
            raise self._unreadable(name, error) from error
        if len(content) > most:
            raise self._refused(name, f"is larger than {most >> 20} MiB")
        return content

    def read_text(self, name: str) -> str:
        """A file of UTF-8 text. Raises DataError as `read` does, and where it is none."""
        try:
            return self.read(name).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.source}: {name} is not UTF-8 text ({error}).") from error

    def digest(self) -> str:
        """SHA-256 that changes when the contents do. That of a folder covers names, sizes and modification times,
        not every byte."""
        if not self._is_folder:
            with self.source.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        # The path keeps apart two folders whose files happen to agree in name, size and time.
        digest = hashlib.sha256(os.fsencode(f"{self.source.resolve()}\n"))
        for name in self._names:
            stat = (self.source / name).stat()
            # Two files that change places keep size and modification time; on Linux a rename changes st_ctime.
            times = f"{stat.st_mtime_ns}|{stat.st_ctime_ns}"
            digest.update(os.fsencode(f"{name}|{stat.st_size}|{times}\n"))
        return digest.hexdigest()

    def _files_in_archive(self) -> list[str]:
        found = self._files.find("")
        for name in found:
            refuse_escape(name, self.source)
        return [name for name in found if self._files.isfile(name) and not self._is_link(name)]

    def _is_link(self, name: str) -> bool:
        """Whether it is a link of a tar archive, which says where it leads; files there say so with nothing."""
        return bool(self._files.info(name).get("linkname"))

    def _refused(self, name: str, what: str) -> BrokenFileError:
        return BrokenFileError(
            f"{self.source}: {name} {what}; nothing in a data set has to be.",
            "do not use this data set, or pack it again without that file",
        )

    def _unreadable(self, name: str, error: Exception) -> DataError:
        if self._is_folder:
            place = getattr(error, "filename", None) or self.source / name
            return DataError(
                f"Cannot read {place}: {getattr(error, 'strerror', None) or error}.",
                "see to it that it is there and may be read, or remove it from the data set",
            )
        suffix = self.source.suffix.lower()
        if not name and suffix not in (".zip", ".tar"):
            return DataError(
                f"{self.source} is neither a folder nor a zip or tar archive.",
                "give a folder, a .zip or an uncompressed .tar",
            )
        if isinstance(error, OSError) and error.errno:  # the system's refusal, not a reader's
            return cannot_read(self.source, error)
        detail = str(error) or type(error).__name__
        again = f"delete {self.source} and run the command again to download it"
        if name:
            return BrokenFileError(
                f"{self.source}: {name} is truncated or corrupt ({detail}).",
                again
                if self._is_download
                else "copy it again from where it came from, or train with --skip-broken, which leaves it out",
            )
        kind = "tar" if suffix == ".tar" else "zip"
        return DataError(
            f"{self.source} is not a readable {kind} archive; it is truncated or corrupt ({detail}).",
            again if self._is_download else "copy it again from where it came from, or make it anew",
        )


def cannot_read(archive: Path, error: OSError) -> DataError:
    """For an archive that the system does not give us, whatever is in it."""
    return DataError(
        f"Cannot read {archive}: {error.strerror}.", "see to it that it is there and may be read"
    )


def _files_in(folder: Path) -> list[str]:
    """The files below a folder, as an archive of it would name them. Raises OSError for what cannot be read."""

    def refuse(error: OSError) -> None:
        raise error

    found = files_below(folder, refuse, hidden=True)
    return sorted(path.relative_to(folder).as_posix() for path in found if _is_file(path))


def _is_file(path: Path) -> bool:
    """Whether it is a regular file. Links that lead nowhere are none, as FIFOs and devices are not."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return False


def refuse_escape(name: str, source: Path) -> None:
    """Raise DataError for a member path that leaves its archive ("zip slip")."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or any(":" in part for part in path.parts[:1]):
        raise DataError(
            f"{source} holds the path '{name}', which points outside of the archive; nothing was read.",
            "do not use this archive; get it from its original source",
        )

"""Download an archive: resumable, checked by size and digest, renamed only when whole."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ducat_serve.atomic import cannot_write
from ducat_serve.errors import DataError, VerificationError
from ducat_serve.output import Output

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30
_REMEDY = "free some space, or choose another folder with --data-dir"


@dataclass(frozen=True)
class Archive:
    """A file on the web, with what it must be. ``size`` in bytes; ``md5`` as its authors publish it."""

    url: str
    size: int
    md5: str

    @property
    def filename(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def download(archive: Archive, folder: Path, output: Output) -> Path:
    """Download ``archive`` into ``folder`` and return its path. A started `.part` file is continued.

    Of several processes one downloads, and the others wait for it.

    Raises:
        DataError: unreachable, or another size or digest than expected (the `.part` is then removed).
        DucatError: the folder is not writable.
    """
    target = folder / archive.filename
    part = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _opened_alone(part, output)
    except OSError as error:
        raise cannot_write(part, error, _REMEDY) from error
    with held:
        if target.is_file():  # another process was faster
            part.unlink()
            return target
        output.say(f"Downloading {archive.url} ({archive.size:,} bytes) to {target}")
        _complete(archive, part, output)
        _check(archive, part)
        part.replace(target)
    return target


def _opened_alone(part: Path, output: Output) -> BinaryIO:
    """The `.part` file, made where there is none, and locked against other downloads of it until it is closed."""
    while True:
        file = part.open("ab")
        try:
            _lock(file, part, output)
            if part.exists() and os.path.samestat(os.fstat(file.fileno()), part.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # whoever held it has renamed or removed it since


def _lock(file: BinaryIO, part: Path, output: Output) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        output.say(f"Waiting for another process, which downloads {part.name.removesuffix('.part')} already.")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a disk that knows no locks; a single download works there as well
        return


def _complete(archive: Archive, part: Path, output: Output) -> None:
    try:
        _fetch(archive, part, output)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cannot_write(part, error, _REMEDY) from error
        reason = getattr(error, "reason", error)
        kept = f" What arrived is kept in {part}." if part.stat().st_size else ""
        if not kept:
            part.unlink()
        raise DataError(
            f"Cannot download {archive.url}: {reason}.{kept}",
            f"run the command again to go on, or put {archive.filename} into {part.parent} yourself",
        ) from error


def _fetch(archive: Archive, part: Path, output: Output) -> None:
    done = part.stat().st_size
    if done >= archive.size:
        return
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != 206:  # the server sends the whole file again
            done = 0
        with (
            part.open("ab" if done else "wb") as file,
            output.progress("Downloading", archive.size) as advance,
        ):
            advance(done)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
                if file.tell() > archive.size:
                    break
            file.flush()
            os.fsync(file.fileno())


def _check(archive: Archive, part: Path) -> None:
    size = part.stat().st_size
    if size < archive.size:
        raise DataError(
            f"{archive.url} ended after {size:,} of {archive.size:,} bytes; they are kept in {part}.",
            "run the command again to go on",
        )
    md5 = _md5(part)
    if size != archive.size or md5 != archive.md5:
        part.unlink()
        raise DataError(
            f"{archive.url} gave {size:,} bytes with MD5 {md5}, expected {archive.size:,} with {archive.md5}. "
            "The file was removed.",
            "run the command again, or get the archive from another mirror",
        )


def verify(archive: Archive, path: Path) -> None:
    """Raise VerificationError where the file at ``path`` is not the archive that its authors published."""
    size, md5 = path.stat().st_size, _md5(path)
    if size != archive.size or md5 != archive.md5:
        raise VerificationError(
            f"{path} has {size:,} bytes with MD5 {md5}, its authors published {archive.size:,} with {archive.md5}.",
            f"delete {path} and download it again",
        )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()

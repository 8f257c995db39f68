"""Write files so that a crash or a full disk never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ducat_serve.errors import DucatError

# Of any command: not all have --out, and some write a copy of what comes with the package to the current folder.
_NEXT_STEP = "free some space, write to another folder, or run it in another one"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success sync it and rename it over ``path``.

    A link stays one, and what it leads to is replaced; permissions stay. On any error the temporary file is removed and
    an existing ``path`` stays as it was.

    Raises:
        DucatError: the folder is not writable, the disk is full, or ``path`` is a folder or a device.
    """
    place = _place(path)
    try:
        _require_file(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; an artefact should have the permissions of any new file.
        temporary.chmod(permissions(place, 0o666))
        sync(temporary)
        temporary.replace(place)
    except OSError as error:
        raise cannot_write(path, error) from error
    else:
        with contextlib.suppress(OSError):  # some file systems cannot; the file is there in any case
            sync(place.parent)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Path, next_step: str = _NEXT_STEP) -> None:
    """Raise DucatError where no file can be written to ``path``: before hours of work, not after. Leaves nothing.

    Folders that are not there yet are made when the file is written.
    """
    folder = next(parent for parent in _place(path).parents if parent.exists())
    try:
        _require_file(path)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise cannot_write(path, error, next_step) from error


def _require_file(path: Path) -> None:
    """Raise OSError for what a file must not be put in the place of, such as /dev/null."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "it is a device or a pipe")


def _place(path: Path) -> Path:
    """Where a file is in the end, be ``path`` a link or relative."""
    return Path(os.path.realpath(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises DucatError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` atomically. Raises DucatError as `replacing` does."""
    write_bytes(path, text.encode())


def cannot_write(path: Path, error: OSError, next_step: str = _NEXT_STEP) -> DucatError:
    """Build the error for a file that could not be written; a file that was there before still is."""
    return DucatError(
        f"Cannot write {path}: {error.strerror or error}. A file that was there before is unchanged.",
        next_step,
    )


def permissions(place: Path, new: int) -> int:
    """Of what is put at ``place``: those of what is there stay, and else ``new`` has what the umask leaves of it."""
    if place.exists():
        return stat.S_IMODE(place.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return new & ~umask


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on the disk before this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

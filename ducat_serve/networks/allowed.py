"""Which modules of the user's own may be imported for a network.

A checkpoint names the network that it belongs to, and importing a module runs its code. So a file never decides what is
imported: `package.module:factory` is built only where somebody named it, by `--network` or by `allow`. Networks of
torchvision and timm need no such word, since only names that these packages list are looked up.
"""

from __future__ import annotations

from pathlib import Path

from ducat_serve.errors import UsageError

_names: set[str] = set()
_folders: list[Path] = []


def allow(name: str) -> None:
    """Let this process import the module of `package.module:factory`."""
    _names.add(name)


def import_from(folder: Path) -> None:
    """Let this process import such modules from a folder, beside the installed packages."""
    _folders[:] = [folder.resolve()]


def options_for(network: str) -> list[str]:
    """What the next command on a checkpoint of ``network`` has to be given again; nothing unless it was named here."""
    if network not in _names:
        return []
    return ["--network", network, *(word for folder in _folders for word in ("--import-from", str(folder)))]


def is_anything_allowed() -> bool:
    """Whether somebody named a module of their own."""
    return bool(_names)


def require_allowed(name: str) -> Path | None:
    """The folder to import a module from; None means installed packages alone.

    Raises UsageError where nobody named the module.
    """
    if name not in _names:
        raise UsageError(
            f"The network is {name}, somebody's own code, which is imported only if you name it.",
            f"give --network {name}; in Python, call ducat_serve.networks.allowed.allow({name!r}) first",
        )
    return _folders[0] if _folders else None

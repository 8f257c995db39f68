"""API keys: who is asking. Several, compared in constant time, read again when their file changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path

from ducat_serve.errors import DataError, UsageError
from service.settings import KEY, KEY_IN_WORDS

log = logging.getLogger("ducat_serve.service")
_LOOK_EVERY_SECONDS = 1.0
# Of a client, in logs and in the audit log: addresses too, but nothing that looks like another field there.
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_ANOTHER = "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes another"


class Keys:
    """Names by key, from a file and from text (an environment variable), both `NAME:KEY`.

    Args:
        file: one `NAME:KEY` per line; empty lines and lines that start with # are skipped.
        text: the same, separated by commas; None where there is none.
        admin_key: must be nobody's.

    Raises:
        DataError: the file cannot be read. UsageError: a line that is no key; its number is named, never its text. A
            text without any key, a file without any and no text, a key of two names, or one that is also the admin key.
    """

    def __init__(self, file: Path | None, text: str | None, admin_key: str | None = None) -> None:
        self._file = file
        self._admin = None if admin_key is None else _digest(admin_key)
        self._fixed = {} if text is None else _parse(text.split(","), "DUCAT_SERVE_API_KEYS")
        if text is not None and not self._fixed:
            raise UsageError(
                "DUCAT_SERVE_API_KEYS is set but holds no key.",
                "set it to NAME:KEY,..., or unset DUCAT_SERVE_API_KEYS",
            )
        self._stamp = self._look()
        self._names = self._read()
        self._looked = time.monotonic()

    @property
    def are_required(self) -> bool:
        return self._file is not None or bool(self._fixed)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for an unknown one. Takes as long for a wrong key as for a right one."""
        self._refresh()
        digest = _digest(key)
        found = None
        for known, name in self._names.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _refresh(self) -> None:
        if self._file is None or time.monotonic() - self._looked < _LOOK_EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._names, self._stamp = self._read(), stamp
            log.info("API keys were read again: %d keys", len(self._names))
        except (DataError, UsageError) as error:
            log.error("The API keys stay as they were: %s", error.cause)

    def _look(self) -> tuple[int, int, int] | None:
        if self._file is None:
            return None
        try:
            status = self._file.stat()
        except OSError as error:
            raise DataError(f"Cannot read the API keys in {self._file}: {error.strerror}.") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> Mapping[bytes, str]:
        names = dict(self._fixed)
        for digest, name in self._read_file().items():
            _add(names, digest, name)
        if self._file is not None and not names:  # a server that is ready, and refuses everybody
            raise UsageError(
                f"{self._file} holds no key.",
                "add a line NAME:KEY; python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes a KEY",
            )
        if self._admin is not None and self._admin in names:
            raise UsageError(
                f"The admin key is also the key of '{names[self._admin]}', who would be an admin too.",
                _ANOTHER,
            )
        return names

    def _read_file(self) -> Mapping[bytes, str]:
        if self._file is None:
            return {}
        try:
            lines = self._file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"Cannot read the API keys in {self._file}: {error}.") from error
        return _parse(lines, str(self._file))


def _parse(lines: list[str], source: str) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, colon, key = text.partition(":")
        if not colon or not KEY.fullmatch(key):
            raise UsageError(
                f"{source}, entry {number}: it is not NAME:KEY, where a KEY has {KEY_IN_WORDS}.",
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes a key",
            )
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{source}, entry {number}: its NAME is not 1 to 64 letters, digits and . _ @ - in ASCII.",
                "rename that client, as in team-a:KEY or alice@example.org:KEY",
            )
        _add(names, _digest(key), name)
    return names


def _add(names: dict[bytes, str], digest: bytes, name: str) -> None:
    """Raises UsageError where the key is another's: what one of the two does would be charged to the other."""
    if (other := names.setdefault(digest, name)) != name:
        raise UsageError(f"'{other}' and '{name}' have the same key.", _ANOTHER)


def _digest(key: str) -> bytes:
    """Of equal length for every key, so that comparing tells nothing of theirs."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

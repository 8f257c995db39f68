"""The audit log: a line of JSON for every prediction, in a file of its own. Never the image, only its hash.

Lines are written by a thread, so that a slow disk holds up nobody. Where they cannot be written (a full disk, a
folder that is gone) they wait in memory and are tried again; once ``MOST_WAITING`` of them wait, no prediction is
made any more, since it could not be recorded. The file is found by its name before every write: one that was renamed
(logrotate) is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import queue
import shlex
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictions
from service.telemetry.logs import utc

log = logging.getLogger("ducat_serve.service")
MOST_WAITING = 10_000  # predictions: some 5 MB
Images = Sequence[bytes] | NDArray[np.uint8]  # files, or pixels [N, H, W, channels] in C order
_PRIVATE, _OF_OTHERS = 0o600, 0o077  # permissions
_RETRY_SECONDS = 0.2
_STOP_SECONDS = 3.0  # for what still waits when the server ends


@dataclass(frozen=True)
class Origin:
    """Whose predictions they are, and by what they were made."""

    request_id: str | None
    key: str | None  # its name
    model: str
    version: str
    weights_digest: str
    function_digest: str  # also tells files of the same weights apart, such as float32 and int8
    precision: str
    labels: Sequence[str]


class AuditLog:
    """Appends to ``path``, which only its owner may read; a warning says where that cannot be had.

    Raises DataError where the file cannot be opened, or is a device or a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None ends the thread
        self._waiting = 0  # lines that are not in the file; changed with the lock held
        self._lock = threading.Lock()
        self._give_up_at = math.inf
        self._file: int | None = self._open()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="audit-hash")
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Predictions that went out and are not in the file yet."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Whether no more predictions could be recorded."""
        return self._waiting >= MOST_WAITING

    async def digests(self, images: Images) -> list[str]:
        """SHA-256 of each image as it was sent; off the event loop, since large ones take milliseconds."""
        return await asyncio.get_running_loop().run_in_executor(self._hashing, _digests, images)

    def record(self, origin: Origin, digests: Sequence[str], predictions: Predictions) -> None:
        """Queue a line for every image; never waits."""
        now = utc(time.time())
        confidences = predictions.confidence
        lines = [
            {
                "time": now,
                "request_id": origin.request_id,
                "key": origin.key,
                "model": origin.model,
                "version": origin.version,
                "weights_digest": origin.weights_digest,
                "function_digest": origin.function_digest,
                "precision": origin.precision,
                "label": origin.labels[label],
                "class_id": label,
                "confidence": round(float(confidence), 6),
                "image_sha256": digest,
            }
            for label, confidence, digest in zip(
                predictions.label.tolist(), confidences, digests, strict=True
            )
        ]
        with self._lock:
            self._waiting += len(lines)
        for line in lines:
            self._lines.put(json.dumps(line, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        """Write what waits, for some seconds at most; blocks."""
        self._give_up_at = time.monotonic() + _STOP_SECONDS
        self._lines.put(None)
        self._thread.join(_STOP_SECONDS + 2 * _RETRY_SECONDS)
        self._hashing.shutdown(wait=False)
        if self._waiting:
            log.error("%d predictions are not in the audit log %s, and are lost", self._waiting, self._path)

    def _open(self) -> int:
        hint = "ducat serve MODEL --audit-log audit.jsonl"
        try:
            # O_NONBLOCK: a pipe without a reader is refused instead of waited for.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            file = os.open(self._path, flags, _PRIVATE)
        except OSError as error:
            raise DataError(f"Cannot write the audit log {self._path}: {error.strerror}.", hint) from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise DataError(f"The audit log {self._path} is not a file.", hint)
        self._make_private(file)
        return file

    def _make_private(self, file: int) -> None:
        """A file that was there may be readable to all, and it says who sent what."""
        if not os.fstat(file).st_mode & _OF_OTHERS:
            return
        with contextlib.suppress(OSError):  # it is another user's, or its file system knows no permissions
            os.fchmod(file, _PRIVATE)
        if (mode := os.fstat(file).st_mode) & _OF_OTHERS:
            log.warning(
                "Others may open the audit log %s (%s), and it cannot be made private; as its owner: chmod 600 %s",
                *(self._path, stat.filemode(mode), shlex.quote(str(self._path))),
            )

    def _write_all(self) -> None:
        ended = False
        while not ended:
            lines = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    lines.append(self._lines.get_nowait())
            ended = None in lines
            batch = [line for line in lines if line is not None]
            if batch and not self._write_until_done(b"".join(batch)):
                return
            with self._lock:
                self._waiting -= len(batch)
        if self._file is not None:
            os.close(self._file)

    def _write_until_done(self, text: bytes) -> bool:
        """Try again and again; False where the server ends before it works."""
        failed = False
        while True:
            try:
                self._append(text)
            except (OSError, DataError) as error:
                if not failed:
                    log.error("The audit log %s cannot be written, so its lines wait: %s", self._path, error)
                failed = True
                if time.monotonic() > self._give_up_at:
                    return False
                time.sleep(_RETRY_SECONDS)
            else:
                if failed:
                    log.warning("The audit log %s is written again", self._path)
                return True

    def _append(self, text: bytes) -> None:
        """All of it or nothing: half a line would be taken back."""
        self._follow_rotation()
        assert self._file is not None
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(text):
                written += os.write(self._file, text[written:])
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def _follow_rotation(self) -> None:
        if self._file is not None and self._is_current(self._file):
            return
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._file = self._open()

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except OSError:
            return False


def _digests(images: Images) -> list[str]:
    return [hashlib.sha256(image).hexdigest() for image in images]

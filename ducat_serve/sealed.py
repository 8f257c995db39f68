"""ONNX files that can be checked without an ONNX parser.

A sealed file ends in one more `metadata_props` record: key `ducat_sha256`, value the SHA-256 of every byte
before it. Protocol buffers allow a repeated field to be appended to a serialised message, so any ONNX
reader still reads the file, and the serving side checks it with nothing but hashlib.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from ducat_serve.errors import DataError, VerificationError, command_line
from ducat_serve.regular_file import read_regular_file

SEAL_KEY = "ducat_sha256"
_DIGEST_LENGTH = 64
# ModelProto.metadata_props is field 14; StringStringEntryProto has key = 1, value = 2; wire type 2 = bytes.
_ENTRY = bytes([0x0A, len(SEAL_KEY)]) + SEAL_KEY.encode() + bytes([0x12, _DIGEST_LENGTH])
_PREFIX = bytes([(14 << 3) | 2, len(_ENTRY) + _DIGEST_LENGTH]) + _ENTRY
SEAL_LENGTH = len(_PREFIX) + _DIGEST_LENGTH


def seal(model: bytes) -> bytes:
    """Append the seal to a serialised ModelProto."""
    return model + _PREFIX + hashlib.sha256(model).hexdigest().encode()


def is_sealed(path: Path) -> bool:
    """Whether a file ends in a seal, be it a right one: then `ducat export` wrote it."""
    with path.open("rb") as file:
        length = file.seek(0, io.SEEK_END)
        file.seek(max(0, length - SEAL_LENGTH))
        return file.read().startswith(_PREFIX)


def read_sealed(path: Path) -> bytes:
    """Read a sealed ONNX file and check every byte of it.

    Raises:
        DataError: no such file, or not sealed by `ducat export`: another kind of file, or a truncated one.
        VerificationError: changed since it was sealed.
    """
    path = Path(path)
    data = read_regular_file(path, str(path), _next_step(path))
    if path.suffix == ".safetensors":
        raise DataError(
            f"{path} is a checkpoint; this needs its export (.onnx).", command_line("ducat", "export", path)
        )
    body, tail = data[:-SEAL_LENGTH], data[-SEAL_LENGTH:]
    if not tail.startswith(_PREFIX):
        raise DataError(
            f"{path} was not written by ducat (its metadata is missing) or is truncated.",
            f"{_next_step(path)}; a file of others can be measured ({_measured(path)}), and its torch network imported "
            "and served (ducat import)",
        )
    if tail[len(_PREFIX) :] != hashlib.sha256(body).hexdigest().encode():
        raise VerificationError(
            f"{path} was changed after it was exported (SHA-256 mismatch).",
            _next_step(path),
        )
    return data


def _measured(path: Path) -> str:
    command = command_line("ducat", "evaluate", path, "--input", "NCHW", "--scale", "1")
    return f"{command} --dataset NAME --eps 8/255"


def _next_step(path: Path) -> str:
    """To export again, where the checkpoint is beside the file."""
    if path.suffix == ".onnx":
        checkpoint = path.with_suffix(".safetensors")
        if os.path.isfile(checkpoint):  # noqa: PTH113 (which does not raise in a folder that nobody may look into)
            return command_line("ducat", "export", checkpoint, "--out", path)
    return "name a .onnx file that `ducat export` wrote, or a bundled model (`ducat models`)"

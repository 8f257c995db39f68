"""What the server and a decoding process say to each other over a pipe: a fixed head, then bytes.

A process says `READY` once it can decode. A request is `REQUEST` and an image file. An answer is `ANSWER` and the
pixels, or the words of an `ImageError` as `code:message` in UTF-8, at most `MAX_WORDS` bytes. It repeats the request's
number, which nobody can guess: a process that an image has taken over cannot answer a later request in advance. No
pickle: the process that decodes untrusted files is not trusted either.

The system ends a process by SIGXCPU that takes more CPU time for an image than any sound one: see `cpu_seconds`.
"""

from __future__ import annotations

import math
import struct

READY = b"+"
NUMBER = 16  # bytes
REQUEST = struct.Struct(f"<{NUMBER}sQIIBQ")  # number, most pixels, height, width, channels, bytes of the file
ANSWER = struct.Struct(f"<{NUMBER}s?Q")  # number, whether it decoded, bytes that follow
MAX_WORDS = 4096
CPU_SECONDS = 5  # the fewest
_PIXELS_A_SECOND = 5_000_000  # of the slowest format some four times as many are decoded


def cpu_seconds(max_pixels: int) -> int:
    """The most seconds of CPU time for an image of at most so many pixels."""
    return max(CPU_SECONDS, math.ceil(max_pixels / _PIXELS_A_SECOND))

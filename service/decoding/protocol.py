"""What the server and a decoding process say to each other over a pipe: a fixed head, then bytes.

A process says `READY` once it can decode. A request is `REQUEST` and an image file. An answer is `ANSWER` and the
pixels, or the words of an `ImageError` as `code:message` in UTF-8. No pickle: the process that decodes untrusted files
is not trusted either.
"""

from __future__ import annotations

import struct

READY = b"+"
REQUEST = struct.Struct("<QIIBQ")  # most pixels, height, width, channels, bytes of the file
ANSWER = struct.Struct("<?Q")  # whether it decoded, bytes that follow

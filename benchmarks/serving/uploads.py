"""What clients send: PNG files of smooth random pictures, as one-part forms."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BOUNDARY = "ducat-benchmark"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Pictures of coloured blobs, uint8 [count, H, W, 3]; they compress as photographs of that size do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    height, width = size
    blobs = [Image.fromarray(blob).resize((width, height), Image.Resampling.BICUBIC) for blob in coarse]
    noise = rng.normal(0, 8, (count, height, width, 3))
    return (np.stack([np.asarray(blob) for blob in blobs]) + noise).clip(0, 255).astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def form(field: str, file: bytes) -> bytes:
    """A multipart form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="image.png"\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + file + f"\r\n--{BOUNDARY}--\r\n".encode()

"""Bodies of requests: .npy files, and tensors of the Open Inference Protocol as JSON and as bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version=version)
    return buffer.getvalue()


def tensor(data: Any, **changes: Any) -> dict[str, Any]:
    """An inference request with one 8x8 image as JSON."""
    return {
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": data, **changes}]
    }


def binary_tensor(count: int, size: Any, **more: Any) -> dict[str, Any]:
    """The JSON of an inference request whose ``count`` 8x8 images follow it as ``size`` bytes."""
    shape = {"name": "images", "datatype": "UINT8", "shape": [count, 8, 8, 3]}
    return {"inputs": [{**shape, "parameters": {"binary_data_size": size}}], **more}


def binary(
    header: Any, data: bytes, length: str | None = None, path: str = "/v2/models/model/infer"
) -> dict[str, Any]:
    """A request of the binary tensor extension."""
    text = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)) if length is None else length}
    return {"url": path, "content": text + data, "headers": headers}

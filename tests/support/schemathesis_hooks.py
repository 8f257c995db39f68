"""What schemathesis cannot know: images that a model can read, and tensors whose parts fit together.

Named in tests/support/schemathesis.toml. Only requests that are meant to be right are changed.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import schemathesis
from hypothesis import strategies as st

from service.api.open_inference import MAX_JSON_PARTS
from tests.support.http_client import DIGITS, encode
from tests.support.request_bodies import binary_tensor, npy, tensor

HEADER = "Inference-Header-Content-Length"
IMAGES = [encode(image, kind) for image in DIGITS[:2] for kind in ("PNG", "JPEG", "WEBP", "BMP")]


images = st.sampled_from(IMAGES)
schemathesis.openapi.media_type(
    "image/*", images, aliases=["image/png", "image/jpeg", "image/webp", "image/bmp"]
)
schemathesis.openapi.media_type("application/octet-stream", images)
schemathesis.openapi.media_type("application/x-npy", st.sampled_from([npy(DIGITS[:1]), npy(DIGITS[:2])]))
schemathesis.openapi.format("byte", images.map(lambda data: base64.b64encode(data).decode()))


@schemathesis.hook
def before_call(_: Any, case: schemathesis.Case[Any], kwargs: Any) -> None:
    """A model that there is; a tensor of its shape, and the length of the JSON before its bytes where there are any."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    for name, value in (("model", "model"), ("version", "1")):
        if name in case.query:
            case.query[name] = value
    if case.path.startswith("/samples/"):
        case.path_parameters["name"] = "digit.png"
    if not case.path.endswith("/infer"):
        return
    case.headers.pop(HEADER, None)
    if case.media_type == "application/json":
        given: Any = case.body
        # Below the bound that the description states: no schema can express how many objects there are in all.
        parts = json.dumps(given)
        extra = {} if max(parts.count("{"), parts.count("[")) >= MAX_JSON_PARTS - 5 else given
        case.body = {**extra, **tensor(DIGITS[0].ravel().tolist())}
    else:
        text = json.dumps(binary_tensor(1, 192)).encode()
        case.headers[HEADER], case.body = str(len(text)), text + DIGITS[0].tobytes()

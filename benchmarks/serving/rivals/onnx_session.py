"""What the rivals share: the session with the settings that ours has, decoding, and the answer. No ducat package."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image


class OnnxModel:
    """The model of the environment variable MODEL; THREADS are the CPU threads of one inference."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            os.environ["MODEL"], options, providers=["CPUExecutionProvider"]
        )
        spec = json.loads(self.session.get_modelmeta().custom_metadata_map["ducat"])
        self.labels: list[str] = spec["labels"]
        self.size: tuple[int, int] = (spec["image_size"][1], spec["image_size"][0])
        self(np.zeros((1, spec["image_size"][0], spec["image_size"][1], 3), np.uint8))

    def decode(self, file: bytes) -> NDArray[np.uint8]:
        """An image file as uint8 [H, W, 3] of the model's size."""
        image = Image.open(io.BytesIO(file)).convert("RGB")
        return np.asarray(image if image.size == self.size else image.resize(self.size))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities [N, C] of images [N, H, W, 3]."""
        (logits,) = self.session.run(["logits"], {"images": images})
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def answer(self, probabilities: NDArray[np.float32]) -> dict[str, Any]:
        """The best five classes of one image."""
        order = np.argsort(-probabilities)[:5]
        top = [{"label": self.labels[i], "confidence": float(probabilities[i])} for i in order]
        return {"class_id": int(order[0]), "label": top[0]["label"], "top_k": top}

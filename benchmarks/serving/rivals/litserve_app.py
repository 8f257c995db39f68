"""LitServe + ONNX Runtime: batches of up to 32 in one worker. LitServe reads annotations: they are not postponed here.

MODEL=model.onnx THREADS=1 python litserve_app.py PORT
"""

import os
import sys

import litserve
import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from onnx_session import OnnxModel


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's own signature)
        self.model = OnnxModel()

    def decode_request(self, request: Request) -> NDArray[np.uint8]:
        return self.model.decode(request["image"].file.read())

    def batch(self, inputs: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        return np.stack(inputs)

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.model(x)

    def unbatch(self, output: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return list(output)

    # No return type: LitServe would make FastAPI check every answer against it.
    def encode_response(self, output: NDArray[np.float32]):  # type: ignore[no-untyped-def]
        return self.model.answer(output)


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=32, batch_timeout=float(os.environ.get("BATCH_TIMEOUT", "0"))),
        accelerator="cpu",
        workers_per_device=1,
        healthcheck_path="/readyz",
        fast_queue=os.environ.get("FAST_QUEUE", "0") == "1",
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=int(os.environ.get("API_SERVERS", "1")),
        log_level="warning",
        generate_client_file=False,
    )

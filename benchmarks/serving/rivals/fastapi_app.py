"""FastAPI + ONNX Runtime, as FastAPI's guide has uploads: a plain `def` endpoint, which runs in its thread pool.

MODEL=model.onnx THREADS=1 uvicorn fastapi_app:app
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, File, UploadFile
from onnx_session import OnnxModel

model = OnnxModel()
app = FastAPI()


@app.get("/readyz")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
def predict(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
    return model.answer(model(model.decode(image.file.read())[None])[0])

"""Checks of ONNX Runtime on a device, with a model that comes with the package."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ducat_serve.bundled import model_path
from ducat_serve.library.device_proof.items import Check, Figures, Skipped, require
from ducat_serve.predictor import Device, Predictor, import_onnxruntime
from ducat_serve.sealed import read_sealed

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
TENSORRT = "TensorrtExecutionProvider"
OUTPUTS = ["logits", "label", "dummy_mass"]
_MODEL = "cifar10-small"
_BUCKETS = (1, 8, 32, 128)
# ONNX Runtime multiplies in TF32 on GPUs, which rounds at 2^-11 in every layer. So this is the server's own bound.
_RELATIVE = 2e-2
_HEAVY = ("Conv", "FusedConv", "Gemm", "MatMul")


def runtime_checks(device: Device, repeats: int = 20) -> list[Check]:
    """Checks of inference on "cuda" or "cpu"; ``repeats`` is how often a timed call is made."""
    return [
        Check("onnx-provider", partial(provider, device)),
        Check("onnx-parity", partial(parity, device)),
        Check("onnx-iobinding", partial(iobinding, device)),
        Check("onnx-throughput", partial(throughput, device, repeats)),
        Check("onnx-tensorrt", tensorrt),
    ]


def provider(device: Device) -> Figures:
    """The convolutions and products of the graph run on the device, by ONNX Runtime's own profile."""
    ort = import_onnxruntime()
    with tempfile.TemporaryDirectory(prefix="ducat-profile-") as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _session(ort, device, options)
        session.run(OUTPUTS, {"images": _images(8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event["args"] for event in events if "provider" in event.get("args", {})]
    where = Counter(node["provider"] for node in nodes)
    heavy = [node for node in nodes if node["op_name"] in _HEAVY]
    require(bool(heavy), "the profile names no convolution and no matrix product")
    elsewhere = sorted({node["op_name"] for node in heavy if node["provider"] != PROVIDERS[device]})
    require(not elsewhere, f"{', '.join(elsewhere)} ran on another provider than {PROVIDERS[device]}")
    return {"onnxruntime": ort.__version__, **{f"nodes on {name}": count for name, count in where.items()}}


def parity(device: Device) -> Figures:
    """The device's logits are those of the plain graph on the CPU, but for rounding."""
    path = model_path(_MODEL, "onnx")
    images = _images(64)
    found = Predictor(path, device)(images)
    expected = Predictor(path, "cpu", threads=1, optimised=False)(images)
    scale = max(1.0, float(np.abs(expected.logits).max()))
    difference = float(np.abs(found.logits - expected.logits).max())
    require(difference <= _RELATIVE * scale, f"logits differ by {difference:.2g}, of {scale:.2g}")
    same = int((found.label == expected.label).sum())
    return {
        "largest difference": difference,
        "largest logit": scale,
        "same label": f"{same} of {len(images)}",
    }


def iobinding(device: Device) -> Figures:
    """Inputs and outputs bound to the device's memory, batches padded to fixed sizes that were warmed: same answers."""
    ort = import_onnxruntime()
    session = _session(ort, device, ort.SessionOptions())
    images = _images(max(_BUCKETS))
    for size in _BUCKETS:
        _bound(ort, session, device, images[:size])  # warms this size
    plain = session.run(OUTPUTS, {"images": images[:5]})
    padded = np.zeros((8, *images.shape[1:]), np.uint8)
    padded[:5] = images[:5]
    bound = [output[:5] for output in _bound(ort, session, device, padded)]
    difference = float(np.abs(bound[0] - plain[0]).max())
    require(
        difference <= 1e-3 * max(1.0, float(np.abs(plain[0]).max())), f"logits differ by {difference:.2g}"
    )
    return {"largest difference": difference, "sizes": ", ".join(map(str, _BUCKETS))}


def throughput(device: Device, repeats: int) -> Figures:
    """Images per second of our predictor, beside a bare session with default options and one with bound memory."""
    ort = import_onnxruntime()
    predictor = Predictor(model_path(_MODEL, "onnx"), device)
    bare = _session(ort, device, ort.SessionOptions())
    figures = Figures()
    for size in _BUCKETS:
        images = _images(size)
        ways: dict[str, Callable[[], object]] = {
            "ours": partial(predictor, images),
            "bare session": partial(bare.run, OUTPUTS, {"images": images}),
            "bound memory": partial(_bound, ort, bare, device, images),
        }
        for name, call in ways.items():
            figures[f"{name}, batch {size}, images/s"] = round(size / median_seconds(call, repeats), 1)
    return figures


def tensorrt() -> Figures:
    """The TensorRT provider, where it is installed, gives the CPU's answers."""
    ort = import_onnxruntime()
    if TENSORRT not in ort.get_available_providers():
        raise Skipped("this onnxruntime has no TensorRT provider")
    session = ort.InferenceSession(_model(), providers=[TENSORRT, *PROVIDERS.values()])
    if TENSORRT not in session.get_providers():
        raise Skipped("the TensorRT provider does not start: its libraries are not installed")
    images = _images(8)
    logits = session.run(OUTPUTS, {"images": images})[0]
    expected = Predictor(model_path(_MODEL, "onnx"), "cpu", threads=1, optimised=False)(images).logits
    difference = float(np.abs(logits - expected).max())
    require(
        difference <= _RELATIVE * max(1.0, float(np.abs(expected).max())),
        f"logits differ by {difference:.2g}",
    )
    return {"largest difference": difference}


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median over ``repeats`` calls; two before them warm up."""
    times = []
    for number in range(repeats + 2):
        started = time.perf_counter()
        call()
        if number >= 2:
            times.append(time.perf_counter() - started)
    return float(np.median(times))


def _session(ort: Any, device: Device, options: Any) -> Any:
    options.log_severity_level = 3
    if device == "cuda":
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            ort.preload_dlls()
    session = ort.InferenceSession(_model(), options, providers=[PROVIDERS[device]])
    found = session.get_providers()[0]
    require(found == PROVIDERS[device], f"the session runs on {found}, not on {PROVIDERS[device]}")
    return session


def _bound(ort: Any, session: Any, device: Device, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", ort.OrtValue.ortvalue_from_numpy(images, device, 0))
    for name in OUTPUTS:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    outputs: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
    return outputs


def _model() -> bytes:
    return read_sealed(model_path(_MODEL, "onnx"))


def _images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)

"""Weights of 7 bits beside weights of 8: what the bit is worth in accuracy, and what it does to sums on this CPU.

    python benchmarks/int8_weights.py cifar10-small cifar10 --data-dir DATA
    python benchmarks/int8_weights.py digits-small digits

"As written" is the file's graph in float32 with every rounding, which overflows nowhere: what a CPU with an int8 dot
product (VNNI) computes but for a few roundings. "Here" are this CPU's integer kernels. All test images; prints a table
in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ducat_serve.bundled import model_path
from ducat_serve.cpu import has_int8_dot_product
from ducat_serve.deployed import load
from ducat_serve.library.calibrating import calibration_images
from ducat_serve.output import Output
from ducat_serve.predictor import create_session
from export.quantise import quantise
from training.data import load_dataset

BATCH = 100


def labels(model: bytes, images: NDArray[np.uint8], *, optimised: bool) -> NDArray[np.int64]:
    """What a serialised model answers to images [N, H, W, channels], on one thread."""
    session, _ = create_session(model, "cpu", 1, optimised)
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([session.run(["label"], {"images": part})[0] for part in parts])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a bundled model")
    parser.add_argument("dataset", help="that it was trained on")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    checkpoint = load(model_path(given.model, "safetensors"))
    data = load_dataset(given.dataset, data_dir=given.data_dir, offline=True)
    test = data.test
    float32 = onnx.load(model_path(given.model, "onnx"))
    expected = labels(float32.SerializeToString(), test.images, optimised=True)
    calibration = calibration_images(checkpoint, data.train, Output(silent=True))
    print(
        f"{given.model}, {len(test.images)} test images of {data.title}; int8 dot product (VNNI): "
        f"{'yes' if has_int8_dot_product() else 'no'}\n\n"
        "| | clean accuracy, as written | here | as float32, as written | here |\n|---|---|---|---|---|\n"
        f"| float32 | {(expected == test.labels).mean():.2%} | | | |"
    )
    for bits in (7, 8):
        model = quantise(float32, calibration.images, reduced_range=bits == 7).model.SerializeToString()
        written, here = (labels(model, test.images, optimised=optimised) for optimised in (False, True))
        cells = [f"{(found == to).mean():.2%}" for to in (test.labels, expected) for found in (written, here)]
        print(f"| {bits} bits | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

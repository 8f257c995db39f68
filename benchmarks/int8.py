"""int8 beside float32: size and speed of networks with random weights, which need no training.

    python benchmarks/int8.py                     # resnet-small and resnet18, one thread, by the CPU's time
    python benchmarks/int8.py --clock wall --threads 2    # by the wall clock: for a machine that does nothing else

Configurations take turns, as in `ducat benchmark`. The CPU's time of this process does not count what others do, though
they still disturb its caches. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from serving.uploads import pictures

from ducat_serve.benchmark import inferences, measure
from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.cpu import has_int8_dot_product
from ducat_serve.deployed import build_classifier, numpy_weights
from ducat_serve.spec import ModelSpec, Normalisation
from ducat_serve.threat_model import ThreatModel
from export.calibration import Calibration
from export.onnx_writer import export_int8, export_onnx

NETWORKS = ("resnet-small", "resnet18")
BATCHES = (1, 8, 32)
SPEC = ModelSpec(
    network="resnet-small",
    num_classes=10,
    labels=tuple("0123456789"),
    channels=3,
    image_size=(32, 32),
    normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    fold="max",
    threat_model=ThreatModel(norm="linf", eps=8 / 255),
    training={},
    weights_digest="",
)


def exports(network: str, folder: Path) -> list[Path]:
    """A network with the weights that it is initialised with, in float32 and in int8."""
    torch.manual_seed(0)
    spec = SPEC.model_copy(update={"network": network})
    tensors = numpy_weights(build_classifier(spec))
    checkpoint = folder / f"{network}.safetensors"
    write_checkpoint(checkpoint, tensors, spec.model_copy(update={"weights_digest": weights_digest(tensors)}))
    float32, int8 = folder / f"{network}.onnx", folder / f"{network}-int8.onnx"
    export_onnx(checkpoint, float32)
    images = pictures(64, SPEC.image_size)
    export_int8(checkpoint, int8, images, Calibration(images, attacked=0, seed=0))
    return [float32, int8]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="by the chosen clock, for each network")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="more than one only with --clock wall")
    given = parser.parse_args()
    if given.threads > 1 and given.clock == "cpu":
        parser.error("the CPU's time of several threads is a sum, and says nothing of latency: --clock wall")
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    dot_product = "yes" if has_int8_dot_product() else "no"
    print(f"int8 dot product (VNNI): {dot_product}; threads: {given.threads}; {given.clock} time\n")
    print(
        "| network | size | batch | float32, ms | int8, ms | int8 is faster by |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            float32, int8 = exports(network, Path(folder))
            size = int8.stat().st_size / float32.stat().st_size
            timings = measure(
                inferences([float32, int8], "cpu", [given.threads], BATCHES), given.seconds, clock
            )
            median = {(t.configuration.precision, t.configuration.batch): t.latency(50) for t in timings}
            for batch in BATCHES:
                full, small = (1000 * median[precision, batch] for precision in ("float32", "int8"))
                print(
                    f"| {network} | {size:.3f} | {batch} | {full:.2f} | {small:.2f} | {full / small:.2f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

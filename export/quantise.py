"""int8: static quantisation of the network's body, by ONNX Runtime's own quantiser.

Every weighted layer but the heads takes activations of 8 bits, with ranges that were seen on calibration images, and
weights with a scale for each output channel. Everything before the first such layer and from the head on stays in
float32: preprocessing, head, fold and switch. On a grid of 8 bits logits tie, and ties decide differently before and
after the fold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ducat_serve.errors import DucatError
from ducat_serve.predictor import import_onnxruntime

_WEIGHTED = ("Conv", "Gemm", "MatMul")
# What stands between weighted layers, and loses nothing that the next layer would not lose in any case.
_BETWEEN = ("Add", "Relu", "MaxPool", "Concat")
_BATCH = 32  # calibration images at a time


@dataclass(frozen=True)
class Quantised:
    """A quantised graph, and the names of its tensors that a differentiable copy needs (`Quantisation`)."""

    model: onnx.ModelProto
    pixels: str
    raw_logits: tuple[str, ...]


def quantise(model: onnx.ModelProto, images: NDArray[np.uint8], *, reduced_range: bool) -> Quantised:
    """Quantise an exported float32 graph; the one that is given is left as it is.

    Args:
        model: as `export.onnx_writer` makes it, of one network or of two towers.
        images: that fix the ranges of the activations, uint8 [N, H, W, channels]. The range of an activation is all
            that they reach: attacked images go further than clean ones, and what is cut off is what an attack uses.
        reduced_range: weights of 7 bits (`Quantisation`).

    Raises:
        DucatError: the graph has no layer that could be quantised beside its heads.
    """
    graph = _Graph(model.graph)
    heads = graph.heads()
    body = graph.body(heads)
    if not any(graph.is_weighted(node) for node in body):
        raise DucatError(
            "The network has no convolution or linear layer before its head, so int8 would change nothing.",
            "export it with --precision float32",
        )
    changed = _quantised_by_onnxruntime(model, images, [node.name for node in body], reduced_range)
    return Quantised(changed, graph.pixels(), tuple(graph.answer_of(head) for head in heads))


class _Graph:
    """The nodes of a graph in their order, and what comes from what."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.input = graph.input[0].name
        self._weights = {tensor.name for tensor in graph.initializer}

    def is_weighted(self, node: onnx.NodeProto) -> bool:
        """Whether it multiplies by weights of the network."""
        return node.op_type in _WEIGHTED and any(name in self._weights for name in node.input)

    def heads(self) -> list[onnx.NodeProto]:
        """The last weighted layers: those from which no other weighted layer follows."""
        weighted = [node for node in self.nodes if self.is_weighted(node)]
        return [node for node in weighted if not any(map(self.is_weighted, self.after([node])))]

    def body(self, heads: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """What is quantised: weighted layers before the heads, and what stands between them."""
        weighted = [node for node in self.nodes if self.is_weighted(node) and node not in heads]
        behind = {id(node) for node in self.after(heads)}
        between = [
            node for node in self.after(weighted) if node.op_type in _BETWEEN and id(node) not in behind
        ]
        chosen = {id(node) for node in (*weighted, *between)}
        return [node for node in self.nodes if id(node) in chosen]

    def after(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Every node that depends on one of these."""
        known = {name for node in nodes for name in node.output}
        found = []
        for node in self.nodes:  # a node comes after those that it takes its inputs from
            if known & set(node.input):
                known |= set(node.output)
                found.append(node)
        return found

    def pixels(self) -> str:
        """The tensor of images in [0, 1]: where the graph's input was first divided, by 255."""
        known = {self.input}
        for node in self.nodes:
            if known & set(node.input):
                if node.op_type == "Div":
                    return str(node.output[0])
                known |= set(node.output)
        raise DucatError("The exported graph does not scale its images as export writes it.")

    def answer_of(self, head: onnx.NodeProto) -> str:
        """What a head answers: its output, with the bias that some exporters add in a node of its own."""
        users = [node for node in self.nodes if head.output[0] in node.input]
        if len(users) != 1 or (head.op_type, users[0].op_type) != ("MatMul", "Add"):
            return str(head.output[0])
        is_bias = any(name in self._weights for name in users[0].input)
        return str(users[0].output[0] if is_bias else head.output[0])


def _quantised_by_onnxruntime(
    model: onnx.ModelProto, images: NDArray[np.uint8], nodes: list[str], reduced_range: bool
) -> onnx.ModelProto:
    import_onnxruntime()
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The calibration images in batches, as ONNX Runtime asks for them."""

        def __init__(self) -> None:
            self._batches = _batches(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    before = onnx.ModelProto()
    before.CopyFrom(model)
    # Unless a graph says that it was optimised for it, as the exporter's is, ONNX Runtime advises to do that first.
    before.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory(prefix="ducat-int8-") as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            before,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            op_types_to_quantize=[*_WEIGHTED, *_BETWEEN],
            per_channel=True,
            reduce_range=reduced_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(target)


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))

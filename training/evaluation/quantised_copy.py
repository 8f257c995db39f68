"""A differentiable copy of an int8 file's graph in torch: the same scales, zero points and weights, with gradients.

Rounding has no gradient, so scores alone flatter an int8 file. Here a value is rounded to its 8-bit level as the file
does it, and its gradient passes as if it had not been rounded: the straight-through estimator (Bengio et al. 2013,
arXiv 1308.3432). What lies outside of the range is cut off and has no gradient; so a range also does what a ReLU did.

The graph is read from the pixels to what a head answers, before the fold. Its arithmetic is float32 where the file's
kernels add integers: where a value lies between two levels, the two may round it differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from training.evaluation.quantised_operators import OPERATORS, Attributes, Operator, UnknownOperator


class QuantisedCopy(nn.Module):
    """Pixels to what one head of an int8 graph answers.

    Args:
        model: the file's model.
        pixels: the name of the tensor of images in [0, 1], [N, channels, H, W].
        answer: the name of the tensor that a head answers, [N, width].

    Raises:
        UnknownOperator: an operator on the way is not among those that networks of ours, and common ones, have.
    """

    def __init__(self, model: onnx.ModelProto, pixels: str, answer: str) -> None:
        super().__init__()
        self._pixels, self._answer = pixels, answer
        self._input = model.graph.input[0].name
        constants = {
            tensor.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
            for tensor in model.graph.initializer
        }
        self._steps: list[_Step] = []
        for node in _between(model.graph, pixels, answer):
            step = _Step.of(node)
            if self._input in step.inputs and node.op_type != "Shape" and self._input != pixels:
                raise UnknownOperator(
                    "its graph goes on from images past their scaling, which the copy does not know"
                )
            if all(name in constants for name in step.inputs if name):
                constants |= step.compute(constants)  # the weights as they are after rounding
            else:
                self._steps.append(step)
        used = {name for step in self._steps for name in step.inputs if name in constants}
        self._names = {name: f"constant_{number}" for number, name in enumerate(sorted(used))}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, constants[name])

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to [N, width]."""
        values = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        # Some graphs ask how many images there are, of the graph's own input, whose channels come last.
        values[self._input] = images.detach().permute(0, 2, 3, 1)
        values[self._pixels] = images
        for step in self._steps:
            values |= step.compute(values)
        return values[self._answer]


@dataclass(frozen=True)
class _Step:
    """One node of the graph."""

    operator: Operator
    inputs: tuple[str, ...]  # an empty name stands for an optional input that is not given
    outputs: tuple[str, ...]
    attributes: Attributes

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Step:
        if node.op_type not in OPERATORS:
            raise UnknownOperator(f"its graph has the operator {node.op_type}, which the copy does not know")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return cls(OPERATORS[node.op_type], tuple(node.input), tuple(node.output), attributes)

    def compute(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self.operator([values[name] if name else None for name in self.inputs], self.attributes)
        if isinstance(found, Tensor):
            return {self.outputs[0]: found}
        return dict(zip(self.outputs, found, strict=True))


def _between(graph: onnx.GraphProto, start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes that ``end`` is computed by, in order, without those that ``start`` is computed by."""
    needed, chosen = {end}, []
    for node in reversed(graph.node):
        if needed & set(node.output) and start not in node.output:
            needed |= set(node.input)
            chosen.append(node)
    return chosen[::-1]

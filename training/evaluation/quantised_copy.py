"""A differentiable copy of an int8 file's graph in torch: the same scales, zero points and weights, with gradients.

Rounding has no gradient, so scores alone flatter an int8 file. Here a value is rounded to its 8-bit level as the file
does it, and its gradient passes as if it had not been rounded: the straight-through estimator (Bengio et al. 2013,
arXiv 1308.3432). What lies outside of the range is cut off and has no gradient; so a range also does what a ReLU did.

The graph is read from the pixels to what a head answers, before the fold. Its arithmetic is float32 where the file's
kernels add integers: where a value lies between two levels, the two may round it differently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ducat_serve.errors import DucatError

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs, Attributes], Tensor]


class UnknownOperator(DucatError):
    """The graph has an operator that the copy does not know."""


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
        constants = {
            tensor.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(tensor)))
            for tensor in model.graph.initializer
        }
        self._steps: list[_Step] = []
        for node in _between(model.graph, pixels, answer):
            step = _Step.of(node)
            if all(name in constants for name in step.inputs if name):
                constants[step.output] = step.compute(constants)  # the weights as they are after rounding
            else:
                self._steps.append(step)
        used = {name for step in self._steps for name in step.inputs if name in constants}
        self._names = {name: f"constant_{number}" for number, name in enumerate(sorted(used))}
        for name, buffer in self._names.items():
            self.register_buffer(buffer, constants[name])

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to [N, width]."""
        values = {name: self.get_buffer(buffer) for name, buffer in self._names.items()}
        values[self._pixels] = images
        for step in self._steps:
            values[step.output] = step.compute(values)
        return values[self._answer]


@dataclass(frozen=True)
class _Step:
    """One node of the graph."""

    operator: Operator
    inputs: tuple[str, ...]  # an empty name stands for an optional input that is not given
    output: str
    attributes: Attributes

    @classmethod
    def of(cls, node: onnx.NodeProto) -> _Step:
        if node.op_type not in OPERATORS:
            raise UnknownOperator(f"its graph has the operator {node.op_type}, which the copy does not know")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        return cls(OPERATORS[node.op_type], tuple(node.input), node.output[0], attributes)

    def compute(self, values: Mapping[str, Tensor]) -> Tensor:
        return self.operator([values[name] if name else None for name in self.inputs], self.attributes)


def _between(graph: onnx.GraphProto, start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes that ``end`` is computed by, in order, without those that ``start`` is computed by."""
    needed, chosen = {end}, []
    for node in reversed(graph.node):
        if needed & set(node.output) and start not in node.output:
            needed |= set(node.input)
            chosen.append(node)
    return chosen[::-1]


class _Round(torch.autograd.Function):
    """Round half to even, as ONNX does; the gradient passes straight through."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _quantize(inputs: Inputs, _attributes: Attributes) -> Tensor:
    """A float tensor to its levels, as float numbers; one scale for the whole tensor, as activations have."""
    values, scale, zero_point = _required(inputs, 3)
    limits = torch.iinfo(zero_point.dtype)
    levels = _Round.apply(values / scale) + zero_point.to(values.dtype)
    clamped: Tensor = levels.clamp(limits.min, limits.max)
    return clamped


def _dequantize(inputs: Inputs, attributes: Attributes) -> Tensor:
    levels, scale, *zero_point = inputs
    assert levels is not None
    assert scale is not None
    shape = [1] * levels.ndim
    if scale.numel() > 1:
        shape[attributes.get("axis", 1)] = -1
    offset = zero_point[0] if zero_point else None
    shifted = levels.float() if offset is None else levels.float() - offset.float().view(shape)
    return shifted * scale.view(shape)


def _conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, weight = _required(inputs[:2], 2)
    bias = inputs[2] if len(inputs) > 2 else None
    stride, dilation = (list(attributes.get(name, (1, 1))) for name in ("strides", "dilations"))
    padded = _padded(values, attributes, 0.0)
    return F.conv2d(padded, weight, bias, stride, 0, dilation, attributes.get("group", 1))


def _padded(values: Tensor, attributes: Attributes, by: float) -> Tensor:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnknownOperator("its graph pads automatically, which the copy does not know")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return F.pad(values, (left, right, top, bottom), value=by) if any((top, left, bottom, right)) else values


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b = _required(inputs[:2], 2)
    a = a.t() if attributes.get("transA", 0) else a
    b = b.t() if attributes.get("transB", 0) else b
    product = (a @ b) * float(attributes.get("alpha", 1.0))
    added = inputs[2] if len(inputs) > 2 else None
    return product if added is None else product + added * float(attributes.get("beta", 1.0))


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, weight, bias, mean, variance = _required(inputs, 5)
    return F.batch_norm(values, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    padded = _padded(_required(inputs, 1)[0], attributes, -torch.inf)
    strides = list(attributes.get("strides", (1, 1)))
    return F.max_pool2d(padded, list(attributes["kernel_shape"]), strides)


def _average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = _required(inputs, 1)[0]
    kernel, strides = list(attributes["kernel_shape"]), list(attributes.get("strides", (1, 1)))
    sums = F.avg_pool2d(_padded(values, attributes, 0.0), kernel, strides)
    if attributes.get("count_include_pad", 0):
        return sums
    counted = F.avg_pool2d(_padded(torch.ones_like(values), attributes, 0.0), kernel, strides)
    return sums / counted


def _reduce_mean(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = _required(inputs[:1], 1)[0]
    axes = attributes.get("axes")
    if len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].tolist()
    return values.mean(dim=list(axes or range(values.ndim)), keepdim=bool(attributes.get("keepdims", 1)))


def _reshape(inputs: Inputs, _attributes: Attributes) -> Tensor:
    values, shape = _required(inputs, 2)
    sizes = [values.shape[i] if size == 0 else int(size) for i, size in enumerate(shape.tolist())]
    return values.reshape(sizes)


def _clip(inputs: Inputs, _attributes: Attributes) -> Tensor:
    values = _required(inputs[:1], 1)[0]
    low, high = (float(i) if i is not None else None for i in [*inputs[1:], None, None][:2])
    return values.clamp(low, high)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, axis = _required(inputs, 1)[0], attributes.get("axis", 1)
    return values.flatten(axis) if axis == 1 else values.reshape(int(np.prod(values.shape[:axis])), -1)


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    values = _required(inputs, 1)[0]
    slope, shift = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    return (values * slope + shift).clamp(0, 1)


def _axes_of(inputs: Inputs) -> list[int]:
    axes = inputs[1] if len(inputs) > 1 else None
    assert axes is not None
    return [int(axis) for axis in axes.tolist()]


def _unsqueeze(inputs: Inputs, _attributes: Attributes) -> Tensor:
    values = _required(inputs[:1], 1)[0]
    for axis in sorted(_axes_of(inputs)):
        values = values.unsqueeze(axis)
    return values


def _required(inputs: Inputs, count: int) -> list[Tensor]:
    found = [tensor for tensor in inputs if tensor is not None]
    assert len(found) == count
    return found


def _elementwise(function: Callable[..., Tensor]) -> Operator:
    return lambda inputs, _attributes: function(*(tensor for tensor in inputs if tensor is not None))


OPERATORS: dict[str, Operator] = {
    "Add": _elementwise(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(
        [tensor for tensor in inputs if tensor is not None], dim=attributes["axis"]
    ),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _elementwise(torch.div),
    "Erf": _elementwise(torch.erf),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _elementwise(lambda values: values.mean(dim=(2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(F.hardswish),
    "Identity": _elementwise(lambda values: values),
    "MatMul": _elementwise(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _elementwise(torch.mul),
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sub": _elementwise(torch.sub),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": lambda inputs, attributes: _required(inputs, 1)[0].permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}

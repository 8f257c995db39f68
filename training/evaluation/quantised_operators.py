"""The operators of ONNX (opset 18) that the copy of an int8 graph knows, in torch, with gradients.

Each follows the ONNX operator specification: what is not given has that document's default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.errors import DucatError

Attributes = Mapping[str, Any]
Inputs = Sequence[Tensor | None]
Operator = Callable[[Inputs, Attributes], Tensor | tuple[Tensor, ...]]


class UnknownOperator(DucatError):
    """The graph has an operator that the copy does not know."""


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


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    values, weight = _required(inputs[:2], 2)
    bias = inputs[2] if len(inputs) > 2 else None
    over = values.shape[attributes.get("axis", -1) :]
    return F.layer_norm(values, over, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _softmax(inputs: Inputs, attributes: Attributes) -> Tensor:
    return _required(inputs, 1)[0].softmax(dim=attributes.get("axis", -1))


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.gelu(_required(inputs, 1)[0], approximate=attributes.get("approximate", b"none").decode())


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = list(_required(inputs, 1)[0].shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))])


def _expand(inputs: Inputs, _attributes: Attributes) -> Tensor:
    """To the larger of both shapes, as a sum with zeros of the one that is given would have."""
    values, shape = _required(inputs, 2)
    return values.expand(np.broadcast_shapes(tuple(values.shape), tuple(shape.tolist())))


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    """Along one axis, whose place the axes of the indices take; negative indices count from the end."""
    values, indices = _required(inputs, 2)
    axis = attributes.get("axis", 0) % values.ndim
    size = values.shape[axis]
    chosen = values.index_select(axis, (indices.flatten() % size).long())
    return chosen.reshape(values.shape[:axis] + indices.shape + values.shape[axis + 1 :])


def _slice(inputs: Inputs, _attributes: Attributes) -> Tensor:
    """From opset 10 on everything but the values is a tensor; ends beyond the size mean the size."""
    values, starts, ends = _required(inputs[:3], 3)
    axes, steps = ([*inputs[3:], None, None])[:2]
    for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = number if axes is None else int(axes[number])
        step = 1 if steps is None else int(steps[number])
        if step < 1:
            raise UnknownOperator("its graph slices backwards, which the copy does not know")
        chosen = range(values.shape[axis])[start:end:step]
        values = values.index_select(axis, torch.tensor(chosen, dtype=torch.long))
    return values


def _squeeze(inputs: Inputs, _attributes: Attributes) -> Tensor:
    values = inputs[0]
    assert values is not None
    return values.squeeze() if len(inputs) == 1 else values.squeeze(_axes_of(inputs))


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    kinds = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.INT32: torch.int32,
        onnx.TensorProto.INT64: torch.int64,
    }
    if attributes["to"] not in kinds:
        kind = onnx.TensorProto.DataType.Name(attributes["to"])
        raise UnknownOperator(f"its graph casts to {kind}, which the copy does not know")
    return _required(inputs, 1)[0].to(kinds[attributes["to"]])


def _range(inputs: Inputs, _attributes: Attributes) -> Tensor:
    start, limit, step = (tensor.item() for tensor in _required(inputs, 3))
    return torch.arange(start, limit, step)


def _split(inputs: Inputs, attributes: Attributes) -> tuple[Tensor, ...]:
    """Into parts of given sizes, or into so many equal ones, of which the last may be smaller."""
    values = _required(inputs[:1], 1)[0]
    axis = attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        return torch.split_with_sizes(values, inputs[1].tolist(), axis)
    if "num_outputs" not in attributes:
        raise UnknownOperator("its graph splits without saying into what, which the copy does not know")
    size, parts = values.shape[axis], attributes["num_outputs"]
    length = -(-size // parts)
    lengths = [min(length, size - start) for start in range(0, length * parts, length)]
    return torch.split_with_sizes(values, lengths, axis)


def _div(inputs: Inputs, _attributes: Attributes) -> Tensor:
    """Of whole numbers, as in sizes, the whole part."""
    a, b = _required(inputs, 2)
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


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
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(
        [tensor for tensor in inputs if tensor is not None], dim=attributes["axis"]
    ),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": _div,
    "Erf": _elementwise(torch.erf),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _elementwise(lambda values: values.mean(dim=(2, 3), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _elementwise(F.hardswish),
    "Identity": _elementwise(lambda values: values),
    "LayerNormalization": _layer_norm,
    "MatMul": _elementwise(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _elementwise(torch.mul),
    "Pow": _elementwise(torch.pow),
    "QuantizeLinear": _quantize,
    "Range": _range,
    "ReduceMean": _reduce_mean,
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": lambda inputs, attributes: _required(inputs, 1)[0].permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}

"""What a sealed file may hold, read from its bytes without an ONNX parser.

A model of ours is one graph of ordinary operators whose tensors are all inside the file. Refused are: tensors in other
files, which no seal covers; loops, conditions and functions, which can run for ever; operators of other domains.

Only the few fields that say so are read. Field numbers are those of onnx.proto (https://onnx.ai/onnx/api/classes.html).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from ducat_serve.errors import DataError, VerificationError

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE_INITIALIZER = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS = 5, 10
_ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE_TENSORS = (6, 11), (22, 23)
_TENSOR_EXTERNAL_DATA, _TENSOR_LOCATION = 13, 14
_SPARSE_TENSORS = (1, 2)
_FUNCTION_NODE = 7
_CONTROL_FLOW = {"Loop", "Scan", "If", "SequenceMap"}
_DOMAINS = {"", "ai.onnx"}
_LARGEST_TAG = 2**32 - 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check_graph(model: bytes, source: str) -> str:
    """Check a serialised ModelProto; returns the SHA-256 of its graph.

    Args:
        source: where it came from, for messages.

    Raises:
        DataError: it is not a ModelProto. VerificationError: it has more or fewer graphs than one, or holds what a
            model of ours never does.
    """
    try:
        return _check_model(memoryview(model))
    except _Refused as refusal:
        error = DataError if isinstance(refusal, _NotOnnx) else VerificationError
        raise error(f"{source}: {refusal}.", "ducat export model.safetensors --onnx") from None


def keeps_tensors_elsewhere(model: bytes) -> bool:
    """Whether a serialised ModelProto of anybody refers to tensors in other files, in any of its graphs.

    Raises ValueError where it is no ModelProto.
    """
    try:
        graphs = _messages(memoryview(model), _MODEL_GRAPH)
        if not graphs:
            raise ValueError("it is not an ONNX model")
        functions = _messages(memoryview(model), _MODEL_FUNCTIONS)
        nodes = [node for function in functions for node in _messages(function, _FUNCTION_NODE)]
        return any(map(_graph_elsewhere, graphs)) or any(map(_node_elsewhere, nodes))
    except _Refused as refusal:
        raise ValueError(str(refusal)) from None


def _graph_elsewhere(graph: memoryview) -> bool:
    tensors = [*_messages(graph, _GRAPH_INITIALIZER), *_sparse_tensors(graph, _GRAPH_SPARSE_INITIALIZER)]
    return any(map(_tensor_elsewhere, tensors)) or any(map(_node_elsewhere, _messages(graph, _GRAPH_NODE)))


def _node_elsewhere(node: memoryview) -> bool:
    for attribute in _messages(node, _NODE_ATTRIBUTE):
        tensors = _messages(attribute, _ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS)
        tensors += _sparse_tensors(attribute, *_ATTRIBUTE_SPARSE_TENSORS)
        graphs = _messages(attribute, *_ATTRIBUTE_GRAPHS)
        if any(map(_tensor_elsewhere, tensors)) or any(map(_graph_elsewhere, graphs)):
            return True
    return False


def _tensor_elsewhere(tensor: memoryview) -> bool:
    return any(
        number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_LOCATION and value != 0)
        for number, value in _fields(tensor)
    )


def _sparse_tensors(holder: memoryview, *numbers: int) -> list[memoryview]:
    """Values and indices of the sparse tensors in some fields."""
    return [t for sparse in _messages(holder, *numbers) for t in _messages(sparse, *_SPARSE_TENSORS)]


def _messages(holder: memoryview, *numbers: int) -> list[memoryview]:
    return [_message(value) for number, value in _fields(holder) if number in numbers]


class _Refused(Exception):
    """Why a file is refused."""


class _NotOnnx(_Refused):
    """No protocol buffer, or only the beginning of one."""


def _check_model(model: memoryview) -> str:
    graphs = []
    for number, value in _fields(model):
        if number == _MODEL_FUNCTIONS:
            raise _Refused("it defines functions, which no model of ours does")
        if number == _MODEL_GRAPH:
            graphs.append(_message(value))
    if len(graphs) != 1:
        raise _Refused(f"it holds {len(graphs)} graphs instead of one")
    for number, value in _fields(graphs[0]):
        if number == _GRAPH_NODE:
            _check_node(_message(value))
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_message(value))
        elif number == _GRAPH_SPARSE_INITIALIZER:
            raise _Refused("it holds sparse tensors, which no model of ours does")
    return hashlib.sha256(graphs[0]).hexdigest()


def _check_node(node: memoryview) -> None:
    operator = domain = ""
    for number, value in _fields(node):
        if number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
        elif number == _NODE_ATTRIBUTE:
            _check_attribute(_message(value))
    if operator in _CONTROL_FLOW:
        raise _Refused(f"its graph holds the operator {operator}, which may run for ever")
    if domain not in _DOMAINS:
        raise _Refused("its graph holds an operator of another domain than ONNX's own")


def _check_attribute(attribute: memoryview) -> None:
    for number, value in _fields(attribute):
        if number in _ATTRIBUTE_GRAPHS:
            raise _Refused("its graph holds another graph, which no model of ours does")
        if number in _ATTRIBUTE_SPARSE_TENSORS:
            raise _Refused("it holds sparse tensors, which no model of ours does")
        if number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _check_tensor(_message(value))


def _check_tensor(tensor: memoryview) -> None:
    if _tensor_elsewhere(tensor):
        raise _Refused("it keeps tensors in another file, which its seal does not cover")


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode(errors="replace")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _NotOnnx("it is not an ONNX model")
    return value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a protocol buffer (https://protobuf.dev/programming-guides/encoding)."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag < 8 or tag > _LARGEST_TAG:
            # Protobuf cuts larger ones off, and reads another field than we would.
            raise _NotOnnx("it is not an ONNX model")
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _NotOnnx("it is not an ONNX model")
        if at + length > len(message):
            raise _NotOnnx("it is not an ONNX model, or is truncated")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _NotOnnx("it is not an ONNX model, or is truncated")

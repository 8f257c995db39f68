"""Files that are sealed, and all the same not models of ours."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ducat_serve.errors import DataError, DucatError, VerificationError
from ducat_serve.onnx_graph import check_graph
from ducat_serve.predictor import GRAPH_KEY, Predictor, create_session
from ducat_serve.sealed import SEAL_KEY, read_sealed, seal


def changed(onnx_model: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The exported model with a change and a new seal, as anybody can make one."""
    model = onnx.load_model_from_string(read_sealed(onnx_model))
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != SEAL_KEY}
    del model.metadata_props[:]
    helper.set_model_props(model, kept)
    change(model)
    target.write_bytes(seal(model.SerializeToString()))
    return target


def external_initializer(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def external_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1])
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def endless_loop(model: onnx.ModelProto) -> None:
    true = numpy_helper.from_array(np.array(True), "true")
    condition = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on_before"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on_before", TensorProto.BOOL, []),
        ],
        [condition],
    )
    model.graph.initializer.append(true)
    model.graph.node.append(helper.make_node("Loop", ["", "true"], [], body=body))


def other_domain(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("PyOp", ["images"], ["out"], domain="ai.onnx.contrib"))


def function(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function("d", "F", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])], [])
    )


def sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def sparse_constant(model: onnx.ModelProto) -> None:
    node = model.graph.node.add(op_type="Constant", output=["hidden"])
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.external_data.add(key="location", value="../secret")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (external_initializer, "tensors in another file"),
        (external_constant, "tensors in another file"),
        (endless_loop, "another graph|Loop"),
        (other_domain, "another domain"),
        (function, "functions"),
        (sparse_initializer, "sparse"),
        (sparse_constant, "sparse"),
    ],
)
def test_what_no_model_of_ours_holds_is_refused(
    change: Callable[[onnx.ModelProto], None], says: str, onnx_model: Path, tmp_path: Path
) -> None:
    path = changed(onnx_model, tmp_path / "model.onnx", change)
    with pytest.raises(VerificationError, match=says) as refused:
        Predictor(path, "cpu")
    assert refused.value.exit_code == 3


def always_three(model: onnx.ModelProto) -> None:
    """The honest model's ModelSpec and report, on a graph that does not look at its images."""
    bias = next(t for t in model.graph.initializer if t.name.endswith("fc.bias"))
    values = np.zeros(bias.dims, np.float32)
    values[3] = 1e6
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))


def test_a_spec_on_another_graph_is_refused(onnx_model: Path, tmp_path: Path) -> None:
    path = changed(onnx_model, tmp_path / "model.onnx", always_three)
    with pytest.raises(VerificationError, match="another graph than the one"):
        Predictor(path, "cpu")


def test_files_of_older_versions_have_no_digest_of_the_graph_and_load(
    onnx_model: Path, tmp_path: Path
) -> None:
    def without(model: onnx.ModelProto) -> None:
        for entry in list(model.metadata_props):
            if entry.key == GRAPH_KEY:
                model.metadata_props.remove(entry)

    Predictor(changed(onnx_model, tmp_path / "model.onnx", without), "cpu").warm_up()


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(DataError, match="is not a file"):
        Predictor(tmp_path / "model.onnx", "cpu")


def test_the_digest_is_that_of_the_graph(onnx_model: Path) -> None:
    data = read_sealed(onnx_model)
    graph = onnx.load_model_from_string(data).graph.SerializeToString(deterministic=True)
    assert check_graph(data, "model") == hashlib.sha256(graph).hexdigest()


def overlong(number: int, content: bytes) -> bytes:
    """A field whose tag has a 33rd bit, which protobuf cuts off: it is the field ``number`` to ONNX Runtime."""
    tag, value = bytearray(), (number << 3 | 2) | 1 << 32
    while value > 0x7F:
        tag.append(value & 0x7F | 0x80)
        value >>= 7
    length = bytearray()
    size = len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(tag) + bytes([value]) + bytes(length) + bytes([size]) + content


@pytest.mark.parametrize("level", ["model", "node", "tensor"])
def test_a_tag_that_protobuf_would_cut_off_is_refused(level: str, onnx_model: Path, tmp_path: Path) -> None:
    """Otherwise a graph with a loop could be merged into ours, past every check and with the same digest."""
    data = read_sealed(onnx_model)
    if level == "model":
        hidden = data + overlong(7, b"")
    else:
        inner = overlong(4, b"Loop") if level == "node" else overlong(13, b"")
        field = 1 if level == "node" else 5
        extra = bytes([field << 3 | 2, len(inner)]) + inner
        hidden = data + bytes([7 << 3 | 2, len(extra)]) + extra
    with pytest.raises((DataError, VerificationError), match=r"not an ONNX model|graphs instead"):
        check_graph(hidden, "model")


def test_onnx_runtime_reads_nothing_but_onnx(tmp_path: Path) -> None:
    """A sealed file may also be one of ONNX Runtime's own format, which it would tell by four bytes."""
    disguised = bytes([0x88, 0x01, 0, 0]) + b"ORTM" + bytes(200)
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(disguised))
    with pytest.raises(DataError):
        Predictor(path, "cpu")
    with pytest.raises(DucatError, match=r"INVALID_PROTOBUF|Protobuf parsing failed"):
        create_session(disguised, "cpu", 1, True)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        digest = check_graph(data, "bytes")
    except (DataError, VerificationError):
        return
    assert len(digest) == 64


def test_a_truncated_model_is_refused_everywhere(onnx_model: Path) -> None:
    data = read_sealed(onnx_model)
    for keep in np.random.default_rng(0).integers(1, len(data) - 500, 200):
        with pytest.raises((DataError, VerificationError)):
            check_graph(data[:keep], "model")

"""ONNX files that `ducat export` did not write: a linear classifier behind inputs of many kinds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

CLASSES, PIXELS = 10, 192


class Linear(nn.Module):
    """Ten logits of 3 x 8 x 8 pixels in [0, 1], always the same."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(CLASSES, PIXELS, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, 3, 8, 8] to logits [N, 10]."""
        return images.flatten(1) @ self.weight.T


def linear_onnx(
    path: Path,
    shape: Sequence[int | str] = ("batch", 3, 8, 8),
    *,
    nhwc: bool = False,
    kind: int = TensorProto.FLOAT,
    std: float = 1.0,
    outputs: Sequence[str] = ("logits",),
    one_image: bool = False,
) -> Path:
    """Write `Linear` as a file that takes pixels divided by ``std``, in the given order of axes and type.

    With ``one_image`` the graph has a batch of one written into it, whatever its input says. Further ``outputs``
    beside the first are its features, or the same logits where they are named "copy".
    """
    weight = Linear().weight.detach().numpy().T * std
    nodes = [helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT)]
    if nhwc:
        nodes.append(helper.make_node("Transpose", ["float"], ["ordered"], perm=[0, 3, 1, 2]))
    ordered = "ordered" if nhwc else "float"
    flatten = helper.make_node("Flatten", [ordered], ["flat"])
    nodes.append(helper.make_node("Reshape", [ordered, "size"], ["flat"]) if one_image else flatten)
    nodes.append(helper.make_node("MatMul", ["flat", "weight"], [outputs[0]]))
    sources = {"copy": outputs[0], "features": "flat"}
    nodes += [helper.make_node("Identity", [sources[name]], [name]) for name in outputs[1:]]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight, dtype=np.float32), "weight"),
            numpy_helper.from_array(np.array([1, weight.shape[0]], dtype=np.int64), "size"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path

"""ONNX files of others: what is declared of them is what they are given, and what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from ducat_serve.errors import DataError, UsageError, VerificationError
from ducat_serve.onnx_graph import keeps_tensors_elsewhere
from tests.support.foreign_onnx import Linear, linear_onnx
from training.evaluation.foreign_onnx import GREY_LEVELS, Layout, OnnxClassifier, Scale, parse_scale

IMAGES = torch.randint(256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 255
NAMES = tuple("0123456789")
PLAIN = Scale()


def opened(path: Path, layout: Layout = "NCHW", scale: Scale = PLAIN) -> OnnxClassifier:
    model = OnnxClassifier(path, layout, scale, "cpu")
    model.fit((3, 8, 8), NAMES)
    return model


@pytest.mark.parametrize(
    ("file", "layout", "scale"),
    [
        ({}, "NCHW", PLAIN),
        ({"std": 1 / 255}, "NCHW", GREY_LEVELS),
        ({"shape": ("batch", 8, 8, 3), "nhwc": True}, "NHWC", PLAIN),
        ({"kind": TensorProto.UINT8, "std": 1 / 255}, "NCHW", GREY_LEVELS),
        ({"kind": TensorProto.DOUBLE, "std": 0.25}, "NCHW", Scale((0.0,), (0.25,) * 3)),
        ({"shape": ("n", "c", "h", "w")}, "NCHW", PLAIN),
        ({"shape": (1, 3, 8, 8)}, "NCHW", PLAIN),
        ({"shape": (4, 3, 8, 8)}, "NCHW", PLAIN),
        ({"outputs": ("logits", "features")}, "NCHW", PLAIN),
        ({"one_image": True}, "NCHW", PLAIN),
    ],
)
def test_the_file_is_given_what_it_wants(
    file: dict[str, object], layout: Layout, scale: Scale, tmp_path: Path
) -> None:
    model = opened(linear_onnx(tmp_path / "their.onnx", **file), layout, scale)  # type: ignore[arg-type]
    torch.testing.assert_close(model(IMAGES), Linear()(IMAGES).detach(), rtol=1e-5, atol=1e-4)
    assert model.takes_bytes_only == (file.get("kind") == TensorProto.UINT8)


def test_mean_and_std_are_those_of_each_channel(tmp_path: Path) -> None:
    scale = parse_scale("0.1,0.2,0.3/0.5,0.25,0.125")
    model = opened(linear_onnx(tmp_path / "their.onnx"), scale=scale)
    normalised = (IMAGES - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / torch.tensor(
        [0.5, 0.25, 0.125]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(model(IMAGES), Linear()(normalised).detach(), rtol=1e-5, atol=1e-4)
    assert [parse_scale(text) for text in ("1", "255", "0/1")] == [Scale(), GREY_LEVELS, Scale()]


@pytest.mark.parametrize(
    "text", ["", "2", "128", "0.5", "0.5/", "/0.5", "0.5/0", "0.5/-1", "1/255", "nan/1", "a/b"]
)
def test_a_scale_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="none of 1, 255 and MEAN/STD"):
        parse_scale(text)


def test_a_size_that_is_left_open_is_that_of_the_data(tmp_path: Path) -> None:
    path = linear_onnx(tmp_path / "their.onnx", ("n", 3, "h", "w"))
    model = OnnxClassifier(path, "NCHW", PLAIN, "cpu")
    assert model.fit((3, 8, 8), NAMES) == ["height", "width"]
    with pytest.raises(UsageError, match="fails on an image of 3 x 16 x 16") as caught:
        model.fit((3, 16, 16), NAMES)
    assert "export it for images of that size" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "layout", "scale", "message"),
    [
        ({"shape": ("n", 8, 8, 3)}, "NCHW", PLAIN, "its axes look like --input NHWC"),
        ({"shape": ("n", 3, 4, 16)}, "NCHW", PLAIN, "does not fit images of 3 channels and 8 x 8 pixels"),
        ({"shape": ("n", 192)}, "NCHW", PLAIN, "which are no images"),
        ({"kind": TensorProto.INT64}, "NCHW", PLAIN, "which are no images"),
        ({"kind": TensorProto.UINT8}, "NCHW", PLAIN, "give --scale 255"),
        ({}, "NCHW", Scale((0.5, 0.5), (1.0,)), "--scale has 2 numbers for 3 channels"),
        ({"outputs": ("logits", "copy")}, "NCHW", PLAIN, "2 of them can be the logits of 10 classes"),
    ],
)
def test_what_does_not_fit_is_named(
    file: dict[str, object], layout: Layout, scale: Scale, message: str, tmp_path: Path
) -> None:
    path = linear_onnx(tmp_path / "their.onnx", **file)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        opened(path, layout, scale)
    assert message in str(caught.value)


def test_a_file_that_is_none_or_only_a_part_is_refused(tmp_path: Path) -> None:
    whole = linear_onnx(tmp_path / "their.onnx")
    assert not keeps_tensors_elsewhere(whole.read_bytes())
    part = tmp_path / "part.onnx"
    onnx.save(onnx.load(whole), part, save_as_external_data=True, location="rest.bin", size_threshold=0)
    assert keeps_tensors_elsewhere(part.read_bytes())
    with pytest.raises(VerificationError, match="keeps tensors in other files"):
        opened(part)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(DataError, match="not an ONNX model"):
        opened(tmp_path / "text.onnx")
    with pytest.raises(DataError, match="Cannot read"):
        opened(tmp_path / "nowhere.onnx")


def test_tensors_elsewhere_are_found_in_every_corner(tmp_path: Path) -> None:
    """In a constant inside a branch inside a function, too."""
    model = onnx.load(linear_onnx(tmp_path / "their.onnx"))
    constant = onnx.numpy_helper.from_array(np.zeros(4, dtype=np.float32), "c")
    onnx.external_data_helper.set_external_data(constant, "rest.bin")
    value = onnx.helper.make_node("Constant", [], ["c"], value=constant)
    branch = onnx.helper.make_graph([value], "branch", [], [])
    choice = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    opsets = [onnx.helper.make_opsetid("", 18)]
    model.functions.append(onnx.helper.make_function("own", "f", ["x"], ["y"], [choice], opsets))
    assert keeps_tensors_elsewhere(model.SerializeToString())

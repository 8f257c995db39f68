"""`Predictor.predict`: kinds of images, one and several, and the answer as an object."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ducat_serve.errors import DataError, UsageError
from ducat_serve.predictor import Predictor
from tests.support.http_client import DIGITS, GOOD, encode

PIXELS = DIGITS[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "digit.png"
    file.write_bytes(GOOD)
    return file


def test_every_kind_of_the_same_image_gives_the_same(predictor: Predictor, path: Path) -> None:
    expected = predictor(PIXELS[None])
    kinds = [path, str(path), GOOD, Image.open(io.BytesIO(GOOD)), PIXELS, PIXELS[..., 0], PIXELS[..., :1]]
    for kind in kinds:
        answer = predictor.predict(kind)
        assert answer.class_id == expected.label[0]
        np.testing.assert_array_equal(answer.probabilities, expected.probabilities[0])
        assert answer.dummy_mass == expected.dummy_mass[0]


def test_a_list_gives_a_list_in_its_order(predictor: Predictor) -> None:
    images = list(DIGITS[:5])
    answers = predictor.predict(images, batch_size=2)
    assert [answer.class_id for answer in answers] == predictor(DIGITS[:5]).label.tolist()
    assert predictor.predict([]) == []
    assert len(predictor.predict([GOOD])) == 1


def test_the_best_classes_come_first(predictor: Predictor) -> None:
    answer = predictor.predict(GOOD)
    top = answer.top(3)
    assert (top[0].label, top[0].confidence) == (answer.label, answer.confidence)
    assert [c.confidence for c in top] == sorted(answer.probabilities.tolist(), reverse=True)[:3]
    assert answer.label == predictor.spec.labels[answer.class_id]
    assert len(answer.top()) == 5
    assert len(answer.top(99)) == 10


def test_another_size_is_resized_as_by_the_command(predictor: Predictor) -> None:
    large = np.kron(PIXELS, np.ones((4, 4, 1), np.uint8))
    file = encode(large)
    assert predictor.predict(large).probabilities.tolist() == predictor.predict(file).probabilities.tolist()


def test_transparency_of_an_opened_image_is_laid_over_white(predictor: Predictor) -> None:
    rgba = np.dstack([PIXELS, np.zeros((8, 8), np.uint8)])
    white = np.full((8, 8, 3), 255, np.uint8)
    expected = predictor.predict(white).confidence
    assert predictor.predict(rgba).confidence == expected
    assert predictor.predict(Image.fromarray(rgba)).confidence == expected


def test_a_file_that_is_no_image_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("none")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        predictor.predict(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"Cannot read .*nowhere\.png"):
        predictor.predict([str(tmp_path / "nowhere.png")])
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"Cannot read .*pipe\.png: it is not a file"):
        predictor.predict(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="the image: not an image"):
        predictor.predict(b"none")


@pytest.mark.parametrize(
    "image", [PIXELS / 255, PIXELS[None], np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8), np.uint8)]
)
def test_an_array_that_is_no_image_is_refused(predictor: Predictor, image: np.ndarray) -> None:
    with pytest.raises(UsageError, match="An array of pixels is uint8"):
        predictor.predict(image)


@pytest.mark.parametrize(
    ("array", "step"),
    [
        (PIXELS / 255, "scale floats in [0, 1] by 255 and call .astype('uint8')"),
        (PIXELS.astype(np.int64), "call .astype('uint8'), for values from 0 to 255"),
        (np.zeros((3, 8, 8), np.uint8), "call .transpose(1, 2, 0), which puts the channels last"),
        (np.zeros((4, 8, 8, 3), np.uint8), "give the images of a batch as a list: list(array)"),
        (np.zeros((8, 8, 2), np.uint8), "give one image, with its channels last"),
    ],
)
def test_an_array_is_told_what_would_make_it_an_image(
    predictor: Predictor, array: np.ndarray, step: str
) -> None:
    with pytest.raises(UsageError) as refused:
        predictor.predict(array)
    assert refused.value.next_step == step


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_pil_image_whose_range_nobody_knows_is_refused(predictor: Predictor, mode: str) -> None:
    with pytest.raises(UsageError, match=f"mode {mode}, whose range is not known"):
        predictor.predict(Image.new("L", (8, 8)).convert(mode))


def test_what_is_no_image_at_all_is_refused(predictor: Predictor) -> None:
    for wrong in ([3], 3, None):
        given: Any = wrong
        with pytest.raises(UsageError, match=r"(int|NoneType) is no image"):
            predictor.predict(given)
    tensor: Any = torch.zeros(3, 8, 8)
    for given in (tensor, [tensor]):
        with pytest.raises(UsageError, match="Tensor of torch is no image") as refused:
            predictor.predict(given)
        assert "give .numpy() of it" in str(refused.value)


@pytest.mark.parametrize("number", [0, -1])
def test_there_is_no_fewer_than_one_thread_or_class(predictor: Predictor, number: int) -> None:
    with pytest.raises(UsageError, match=f"threads: {number} is not"):
        Predictor("digits-small", "cpu", threads=number)
    with pytest.raises(UsageError, match=f"k: {number} is not"):
        predictor.predict(PIXELS).top(number)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_image_is_refused(batch_size: int) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UsageError, match="at least one image"):
        Predictor("digits-small", "cpu").predict([image] * 3, batch_size=batch_size)

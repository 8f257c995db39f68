"""The page where several models are served."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ducat_serve.predictor import Predictor
from tests.support.browser import serving
from tests.support.http_client import DIGITS
from tests.support.model_repository import place
from tests.support.page import (
    PNG,
    expect_answer,
    label_of,
)

pytestmark = pytest.mark.slow


def test_one_of_several_models_is_chosen(
    look: Callable[..., Page], onnx_model: Path, other_model: Path, tmp_path: Path
) -> None:
    files = {("first", "1"): onnx_model, ("second", "1"): other_model, ("second", "2"): onnx_model}
    for (name, version), file in files.items():
        place(file, tmp_path, name, version)
    with serving(tmp_path) as server:
        page = look(server)
        page.get_by_label("Choose images").set_input_files(PNG)
        expect_answer(page, label_of(onnx_model, DIGITS[0]))
        chooser = page.get_by_role("combobox", name="Model")
        expect(chooser.get_by_role("option")).to_have_text([f"{name}, version {v}" for name, v in files])
        for name, version in (("second", "1"), ("second", "2")):
            file = files[name, version]
            with page.expect_response(lambda response: "/v1/predict" in response.url) as answered:
                chooser.select_option(label=f"{name}, version {version}")
            assert f"model={name}&version={version}" in answered.value.url
            assert answered.value.json()["model"]["weights_digest"] == Predictor(file).spec.weights_digest
            expect_answer(page, label_of(file, DIGITS[0]))
            expect(page.get_by_text(re.compile(f"^{name} · resnet-small"))).to_be_visible()
        beside = page.get_by_role("combobox", name="Beside it")
        beside.select_option(label="second, version 1")
        other = label_of(other_model, DIGITS[0])
        expect(page.get_by_role("heading", name="second, version 1")).to_be_visible()
        same = "the same answer" if other == label_of(onnx_model, DIGITS[0]) else "another answer"
        expect(page.locator("#beside-headline")).to_contain_text(re.compile(rf"^{other} .*{same}"))
        beside.select_option(label="nothing")
        expect(page.locator("#beside-answer")).to_be_hidden()

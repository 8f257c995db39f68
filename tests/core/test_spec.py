"""ModelSpecs that somebody else wrote."""

from __future__ import annotations

import pytest

from ducat_serve.errors import VerificationError
from ducat_serve.spec import ModelSpec


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("[" * 100_000, id="brackets in brackets"),
        pytest.param('{"a":' * 100_000, id="objects in objects"),
        pytest.param('{"schema_version": 1, "num_classes": ' + "9" * 5_000 + "}", id="5,000 digits"),
        pytest.param('{"schema_version": 1, "eps": NaN}', id="NaN"),
        pytest.param('{"schema_version": 1, "eps": -Infinity}', id="infinity"),
        pytest.param('{"schema_version": 1, "eps": 1e999}', id="a number beyond all floats"),
        pytest.param("[]", id="no object"),
        pytest.param('{"schema_version": 1}', id="no digest"),
    ],
)
def test_what_is_no_spec_is_refused_by_name(text: str) -> None:
    with pytest.raises(VerificationError, match=r"model\.onnx: ") as refused:
        ModelSpec.from_json(text, "model.onnx")
    assert refused.value.exit_code == 3

"""Every setting by itself: its kind and its range, before anything is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from pydantic import ConfigDict, create_model

from training.config import TrainConfig


def each_checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Every value by itself, as its setting has it: what is derived from it relies on its kind and range.

    Kinds are strict, since a value may come from Python code or from a file, where True is a whole number to some and
    "yes" is true. Names of no setting stay; they are refused with the whole. Raises pydantic's ValidationError.
    """
    known = {name: field for name, field in TrainConfig.model_fields.items() if name in given}
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in known.items()}
    model = create_model("Given", __config__=ConfigDict(strict=True), **fields)
    checked = model.model_validate({name: _as_python(given[name]) for name in known})
    return {**given, **{name: getattr(checked, name) for name in known}}


def _as_python(value: object) -> object:
    """Lists as tuples and whole numbers of numpy as Python's, which strict kinds would not take."""
    if isinstance(value, list):
        return tuple(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value

"""What `ducat evaluate` takes as MODEL: a model of ours, or the name of a callable that makes somebody else's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ducat_serve.cli.options import ModelPath

_CALLABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class ForeignModel:
    """`package.module:callable`."""

    name: str


class EvaluatedModel(click.ParamType[Path | ForeignModel]):
    """A path or the name of a bundled model, or `package.module:callable` where there is no such file."""

    name = "model"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | ForeignModel:
        if isinstance(value, str) and _CALLABLE.fullmatch(value) and not Path(value).exists():
            return ForeignModel(value)
        return ModelPath("safetensors").convert(value, param, ctx)

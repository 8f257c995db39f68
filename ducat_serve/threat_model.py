"""What the attacker may change: a norm and a radius. Sizes are in pixels, and pixels are in [0, 1]."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = get_args(Norm)


class ThreatModel(BaseModel):
    """What the attacker may change: a ball of radius ``eps`` (pixels in [0, 1]) in ``norm``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Norm
    eps: float = Field(gt=0, allow_inf_nan=False)

    def __str__(self) -> str:
        return f"{self.norm} {format_size(self.eps)}"


def parse_size(text: str) -> float:
    """Read ``"8/255"`` or ``"0.03"`` as a float. Raises ValueError for anything else or a negative size."""
    try:
        value = float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"'{text}' is not a size like 8/255 or 0.03") from error
    if value < 0:
        raise ValueError(f"'{text}' is negative")
    return value


def format_size(value: float) -> str:
    """Write a size the way the field does: ``8/255`` where it is a multiple of 1/255, else a decimal."""
    decimal = f"{value:.10g}"
    if len(decimal) <= 5:
        return decimal
    steps = round(value * 255)
    return f"{steps}/255" if abs(value * 255 - steps) < 1e-6 else decimal

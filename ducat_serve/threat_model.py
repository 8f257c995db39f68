"""What the attacker may change: a norm and a radius. Sizes are in pixels, and pixels are in [0, 1]."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Norm = Literal["linf", "l2", "l1"]
NORMS: tuple[Norm, ...] = get_args(Norm)
# The context in which a file is validated: those of older versions may hold an eps in grey levels, and go on loading.
FROM_FILE = {"from file": True}


class ThreatModel(BaseModel):
    """What the attacker may change: a ball of radius ``eps`` in ``norm``.

    ``eps`` is in pixels of [0, 1] and may be written as a fraction, ``"8/255"``. In linf it is at most 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    norm: Norm
    eps: float = Field(gt=0, allow_inf_nan=False)

    @field_validator("eps", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_in_pixels(self, info: ValidationInfo) -> Self:
        if self.norm == "linf" and self.eps > 1 and info.context != FROM_FILE:
            raise ValueError(
                f"eps {self.eps:g} in linf is larger than any difference of two images; it is in pixels of [0, 1]: "
                "write 8/255 for eight grey levels"
            )
        return self

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

"""The interval of a share of images."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927). Raises ValueError without trials."""
    if trials < 1:
        raise ValueError("An interval needs at least one trial.")
    weight = trials + _Z**2
    centre = (successes + _Z**2 / 2) / weight
    half = _Z / weight * sqrt(successes * (trials - successes) / trials + _Z**2 / 4)
    # The ends are exact, which rounding would not leave them.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)

"""What changes over a run: the learning rate, and how large the ball of the inner attack is.

Each is a function of the place in the run alone, so that a resumed run goes on exactly. ``done`` is the share of the
run that is done in the middle of a step, in (0, 1): no step has a learning rate of 0, which would waste it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["steps", "cosine", "one-cycle"]

_PEAK = 0.4  # of the run: where one-cycle is highest, as in Wong et al. 2020 (arXiv 2001.03994), section 5


def share_done(epoch: int, step: int, steps: int, epochs: int) -> float:
    """The share of ``epochs`` epochs of ``steps`` steps that is done in the middle of a step (counted from 0)."""
    return (epoch - 1 + (step + 0.5) / steps) / epochs


def rate_factor(schedule: Schedule, done: float, epoch: int, milestones: Sequence[int]) -> float:
    """What the peak learning rate is multiplied by.

    steps: a tenth after each milestone. cosine: from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983, without
    restarts). one-cycle: up from 0 on a straight line, and down to 0 (Smith and Topin 2018, arXiv 1708.07120).
    """
    if schedule == "steps":
        return float(0.1 ** sum(epoch > milestone for milestone in milestones))
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return done / _PEAK if done < _PEAK else (1 - done) / (1 - _PEAK)


def ramp_factor(ramp: int | None, epoch: int, step: int, steps: int) -> float:
    """What grows from 0 to 1 over ``ramp`` epochs: eps and step size of the inner attack, or the learning rate."""
    if ramp is None:
        return 1.0
    return min(1.0, (epoch - 1 + (step + 1) / steps) / ramp)

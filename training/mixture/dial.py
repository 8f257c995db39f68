"""The dial of a two-tower model: every switch that is worth having, from the robust tower alone to the standard one.

A candidate is a map (scale, power, shift, divisor) and a threshold. Its clean accuracy is that of the mixture itself,
by the very fold; a proxy chose switches that lost on both axes. Its floor is the share of val images whose mapped
margin stays at or above the threshold under attacks on the robust tower.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.spec import Switch
from ducat_serve.switch import certainty, mapped_log_posterior, normalised
from training.mixture.answers import Answers

# The largest value that the map can have, which is what a scale means whatever power and number of classes.
_LARGEST = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_POWERS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
_SHIFTS = (-2.0, -1.5, -1.0, -0.5, 0.0)
_THRESHOLDS = 64  # of each map, at evenly spaced floors
_DECIMALS = 6
# A map can be made sharper instead. Thresholds near 0 leave all probabilities alike, so that confidence says nothing
# and rounding decides; near 1 no robust tower is ever sure.
_SMALLEST, _LARGEST_THRESHOLD = 0.05, 0.95


@dataclass(frozen=True)
class Setting:
    """One place of the dial, with its clean accuracy and its floor on val images, in [0, 1]."""

    switch: Switch
    clean: float
    floor: float


def dial(answers: Answers, *, by_size: bool = True) -> list[Setting]:
    """The settings that no other one beats on both axes, from the highest floor to the highest clean accuracy.

    Args:
        by_size: also try switches that know how large the robust tower's logits are.
    """
    candidates = [
        setting
        for divisor in ((None, _divisor(answers)) if by_size else (None,))
        for largest, power, shift in itertools.product(_LARGEST, _POWERS, _SHIFTS)
        for setting in _settings(answers, largest, power, shift, divisor)
    ]
    candidates.sort(key=lambda setting: (-setting.floor, -setting.clean))
    front: list[Setting] = []
    for setting in candidates:
        if not front or setting.clean > front[-1].clean:
            front.append(setting)
    return front


def giving_up(front: list[Setting], robust_worst_case: float, points: float) -> Setting | None:
    """The most accurate setting whose floor is at most ``points`` (in [0, 100]) below the robust tower's worst case."""
    enough = [s for s in front if s.floor >= robust_worst_case - points / 100 - 1e-9]
    return max(enough, key=lambda s: s.clean, default=None)


def reaching(front: list[Setting], clean: float) -> Setting | None:
    """The setting of the highest floor whose clean accuracy is at least ``clean``, in [0, 1]."""
    enough = [s for s in front if s.clean >= clean]
    return max(enough, key=lambda s: s.floor, default=None)


def _divisor(answers: Answers) -> float:
    """With which clean logits have the size that standardised ones have, on average."""
    return float(f"{answers.robust.std(dim=1, correction=0).mean().item():.{_DECIMALS}g}")


def _settings(
    answers: Answers, largest: float, power: float, shift: float, divisor: float | None
) -> list[Setting]:
    """One map at the thresholds that make a difference."""
    labels = answers.labels
    if divisor is None:
        farthest = math.sqrt(answers.robust.shape[1] - 1)  # that a standardised logit can get
    else:
        farthest = normalised(answers.robust, divisor).max().item()
    scale = float(f"{largest / farthest**power:.{_DECIMALS}g}")
    # What follows does not look at the threshold.
    unset = Switch(scale=scale, power=power, shift=shift, threshold=0.5, divisor=divisor)
    margins = torch.stack([certainty(d, labels, unset) for d in answers.attacked]).amin(dim=0)
    q = mapped_log_posterior(answers.robust, unset).exp()
    chosen = answers.standard.argmax(dim=1)
    lead = q.amax(dim=1) - q.gather(1, chosen.unsqueeze(1)).squeeze(1)
    by_standard, by_robust = chosen == labels, q.argmax(dim=1) == labels
    settings = []
    for threshold in _thresholds(margins):
        switch = unset.model_copy(update={"threshold": threshold})
        right = torch.where(lead < threshold, by_standard, by_robust)
        settings.append(
            Setting(switch, right.double().mean().item(), (margins >= threshold).double().mean().item())
        )
    return settings


def _thresholds(margins: Tensor) -> list[float]:
    """Between margins that were seen, so that rounding moves no image over one of them."""
    seen = torch.tensor(sorted({float(m) for m in margins}), dtype=torch.float64)
    if len(seen) < 2:
        return []
    middles = (seen[1:] + seen[:-1]) / 2
    middles = middles[(middles >= _SMALLEST) & (middles <= _LARGEST_THRESHOLD)]
    places = torch.linspace(0, len(middles) - 1, min(_THRESHOLDS, len(middles))).round().long()
    rounded = {round(value, _DECIMALS) for value in middles[places].tolist()}
    return sorted(rounded)

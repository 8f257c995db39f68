"""Models that only the seed of their training tells apart: what they have in common, and how far they differ."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.evaluation.comparison import Candidate, differences


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample: n - 1) of an accuracy over seeds."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of two values or more."""
        return cls(statistics.mean(values), statistics.stdev(values))

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f} %"


@dataclass(frozen=True)
class SeedGroup:
    """Two models or more of one recipe, with their seeds in the same order."""

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    clean_accuracy: Spread
    worst_case_accuracy: Spread

    def to_json(self) -> dict[str, Any]:
        """As `ducat compare --json` prints it."""
        return asdict(self)


def seed_groups(candidates: Sequence[Candidate]) -> list[SeedGroup]:
    """The groups among these models, in the order of their first ones.

    In a group are models whose recipes are equal but for the seed, each seed once, and that were measured alike.
    """
    alike: dict[str, dict[int, Candidate]] = defaultdict(dict)
    for one in candidates:
        seed = one.recipe.get("seed")
        if one.report is not None and isinstance(seed, int):
            recipe = {name: value for name, value in one.recipe.items() if name != "seed"}
            alike[json.dumps(recipe, sort_keys=True)].setdefault(seed, one)
    return [
        _group(of_seeds)
        for of_seeds in alike.values()
        if len(of_seeds) > 1 and not differences([*of_seeds.values()])
    ]


def _group(of_seeds: dict[int, Candidate]) -> SeedGroup:
    reports = [one.report for one in of_seeds.values() if one.report is not None]
    return SeedGroup(
        tuple(one.name for one in of_seeds.values()),
        tuple(of_seeds),
        Spread.of([report.clean_accuracy for report in reports]),
        Spread.of([report.worst_case_accuracy for report in reports]),
    )

"""The rows of the price study, and those that differ in their seed alone as one point of a curve."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

# The methods, in the order of the table, and their colours in the plot.
COLOURS = {
    "pgd-at": "#222222",
    "half": "#b8860b",
    "trades": "#1b6ca8",
    "guided": "#c8553d",
    "pairing": "#4f7942",
}


@dataclass(frozen=True)
class Row:
    """One run and its report. Accuracies in [0, 1], intervals of 95 %; ``passes`` for each training image."""

    objective: str
    mode: str
    seed: int
    command: str
    epochs: int
    passes: float
    fell_back: bool  # from a one-step attack to PGD, which took more passes than are said here
    train_seconds: float
    evaluate_seconds: float
    clean: float
    clean_interval: tuple[float, float]
    worst_case: float
    worst_case_interval: tuple[float, float]
    failed_checks: tuple[str, ...]
    data: str
    threat_model: str
    network: str
    weights_digest: str
    data_digest: str
    precision: str = "not recorded"  # of training

    @classmethod
    def read(cls, document: dict[str, Any]) -> Row:
        """The row that was written as JSON, where arrays are lists."""
        values: dict[str, Any] = {
            field.name: document[field.name] for field in fields(cls) if field.name in document
        }
        for name, value in values.items():
            values[name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.mode}-{self.seed}"

    @property
    def method(self) -> str:
        """The objective without its weight, which names the curve that the row is a point of."""
        head, _, weight = self.objective.rpartition("-")
        return head if weight.replace(".", "").isdigit() else self.objective

    @property
    def weight(self) -> float:
        weight = self.objective.rpartition("-")[2]
        return float(weight) if weight.replace(".", "").isdigit() else 0.0


@dataclass(frozen=True)
class Point:
    """Rows that differ in their seed alone; accuracies in per cent."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def clean(self) -> float:
        return 100 * statistics.fmean(row.clean for row in self.rows)

    @property
    def worst(self) -> float:
        return 100 * statistics.fmean(row.worst_case for row in self.rows)


def points(rows: Sequence[Row]) -> list[Point]:
    """Rows by objective and mode: a method's points follow each other by weight, `off` before `folded`."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.objective, row.mode].append(row)
    found = [Point(tuple(group)) for group in groups.values()]
    order = list(COLOURS)
    return sorted(found, key=lambda p: (order.index(p.first.method), p.first.mode != "off", p.first.weight))

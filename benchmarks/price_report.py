"""What the price study found: its table, its plot and its verdict, all computed from the rows.

The price of a row is the worst-case points that it lost for each clean point that it gained beside plain PGD-AT.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from scipy.stats import t
from study import spread

LEAD = 2.0  # clean points above PGD-AT and TRADES: the goal
SEEN_GAIN = 0.5  # clean points; with a smaller gain a quotient says nothing
_BASELINES = ("pgd-at", "trades")
# Methods that learn from both halves of a batch without dummies too, so that `folded` changes nothing else.
_DUMMIES_ALONE = ("half", "pairing")
_COLOURS = {
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

    @classmethod
    def read(cls, document: dict[str, Any]) -> Row:
        """The row that was written as JSON, where arrays are lists."""
        values: dict[str, Any] = {field.name: document[field.name] for field in fields(cls)}
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


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (Student's t over independent values)."""

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        if len(values) < 2:
            return cls(statistics.fmean(values), float("inf"), len(values))
        error = statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(t.ppf(0.975, len(values) - 1)) * error, len(values))

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside of the interval."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.1f} (95 % interval {low:+.1f} to {high:+.1f})"


def points(rows: Sequence[Row]) -> list[Point]:
    """Rows by objective and mode: a method's points follow each other by weight, `off` before `folded`."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.objective, row.mode].append(row)
    found = [Point(tuple(group)) for group in groups.values()]
    order = list(_COLOURS)
    return sorted(found, key=lambda p: (order.index(p.first.method), p.first.mode != "off", p.first.weight))


def price(point: Point, plain: Point) -> float | None:
    """Worst-case points lost for each clean point gained beside ``plain``; None where no gain can be seen."""
    gained = point.clean - plain.clean
    return (plain.worst - point.worst) / gained if gained >= SEEN_GAIN else None


def baseline_clean(baseline: Sequence[tuple[float, float]], worst: float) -> float | None:
    """The most clean accuracy that a set of (clean, worst case) reaches with this worst case.

    Between two networks lies whatever a coin that picks one of them reaches, so points are joined by straight lines.
    None where no network of the set is as robust.
    """
    reached = [clean for clean, robust in baseline if robust >= worst]
    for clean, robust in baseline:
        for other_clean, other_robust in baseline:
            if robust < worst < other_robust:
                share = (worst - robust) / (other_robust - robust)
                reached.append(clean + share * (other_clean - clean))
    return max(reached, default=None)


def lead(row: Row, rows: Sequence[Row]) -> float | None:
    """Clean points of a row above PGD-AT and TRADES with its seed, without dummies, at its worst case.

    Where the row is more robust than all of them: above the most robust one. None where it is less robust than all of
    them, so that they say nothing about what they would pay there; or where there are none.
    """
    baseline = [
        (100 * other.clean, 100 * other.worst_case)
        for other in rows
        if other.seed == row.seed and other.mode == "off" and other.method in _BASELINES
    ]
    if not baseline or 100 * row.worst_case < min(robust for _, robust in baseline):
        return None
    reached = baseline_clean(baseline, 100 * row.worst_case)
    if reached is None:
        reached = max(baseline, key=lambda found: found[1])[0]
    return 100 * row.clean - reached


def dummy_gains(rows: Sequence[Row], methods: Sequence[str]) -> tuple[list[float], list[float]]:
    """Clean and worst-case points that `folded` adds to `off`, of every pair with one objective and seed."""
    off = {(row.objective, row.seed): row for row in rows if row.mode == "off"}
    pairs = [
        (row, off[row.objective, row.seed])
        for row in rows
        if row.mode == "folded" and (row.objective, row.seed) in off and row.method in methods
    ]
    clean = [100 * (folded.clean - plain.clean) for folded, plain in pairs]
    worst = [100 * (folded.worst_case - plain.worst_case) for folded, plain in pairs]
    return clean, worst


def verdict(rows: Sequence[Row]) -> list[str]:
    """What the figures say, in sentences."""
    return [*_about_dummies(rows), *_about_leads(rows)]


def _about_dummies(rows: Sequence[Row]) -> list[str]:
    alone = dummy_gains(rows, _DUMMIES_ALONE)
    others = dummy_gains(rows, [method for method in _COLOURS if method not in _DUMMIES_ALONE])
    sentences = []
    if len(alone[0]) >= 2:
        clean, worst = (Estimate.of(values) for values in alone)
        sentences.append(
            f"{_in_words(clean, worst)}: in {clean.count} pairs of runs that differ in the dummies alone (`half`, "
            f"`pairing`), `folded` has {clean} points of clean accuracy and {worst} points of worst case beside `off`."
        )
    if len(others[0]) >= 2:
        clean, worst = (Estimate.of(values) for values in others)
        sentences.append(
            "With `pgd-at`, `trades` and `guided`, `folded` also brings the other half of each batch into the "
            f"classification loss. Both together: {clean} points clean, {worst} points worst case, {clean.count} pairs."
        )
    return sentences or ["Dummies: too few pairs of runs to say anything."]


def _in_words(clean: Estimate, worst: Estimate) -> str:
    if not clean.is_clear and not worst.is_clear:
        return "Dummies add nothing that these runs can tell from noise"
    clear = [estimate.mean > 0 for estimate in (clean, worst) if estimate.is_clear]
    if all(clear):
        return "Dummies add something"
    return "Dummies cost something" if not any(clear) else "Dummies trade one accuracy for the other"


def _about_leads(rows: Sequence[Row]) -> list[str]:
    best: list[tuple[float, str]] = []
    for point in points(rows):
        first = point.first
        if first.method in _BASELINES and first.mode == "off":
            continue
        leads = [found for row in point.rows if (found := lead(row, rows)) is not None]
        if len(leads) == len(point.rows):
            label = f"`{first.objective}` `{first.mode}`"
            shown = f"{statistics.fmean(leads):+.1f}"
            if len(leads) > 1:
                shown += f" ({', '.join(f'{found:+.1f}' for found in leads)})"
            best.append((statistics.fmean(leads), f"{label} {shown}"))
    if not best:
        return ["No row can be held against PGD-AT and TRADES at equal worst case."]
    best.sort(reverse=True)
    seeds = len({row.seed for row in rows})
    reached = [text for value, text in best if value >= LEAD]
    return [
        f"{'A curve is' if reached else 'No curve is'} {LEAD:g} clean points above PGD-AT and TRADES (both `off`) at "
        f"equal worst case. The largest leads in clean points, mean and each of {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'}: {'; '.join(text for _, text in best[:4])}."
    ]


def table(found: Sequence[Point], rows: Sequence[Row]) -> str:
    """Markdown, in per cent: mean and standard deviation over seeds, or one seed and its 95 % interval."""
    plain = next((p for p in found if p.first.objective == "pgd-at" and p.first.mode == "off"), None)
    head = ("objective", "ducat", "seeds", "epochs", "clean", "worst case", "price", "lead", "remarks")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for point in found:
        first, count = point.first, len(point.rows)
        paid = None if plain is None or point is plain else price(point, plain)
        leads = [value for row in point.rows if (value := lead(row, rows)) is not None]
        if first.method in _BASELINES and first.mode == "off":
            leads = []
        fell_back = sum(row.fell_back for row in point.rows)
        masked = sum(bool(row.failed_checks) for row in point.rows)
        remarks = [f"{fell_back} fell back to PGD"] if fell_back else []
        remarks += [f"gradient masking suspected in {masked}"] if masked else []
        cells = (
            f"`{first.objective}`",
            f"`{first.mode}`",
            str(count),
            str(first.epochs),
            spread([row.clean for row in point.rows]) + _interval(first.clean_interval, count),
            spread([row.worst_case for row in point.rows]) + _interval(first.worst_case_interval, count),
            "" if paid is None else f"{paid:.2f}",
            f"{statistics.fmean(leads):+.1f}" if len(leads) == count else "",
            ", ".join(remarks),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(interval: tuple[float, float], count: int) -> str:
    return f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if count == 1 else ""


def plot(found: Sequence[Point], stem: Path) -> None:
    """Clean against worst case: a curve for each method, solid `off`, dashed `folded`. Bars: `_spanned`."""
    curves: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for point in found:
        curves[point.first.method, point.first.mode].append(point)
    with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        axes = figure.add_subplot()
        for (method, mode), curve in curves.items():
            folded = mode == "folded"
            axes.errorbar(
                [p.clean for p in curve],
                [p.worst for p in curve],
                xerr=_reach([_spanned([r.clean for r in p.rows], p.first.clean_interval) for p in curve]),
                yerr=_reach(
                    [_spanned([r.worst_case for r in p.rows], p.first.worst_case_interval) for p in curve]
                ),
                color=_COLOURS[method],
                linestyle="--" if folded else "-",
                marker="s" if folded else "o",
                markerfacecolor="white" if folded else None,
                elinewidth=0.7,
                label=f"{method} {mode}",
            )
            for point in curve:
                if point.first.weight:
                    place = (point.clean, point.worst)
                    axes.annotate(
                        f"{point.first.weight:g}", place, (4, 4), textcoords="offset points", fontsize=7
                    )
        first = found[0].first
        axes.set_title(f"{first.data}, {first.threat_model}, {first.network}", loc="left")
        axes.set_xlabel("clean accuracy (%)")
        axes.set_ylabel("worst-case accuracy of the deployed function (%)")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small", frameon=False)
        # Without dates and versions, so that the same rows give the same files.
        figure.savefig(stem.with_suffix(".png"), dpi=130, metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def _spanned(values: Sequence[float], interval: tuple[float, float]) -> tuple[float, float, float]:
    """Mean, lowest and highest over the seeds, in per cent; of one seed the 95 % interval."""
    low, high = (min(values), max(values)) if len(values) > 1 else interval
    return 100 * statistics.fmean(values), 100 * low, 100 * high


def _reach(spans: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    return [[mean - low for mean, low, _ in spans], [high - mean for mean, _, high in spans]]


def write(stem: Path, rows: Sequence[Row], command: str, planned: int) -> None:
    """The study as it stands: every row, the table, the plot and the verdict, each with the command."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    document = {row.name: asdict(row) for row in rows}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    found = points(rows)
    plot(found, stem)
    one = rows[0]
    passes = [row.passes for row in rows]
    minutes = sum(row.train_seconds + row.evaluate_seconds for row in rows) / 60
    claims = "\n".join(f"- {sentence}" for sentence in verdict(rows))
    stem.with_suffix(".md").write_text(f"""# Price: {stem.name.removeprefix("price-")}

Written by the command below; {len(rows)} of {planned} rows. {one.data}, {one.threat_model}, {one.network}, standard
suite in float32 on the deployed function, last weights. Every row trained for {min(passes):.0f} to {max(passes):.0f}
network passes an image. In per cent; mean ± standard deviation over seeds, or one seed and its 95 % interval.
Machine: 2 x86-64 cores (virtual), one thread, beside other work; {minutes:.0f} minutes of wall-clock in all.

    export OMP_NUM_THREADS=1
    {command}

{claims}

{table(found, rows)}

Price: worst-case points lost for each clean point gained beside `pgd-at` `off`; empty where the gain is under
{SEEN_GAIN:g} points, negative where worst case was gained too. Lead: clean points above PGD-AT and TRADES without
dummies at the same worst case, between whose networks straight lines are drawn; empty where the row is less robust
than all of them. With two dozen rows the best of them is partly luck.

![Clean against worst case](price-{stem.name.removeprefix("price-")}.png)

Every row's command, intervals and digests: {stem.name}.json.
""")

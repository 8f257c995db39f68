"""What the price study found: its table, its plot and its verdict, all computed from the rows.

The price of a row is the worst-case points that it lost for each clean point that it gained beside plain PGD-AT.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from price_plot import plot
from price_rows import COLOURS, Point, Row, points
from scipy.stats import t
from study import spread

LEAD = 2.0  # clean points above PGD-AT and TRADES: the goal
SEEN_GAIN = 0.5  # clean points; with a smaller gain a quotient says nothing
_BASELINES = ("pgd-at", "trades")
# Methods that learn from both halves of a batch without dummies too, so that `folded` changes nothing else.
_DUMMIES_ALONE = ("half", "pairing")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval (Student's t over seeds).

    Runs with one seed share their first weights and the order of their images, so each seed is one value.
    """

    mean: float
    half_width: float

    @classmethod
    def over_seeds(cls, values: dict[int, list[float]]) -> Estimate:
        """Of what each seed's pairs of runs differ by."""
        means = [statistics.fmean(of_seed) for of_seed in values.values()]
        if len(means) < 2:
            return cls(means[0], math.inf)
        error = statistics.stdev(means) / len(means) ** 0.5
        return cls(statistics.fmean(means), float(t.ppf(0.975, len(means) - 1)) * error)

    @property
    def is_clear(self) -> bool:
        """Whether 0 is outside of the interval."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if math.isinf(self.half_width):
            return f"{self.mean:+.1f} (one seed, no interval)"
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+.1f} (95 % interval {low:+.1f} to {high:+.1f})"


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


@dataclass(frozen=True)
class DummyGains:
    """Clean and worst-case points that `folded` adds to `off`, over pairs of runs with one objective and seed."""

    clean: Estimate
    worst: Estimate
    pairs: int
    seeds: int

    @classmethod
    def of(cls, rows: Sequence[Row], methods: Sequence[str]) -> DummyGains | None:
        """None where there is no pair."""
        off = {(row.objective, row.seed): row for row in rows if row.mode == "off"}
        clean, worst = defaultdict(list), defaultdict(list)
        for row in rows:
            plain = off.get((row.objective, row.seed))
            if row.mode == "folded" and plain is not None and row.method in methods:
                clean[row.seed].append(100 * (row.clean - plain.clean))
                worst[row.seed].append(100 * (row.worst_case - plain.worst_case))
        if not clean:
            return None
        pairs = sum(map(len, clean.values()))
        return cls(Estimate.over_seeds(clean), Estimate.over_seeds(worst), pairs, len(clean))

    @property
    def counted(self) -> str:
        return f"{self.pairs} pairs of runs with {self.seeds} {'seed' if self.seeds == 1 else 'seeds'}"


def verdict(rows: Sequence[Row]) -> list[str]:
    """What the figures say, in sentences."""
    return [*_about_dummies(rows), *_about_leads(rows)]


def _about_dummies(rows: Sequence[Row]) -> list[str]:
    alone = DummyGains.of(rows, _DUMMIES_ALONE)
    others = DummyGains.of(rows, [method for method in COLOURS if method not in _DUMMIES_ALONE])
    sentences = []
    if alone is not None:
        sentences.append(
            f"{_in_words(alone)}: in {alone.counted} that differ in the dummies alone (`half`, `pairing`), `folded` "
            f"has {alone.clean} points of clean accuracy and {alone.worst} points of worst case beside `off`."
        )
    if others is not None:
        sentences.append(
            "With `pgd-at`, `trades` and `guided`, `folded` also brings the other half of each batch into the "
            f"classification loss. Both together: {others.clean} points clean, {others.worst} points worst case, in "
            f"{others.counted}."
        )
    return sentences or ["Dummies: no pair of runs says anything."]


def _in_words(gains: DummyGains) -> str:
    clean, worst = gains.clean, gains.worst
    if gains.seeds == 1:
        return "One seed cannot tell what dummies add from noise"
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


def write(stem: Path, rows: Sequence[Row], command: str) -> None:
    """The study as it stands: every row, the table, the plot and the verdict, each with the command."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    document = {row.name: asdict(row) for row in rows}
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    found = points(rows)
    plot(found, stem)
    one = rows[0]
    passes = [row.passes for row in rows]
    minutes = sum(row.train_seconds + row.evaluate_seconds for row in rows) / 60
    precisions = Counter(row.precision for row in rows)
    trained = ", ".join(
        f"{precision} ({count} of {len(rows)} rows)" for precision, count in sorted(precisions.items())
    )
    claims = "\n".join(f"- {sentence}" for sentence in verdict(rows))
    stem.with_suffix(".md").write_text(f"""# Price: {stem.name.removeprefix("price-")}

Written by the command below; {len(rows)} rows. {one.data}, {one.threat_model}, {one.network}, standard
suite in float32 on the deployed function, last weights. Every row trained for {min(passes):.0f} to {max(passes):.0f}
network passes an image. In per cent; mean ± standard deviation over seeds, or one seed and its 95 % interval.
Precision of training: {trained}. One thread each; {minutes:.0f} minutes of wall-clock in all, beside other work.

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

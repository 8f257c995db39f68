"""The plot of the price study."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from price_rows import COLOURS, Point

from training.evaluation.plot import save_figure


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
                color=COLOURS[method],
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
        for kind in ("png", "svg"):
            save_figure(figure, stem, kind)


def _spanned(values: Sequence[float], interval: tuple[float, float]) -> tuple[float, float, float]:
    """Mean, lowest and highest over the seeds, in per cent; of one seed the 95 % interval."""
    low, high = (min(values), max(values)) if len(values) > 1 else interval
    return 100 * statistics.fmean(values), 100 * low, 100 * high


def _reach(spans: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    return [[mean - low for mean, low, _ in spans], [high - mean for mean, _, high in spans]]

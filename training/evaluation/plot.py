"""Clean against worst-case accuracy of several models, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ducat_serve import atomic
from ducat_serve.report import RobustnessReport
from ducat_serve.threat_model import format_size
from training.evaluation.comparison import Candidate, differences, pareto_front

_COLOURS = ("#1b6ca8", "#c8553d", "#4f7942", "#7b4b94", "#b8860b", "#2a9d8f", "#8d6e63", "#5c6770")


def plot_comparison(candidates: Sequence[Candidate], stem: Path) -> list[Path]:
    """Draw the models that were measured, with 95 % intervals and the Pareto front; the same bytes every time.

    Returns the files written: ``stem`` with .png and .svg. Raises ValueError if no model was measured.
    """
    measured = [c for c in candidates if c.report is not None]
    if not measured:
        raise ValueError("no model was measured")
    with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        for number, candidate in enumerate(measured):
            _point(axes, candidate, _COLOURS[number % len(_COLOURS)])
        if any(c.report is not None and c.report.legacy_2c_accuracy is not None for c in measured):
            axes.plot([], [], "x", color="#555555", label="legacy 2C (not a robustness claim)")
        report = measured[0].report
        assert report is not None
        axes.set_xlabel("clean accuracy (%)")
        axes.set_ylabel("worst-case accuracy of the deployed function (%)")
        title = f"{report.dataset}, {report.norm} {format_size(report.eps)}, {report.examples} {report.split} images"
        axes.set_title("measured under different conditions" if differences(measured) else title, loc="left")
        axes.grid(alpha=0.3)
        axes.margins(0.15)
        _front(axes, measured)
        axes.legend(loc="best", frameon=False)
        return [save_figure(figure, stem, "png"), save_figure(figure, stem, "svg")]


def _point(axes, candidate: Candidate, colour: str) -> None:  # type: ignore[no-untyped-def]
    report = candidate.report
    assert report is not None
    x, y = 100 * report.clean_accuracy, 100 * report.worst_case_accuracy
    axes.errorbar(
        [x],
        [y],
        xerr=_reach(x, report.clean_interval),
        yerr=_reach(y, report.worst_case_interval),
        fmt="o",
        color=colour,
        capsize=3,
        label=candidate.name + " (screening)" * report.is_screening,
    )
    if report.legacy_2c_accuracy is not None:
        axes.plot([x], [100 * report.legacy_2c_accuracy], "x", color=colour, alpha=0.6)


def _reach(percent: float, interval: tuple[float, float] | None) -> list[list[float]] | None:
    """How far an interval reaches to both sides, as matplotlib wants it; None where it was not measured."""
    if interval is None:
        return None
    low, high = interval
    return [[percent - 100 * low], [100 * high - percent]]


def _front(axes, measured: Sequence[Candidate]) -> None:  # type: ignore[no-untyped-def]
    points = sorted(
        (c.report.clean_accuracy, c.report.worst_case_accuracy)
        for c in pareto_front(measured)
        if c.report is not None
    )
    if not points:  # models that were not measured alike have no front
        return
    left, bottom = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.step(
        [left, *(100 * x for x, _ in points), 100 * points[-1][0]],
        [100 * points[0][1], *(100 * y for _, y in points), bottom],
        where="pre",
        linestyle="--",
        color="#888888",
        linewidth=1,
        zorder=0,
        label="Pareto front",
        scalex=False,
        scaley=False,
    )


def save_figure(figure: Figure, stem: Path, kind: str) -> Path:
    """Write ``stem`` with the suffix of ``kind``, atomically; the same figure gives the same bytes."""
    target = stem.with_name(f"{stem.name}.{kind}")
    buffer = io.BytesIO()
    # Without dates and versions, so that the same reports give the same file.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    atomic.write_bytes(target, buffer.getvalue())
    return target


def plot_curve(report: RobustnessReport, stem: Path) -> list[Path]:
    """Draw the worst case over eps with 95 % intervals, from the clean accuracy at 0; the same bytes every time.

    Returns the files written: ``stem`` with .png and .svg. Raises ValueError if several eps were not measured.
    """
    if not report.curve:
        raise ValueError("the report has no curve")
    points = [(0.0, report.clean_accuracy, report.clean_interval)]
    points += [(p.eps, p.worst_case_accuracy, p.worst_case_interval) for p in report.curve]
    with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        sizes = [eps for eps, _, _ in points]
        heights = [100 * accuracy for _, accuracy, _ in points]
        reaches = [_reach(y, interval) for y, (_, _, interval) in zip(heights, points, strict=True)]
        below, above = ([reach[side][0] if reach else 0.0 for reach in reaches] for side in (0, 1))
        axes.errorbar(sizes, heights, yerr=[below, above], fmt="o-", color=_COLOURS[0], capsize=3)
        axes.set_xticks(sizes, [format_size(eps) for eps in sizes])
        axes.set_xlabel(f"eps ({report.norm}, pixels in [0, 1])")
        axes.set_ylabel("worst-case accuracy (%)")
        axes.set_ylim(0, 100)
        axes.set_title(f"{report.dataset}, {report.examples} {report.split} images", loc="left")
        axes.grid(alpha=0.3)
        return [save_figure(figure, stem, "png"), save_figure(figure, stem, "svg")]

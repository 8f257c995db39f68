"""Images per second and latency over the batch size, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ducat_serve.benchmark import Timing
from training.evaluation.plot import save_figure


def plot_timings(timings: Sequence[Timing], stem: Path) -> list[Path]:
    """Draw a line for each model, provider and number of threads; the same bytes for the same timings.

    Returns the files written: ``stem`` with .png and .svg. There is at least one timing.
    """
    lines: dict[str, list[Timing]] = {}
    for timing in timings:
        given = timing.configuration
        provider = given.provider.removesuffix("ExecutionProvider")
        lines.setdefault(f"{given.model}, {provider}, threads {given.threads}", []).append(timing)
    with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        speed, latency = figure.subplots(1, 2)
        for label, line in lines.items():
            batches = [timing.configuration.batch for timing in line]
            speed.plot(batches, [timing.images_per_second for timing in line], "o-", label=label)
            latency.plot(batches, [1000 * timing.latency(50) for timing in line], "o-", label=label)
            slow = [1000 * timing.latency(95) for timing in line]
            latency.plot(batches, slow, ":", color=latency.lines[-1].get_color())
        for axes, name in ((speed, "images per second"), (latency, "latency, ms (dotted: p95)")):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted({t.configuration.batch for t in timings}))
            axes.get_xaxis().set_major_formatter("{x:.0f}")
            axes.set_xlabel("images of one inference")
            axes.set_ylabel(name)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        speed.legend(loc="best", frameon=False, fontsize=8)
        return [save_figure(figure, stem, kind) for kind in ("png", "svg")]

"""curves.png: how a run went, epoch by epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ducat_serve import atomic
from training.config import TrainConfig

_ACCURACIES = (
    ("val_clean_accuracy", "clean", "#1b6ca8", "-"),
    ("val_pgd_accuracy", "PGD, deployed function", "#c8553d", "-"),
    ("val_legacy_accuracy", "legacy 2C (not a claim)", "#c8553d", ":"),
)
_SHARES = (
    ("dummy_share_clean", "clean", "#4f7942"),
    ("dummy_share_adversarial", "adversarial", "#7b4b94"),
)


def draw_curves(rows: Sequence[dict[str, Any]], config: TrainConfig, target: Path) -> None:
    """Draw loss, val accuracies and dummy shares; the dummy phase is shaded. ``rows`` are those of metrics.csv."""
    panels = 2 if config.ducat == "off" else 3
    figure = Figure(figsize=(7, 2.4 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True)
    axes[0].set_title(
        f"{config.method}, ducat {config.ducat}, {config.network}, {config.threat_model}", loc="left"
    )
    _line(axes[0], rows, "loss", "training loss", "#5c6770", "-")
    axes[0].set_ylabel("loss")
    for key, label, colour, style in _ACCURACIES:
        _line(axes[1], rows, key, label, colour, style, scale=100)
    axes[1].set_ylabel("val accuracy (%)")
    if panels == 3:
        for key, label, colour in _SHARES:
            _line(axes[2], rows, key, label, colour, "-")
        axes[2].set_ylabel("dummy share of y")
    for panel in axes:
        panel.grid(alpha=0.3)
        if config.ducat_start is not None:
            panel.axvspan(config.ducat_start - 0.5, config.epochs + 0.5, color="#888888", alpha=0.12)
        if panel.has_data() and len(panel.get_lines()) > 1:
            panel.legend(frameon=False, fontsize=8)
    axes[-1].set_xlabel("epoch" + ("" if config.ducat_start is None else " (shaded: dummy phase)"))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    atomic.write_bytes(target, buffer.getvalue())


def _line(  # type: ignore[no-untyped-def]
    axes, rows: Sequence[dict[str, Any]], key: str, label: str, colour: str, style: str, scale: float = 1
) -> None:
    known = [(int(row["epoch"]), scale * float(row[key])) for row in rows if row[key] != ""]
    if known:
        axes.plot(*zip(*known, strict=True), style, color=colour, label=label, linewidth=1.5)

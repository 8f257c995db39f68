"""curves.png: how a run went, epoch by epoch."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ducat_serve import atomic
from training.config import TrainConfig
from training.run.metrics import EpochRow

_CLEAN, _ROBUST, _LOSS = "#1b6ca8", "#c8553d", "#5c6770"
_SHARE_CLEAN, _SHARE_ADVERSARIAL = "#4f7942", "#7b4b94"


def draw_curves(rows: Sequence[EpochRow], config: TrainConfig, target: Path) -> None:
    """Draw loss, val accuracies and dummy shares; the dummy phase is shaded."""
    from matplotlib.figure import Figure  # most of a second, which a run that is refused need not spend

    panels = 2 if config.ducat == "off" else 3
    figure = Figure(figsize=(7, 2.4 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True)
    axes[0].set_title(
        f"{config.method}, ducat {config.ducat}, {config.network}, {config.threat_model}", loc="left"
    )
    epochs = [row.epoch for row in rows]
    _line(axes[0], epochs, [row.loss for row in rows], "training loss", _LOSS)
    axes[0].set_ylabel("loss")
    accuracies = axes[1]
    _line(accuracies, epochs, _percent([row.val_clean_accuracy for row in rows]), "clean", _CLEAN)
    robust = _percent([row.val_pgd_accuracy for row in rows])
    _line(accuracies, epochs, robust, "PGD, deployed function", _ROBUST)
    legacy = _percent([row.val_legacy_accuracy for row in rows])
    _line(accuracies, epochs, legacy, "legacy 2C (not a claim)", _ROBUST, ":")
    accuracies.set_ylabel("val accuracy (%)")
    if panels == 3:
        _line(axes[2], epochs, [row.dummy_share_clean for row in rows], "clean", _SHARE_CLEAN)
        adversarial = [row.dummy_share_adversarial for row in rows]
        _line(axes[2], epochs, adversarial, "adversarial", _SHARE_ADVERSARIAL)
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


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]


def _line(
    axes: Any,
    epochs: Sequence[int],
    values: Sequence[float | None],
    label: str,
    colour: str,
    style: str = "-",
) -> None:
    """Draw the values that were measured."""
    known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), style, color=colour, label=label, linewidth=1.5)

"""The curve of a dial: clean accuracy against floor and worst case, drawn before one chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ducat_serve import atomic
from training.evaluation.plot import save_figure
from training.mixture.dial import Setting


@dataclass(frozen=True)
class Attacked:
    """A setting that was attacked end to end on some val images, shares in [0, 1]."""

    setting: Setting
    images: int
    clean: float
    worst_case: float
    floor: float


@dataclass(frozen=True)
class Curve:
    """The whole dial, the settings that were attacked, and each tower alone as (clean, worst case)."""

    title: str
    front: Sequence[Setting]
    attacked: Sequence[Attacked]
    robust: tuple[float, float]
    standard_clean: float

    def write(self, stem: Path) -> list[Path]:
        """Write ``stem`` with .json, .png and .svg; the same bytes every time."""
        target = stem.with_name(stem.name + ".json")
        atomic.write_text(target, json.dumps(self.document(), indent=1, sort_keys=True) + "\n")
        return [target, *self._draw(stem)]

    def document(self) -> dict[str, object]:
        """What the JSON file holds."""
        return {
            "title": self.title,
            "robust_tower": {"clean": self.robust[0], "worst_case": self.robust[1]},
            "standard_tower": {"clean": self.standard_clean},
            "dial": [_setting(setting) for setting in self.front],
            "attacked": [{**asdict(point), "setting": _setting(point.setting)} for point in self.attacked],
        }

    def _draw(self, stem: Path) -> list[Path]:
        with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
            figure = Figure(figsize=(7, 5), layout="constrained")
            axes = figure.add_subplot()
            axes.plot(
                [100 * s.clean for s in self.front],
                [100 * s.floor for s in self.front],
                marker=".",  # only these settings exist
                color="#1b6ca8",
                label="floor (robust tower alone, all val images)",
            )
            if self.attacked:
                axes.plot(
                    [100 * a.clean for a in self.attacked],
                    [100 * a.worst_case for a in self.attacked],
                    "o",
                    color="#c8553d",
                    label=f"worst case end to end, quick suite ({self.attacked[0].images} val images)",
                )
            axes.plot(
                [100 * self.robust[0]], [100 * self.robust[1]], "s", color="#4f7942", label="robust tower"
            )
            axes.axvline(
                100 * self.standard_clean, color="#888888", linestyle=":", label="standard tower, clean"
            )
            axes.set_xlabel("clean accuracy (%)")
            axes.set_ylabel("accuracy under attack (%)")
            axes.set_title(self.title, loc="left")
            axes.grid(alpha=0.3)
            axes.legend(loc="best", frameon=False)
            return [save_figure(figure, stem, kind) for kind in ("png", "svg")]


def _setting(setting: Setting) -> dict[str, object]:
    switch = setting.switch.model_dump(mode="json", exclude={"kind"})
    return {"clean": setting.clean, "floor": setting.floor, **switch}

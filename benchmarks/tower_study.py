"""Two towers beside the robust tower alone, for several seeds of it: clean accuracy, worst case and floor.

    export OMP_NUM_THREADS=1
    python benchmarks/tower_study.py --standard RUN --robust RUN0/last.safetensors RUN1/last.safetensors \\
        --data-dir ../shared/data --singles results/cifar10-hours-report.json

Every robust tower is mixed with the same standard tower by `ducat mix --give-up 2 --max-examples 500`. Both it and the
mixture are measured on the same test images by the standard suite. A tower whose report is that already is not attacked
again; an evaluation that was interrupted goes on after its last attack. `--singles` names reports of other networks, to
be drawn beside them. Written to results/towers-DATASET.json, .md, .png and .svg after each tower.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from pydantic import JsonValue
from worst_case import measured

from ducat_serve import atomic
from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.deployed import parameter_count
from ducat_serve.library.mixing import Towers, mix
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from training.evaluation.plot import save_figure

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """What one report says, shares in [0, 1]."""

    clean: float
    clean_interval: Interval
    worst_case: float
    worst_case_interval: Interval

    @classmethod
    def of(cls, report: RobustnessReport) -> Figures:
        return cls(
            report.clean_accuracy,
            report.clean_interval or (0.0, 1.0),
            report.worst_case_accuracy,
            report.worst_case_interval,
        )

    def __str__(self) -> str:
        """Clean and worst case as two cells of the table, in per cent."""
        cells = (
            (self.clean, self.clean_interval),
            (self.worst_case, self.worst_case_interval),
        )
        return " | ".join(_share(*cell) for cell in cells)


@dataclass(frozen=True)
class Row:
    """A robust tower alone, and mixed."""

    robust: str  # method, epochs and seed
    alone: Figures
    mixed: Figures
    floor: float
    floor_interval: Interval
    failed_checks: tuple[str, ...]

    @property
    def clean_gain(self) -> float:
        """Clean points won."""
        return 100 * (self.mixed.clean - self.alone.clean)

    @property
    def worst_case_loss(self) -> float:
        """Points of worst case given up."""
        return 100 * (self.alone.worst_case - self.mixed.worst_case)


def run(standard: Path, robust: Path, arguments: argparse.Namespace, output: Output) -> Row:
    """Mix and measure one robust tower."""
    recipe = _recipe(read_spec(robust))
    name = "-".join(str(recipe[key]) for key in ("method", "epochs", "seed"))
    mixture = arguments.runs / name / "model.safetensors"
    mixture.parent.mkdir(parents=True, exist_ok=True)
    # The report goes into the file, and a bundled one stays as it is.
    copy = mixture.with_name("robust.safetensors")
    if not copy.exists():
        atomic.write_bytes(copy, robust.read_bytes())
    alone = measured(copy, arguments.max_examples, arguments.data_dir, output)
    if not mixture.exists():
        towers = Towers(standard, robust, max_examples=arguments.val_images, data_dir=arguments.data_dir)
        mix(towers, out=mixture, give_up=arguments.give_up, output=output)
    both = measured(mixture, arguments.max_examples, arguments.data_dir, output)
    assert both.floor is not None
    return Row(
        robust=name,
        alone=Figures.of(alone),
        mixed=Figures.of(both),
        floor=both.floor.accuracy,
        floor_interval=both.floor.interval,
        failed_checks=tuple(check.name for check in both.failed_checks),
    )


def write(rows: Sequence[Row], singles: dict[str, Figures], standard: str, title: str, stem: Path) -> None:
    """The rows as JSON, as a table and as a plot."""
    document = {
        "standard": standard,
        "rows": [asdict(row) for row in rows],
        "singles": {name: asdict(figures) for name, figures in singles.items()},
    }
    atomic.write_text(stem.with_suffix(".json"), json.dumps(document, indent=1) + "\n")
    lines = [
        f"# Two towers: {stem.name.removeprefix('towers-')}",
        "",
        f"Written by benchmarks/tower_study.py. {title}, the same images in every row, standard suite in float32;",
        f"in per cent, with 95 % intervals. Standard tower: {standard}.",
        "",
        "| robust tower | clean, alone | worst case, alone | clean, mixed | worst case, mixed | floor | won | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        floor = _share(row.floor, row.floor_interval)
        lines.append(
            f"| {row.robust} | {row.alone} | {row.mixed} | {floor} | {row.clean_gain:+.1f} | "
            f"{row.worst_case_loss:+.1f} |"
        )
    if len(rows) > 1:
        won, lost = ([getattr(row, name) for row in rows] for name in ("clean_gain", "worst_case_loss"))
        lines += ["", f"Won {_spread(won)} clean points for {_spread(lost)} of worst case, over all rows."]
    lines += [
        "",
        *(f"- {row.robust}: not so that {'; '.join(row.failed_checks)}" for row in rows if row.failed_checks),
    ]
    lines += [
        f"- Alone: {name} {figures.clean:.1%} clean, {figures.worst_case:.1%} worst case"
        for name, figures in singles.items()
    ]
    lines += ["", f"![Clean against worst case]({stem.name}.png)"]
    atomic.write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")
    _plot(rows, singles, title, stem)


def _plot(rows: Sequence[Row], singles: dict[str, Figures], title: str, stem: Path) -> None:
    """An arrow from each robust tower alone to the mixture, and other networks beside them."""
    with mpl.rc_context({"svg.hashsalt": "ducat", "font.size": 10, "svg.fonttype": "path"}):
        figure = Figure(figsize=(7.5, 5.5), layout="constrained")
        axes = figure.add_subplot()
        for number, row in enumerate(rows):
            alone, mixed = ((100 * f.clean, 100 * f.worst_case) for f in (row.alone, row.mixed))
            axes.annotate("", mixed, alone, arrowprops={"arrowstyle": "->", "color": "#888888"})
            axes.plot(*alone, "s", color="#4f7942", label=None if number else "robust tower alone")
            axes.plot(*mixed, "o", color="#1b6ca8", label=None if number else "both towers")
            axes.plot(
                mixed[0], 100 * row.floor, "_", color="#c8553d", label=None if number else "floor of both"
            )
            axes.annotate(row.robust, alone, (5, 4), textcoords="offset points", fontsize=7)
        for number, (name, figures) in enumerate(singles.items()):
            place = (100 * figures.clean, 100 * figures.worst_case)
            axes.plot(*place, "x", color="#222222", label=None if number else "other single networks")
            axes.annotate(name, place, (5, 4), textcoords="offset points", fontsize=7)
        axes.set_title(title, loc="left")
        axes.set_xlabel("clean accuracy (%)")
        axes.set_ylabel("worst-case accuracy of the deployed function (%)")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small", frameon=False)
        for kind in ("png", "svg"):
            save_figure(figure, stem, kind)


def _recipe(spec: ModelSpec) -> dict[str, JsonValue]:
    """What a checkpoint was trained by."""
    recipe = spec.training["recipe"]
    assert isinstance(recipe, dict)
    return recipe


def _share(value: float, interval: Interval) -> str:
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):+.1f} ± {statistics.stdev(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--standard", type=Path, required=True)
    parser.add_argument("--robust", nargs="+", required=True, help="checkpoints, or names of bundled models")
    parser.add_argument("--singles", nargs="*", type=Path, default=[], help="reports as JSON")
    parser.add_argument("--give-up", type=float, default=2.0)
    parser.add_argument("--val-images", type=int, default=500)
    parser.add_argument("--max-examples", type=int, default=1000)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/towers"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    output = Output()
    standard = checkpoint_path(arguments.standard)
    spec = read_spec(standard)
    described = f"{spec.network}, {parameter_count(spec):,} parameters"
    singles = {
        file.stem.removesuffix("-report"): Figures.of(RobustnessReport.model_validate_json(file.read_text()))
        for file in arguments.singles
    }
    rows: list[Row] = []
    for name in arguments.robust:
        robust = checkpoint_path(model_path(name, "safetensors"))
        rows.append(run(standard, robust, arguments, output))
        trained = read_spec(robust)
        dataset = _recipe(trained)["dataset"]
        title = f"{trained.training['data']}, {arguments.max_examples} test images, {trained.threat_model}"
        write(rows, singles, described, title, arguments.results / f"towers-{dataset}")


if __name__ == "__main__":
    main()

"""`ducat compare`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.bundled import bundled_name
from ducat_serve.cli.options import ModelPath, Stem, common
from ducat_serve.errors import DataError, DucatError, command_line, missing_extra
from ducat_serve.model_file import model_in, read_verified_spec
from ducat_serve.output import Output
from ducat_serve.report import MASKING, NOT_MEASURED, SCREENING, RobustnessReport
from ducat_serve.report_file import read_report
from ducat_serve.report_text import LEGACY

if TYPE_CHECKING:
    from ducat_serve.spec import ModelSpec
    from training.evaluation.comparison import Candidate


@click.command("compare")
@click.argument("models", nargs=-1, required=True, type=ModelPath("safetensors"))
@click.option(
    "--out",
    type=Stem(),
    default=Path("compare"),
    show_default=True,
    help="The plot is written to STEM.png and STEM.svg.",
)
@common
def command(models: tuple[Path, ...], out: Path, json: bool) -> None:
    """Compare the measured robustness of MODELS (.safetensors, .onnx, run folders or bundled models; of a model of
    others the report, .json).

    Nothing is measured anew: the reports are those that the files carry. Run `ducat evaluate` with the same
    options on each of them before. Of models that only the seed of their training tells apart, mean and standard
    deviation are printed too.

    \b
    Example:
      ducat compare runs/off runs/paper runs/folded --out results/digits
      ducat compare cifar10-small nets.make.robustness.json
    """
    from training.evaluation.comparison import corruption_differences, differences, pareto_front, to_json
    from training.evaluation.seeds import seed_groups

    output = Output(json)
    candidates = _read(models)
    front = pareto_front(candidates)
    optional = [column for column in _OPTIONAL if any(column.of(c.report) for c in candidates)]
    output.table(
        "Measured on the deployed function",
        ("model", "clean", "worst case, 95 %", *(c.title for c in optional), "weights", "file", ""),
        [_row(candidate, candidate in front, optional) for candidate in candidates],
    )
    if groups := seed_groups(candidates):
        output.table(
            "Over seeds, mean ± standard deviation",
            ("models", "seeds", "clean", "worst case"),
            [
                (
                    ", ".join(group.names),
                    ", ".join(map(str, group.seeds)),
                    str(group.clean_accuracy),
                    str(group.worst_case_accuracy),
                )
                for group in groups
            ],
        )
    for candidate in candidates:
        if candidate.report is None:
            output.warn(
                f"{candidate.name}: {NOT_MEASURED}; run `{command_line('ducat', 'evaluate', candidate.path)}`."
            )
    reports = [candidate.report for candidate in candidates if candidate.report is not None]
    if any(report.legacy_2c_accuracy is not None for report in reports):
        output.say(f"* {LEGACY}.")
    if any(report.failed_checks for report in reports):
        output.warn(f"masked?: {MASKING}; `ducat evaluate` says by which check.")
    if any(report.is_screening for report in reports):
        output.warn(f"screening: {SCREENING}; `ducat evaluate --suite standard` measures that.")
    for what in differences(candidates):
        output.warn(f"not comparable: the models were not measured with the same {what}.")
    if corruption_differences(candidates):
        output.warn("accuracies under corruptions are not comparable: they were measured on other images.")
    files = _plot(candidates, out, output)
    output.result(
        {
            "models": to_json(candidates),
            "comparable": not differences(candidates),
            "seeds": [group.to_json() for group in groups],
            "plots": [str(file) for file in files],
        }
    )


def _plot(candidates: list[Candidate], out: Path, output: Output) -> list[Path]:
    if not any(candidate.report is not None for candidate in candidates):
        output.warn("nothing to compare, so there is no plot.")
        return []
    try:
        from training.evaluation.plot import plot_comparison
    except ModuleNotFoundError as error:
        output.warn(f"no plot: {missing_extra(error.name or 'matplotlib', 'train')}")
        return []
    files = plot_comparison(candidates, out)
    output.say(f"Plot: {', '.join(str(file) for file in files)}")
    return files


def _read(models: tuple[Path, ...]) -> list[Candidate]:
    from training.evaluation.comparison import Candidate

    candidates = []
    for name, given in zip(_names(models), models, strict=True):
        if given.suffix == ".json":
            candidates.append(_of_others(given))
            continue
        path = model_in(given)
        spec = read_verified_spec(path).spec
        size = path.stat().st_size
        candidates.append(
            Candidate(name, path, spec.robustness, spec.weights_digest, _parameters(spec), size, spec.recipe)
        )
    return candidates


def _of_others(file: Path) -> Candidate:
    from training.evaluation.comparison import Candidate

    report = read_report(file)
    if report is None:
        raise DataError(
            f"There is no report at {file}.", "name a model, or a report that `ducat evaluate` wrote"
        )
    name = file.name.removesuffix(".json").removesuffix(".robustness")
    return Candidate(name, file, report, report.weights_digest, None, None)


def _parameters(spec: ModelSpec) -> int | None:
    """None where there is no torch, or no package that knows the network."""
    try:
        from ducat_serve.deployed import parameter_count
    except ModuleNotFoundError:
        return None
    try:
        return parameter_count(spec)
    except DucatError:
        # Somebody's own code, or a package that is not here: a count is not worth importing it.
        return None


def _names(models: tuple[Path, ...]) -> list[str]:
    """A bundled model's or the run folder's name, or the whole path where that would not tell models apart."""
    short = [bundled_name(path) or (path if path.is_dir() else path.parent).resolve().name for path in models]
    return [str(path) if short.count(name) > 1 else name for path, name in zip(models, short, strict=True)]


@dataclass(frozen=True)
class _Column:
    """A figure that some reports lack; the column is there where one of the models has it."""

    title: str
    figure: Callable[[RobustnessReport], float | None]

    def of(self, report: RobustnessReport | None) -> str:
        figure = None if report is None else self.figure(report)
        return "" if figure is None else f"{figure:.1%}"


_OPTIONAL = (
    _Column("floor", lambda report: report.floor.accuracy if report.floor else None),
    _Column("corruptions", lambda report: report.corruptions.accuracy if report.corruptions else None),
    _Column("legacy*", lambda report: report.legacy_2c_accuracy),
)


def _row(candidate: Candidate, is_best: bool, optional: list[_Column]) -> tuple[str, ...]:
    report = candidate.report
    parameters = "?" if candidate.parameters is None else f"{candidate.parameters / 1e6:.2f} M"
    size = (parameters, "?" if candidate.bytes is None else f"{candidate.bytes / 1e6:.1f} MB")
    if report is None:
        return (candidate.name, "?", "?", *("" for _ in optional), *size, "")
    low, high = report.worst_case_interval
    remarks = ["Pareto"] if is_best else []
    remarks += ["screening"] if report.is_screening else []
    remarks += ["masked?"] if report.failed_checks else []
    return (
        candidate.name,
        f"{report.clean_accuracy:.1%}",
        f"{report.worst_case_accuracy:.1%} ({100 * low:.1f}-{100 * high:.1f})",
        *(column.of(report) for column in optional),
        *size,
        ", ".join(remarks),
    )

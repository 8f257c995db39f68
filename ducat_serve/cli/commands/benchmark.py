"""`ducat benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.atomic import require_writable
from ducat_serve.bundled import bundled_name
from ducat_serve.cli.on_the_fly import export_of
from ducat_serve.cli.options import FiniteRange, ModelPath, Stem, common, device_option
from ducat_serve.cpu import has_int8_dot_product, overflow_warning
from ducat_serve.errors import UsageError, command_line, missing_extra
from ducat_serve.output import Output
from ducat_serve.threads import usable_cpus

if TYPE_CHECKING:
    from ducat_serve.benchmark import Proposal
    from ducat_serve.predictor import Device

_SHOWN = 3  # models of a repository, in the command that measures them


@click.command("benchmark")
@click.argument("models", metavar="MODEL...", type=ModelPath("onnx"), nargs=-1, required=True)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Images of one inference; repeatable.  [default: 1, 2, 4, 8, 16 and 32]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    multiple=True,
    help="CPU threads of one inference; repeatable.  [default: 1, 2, 4 ... and all cores]",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long to measure, all together; every configuration runs 5 times at least.",
)
@click.option(
    "--plot",
    type=Stem(),
    help="Draw images per second and latency over the batch size, as STEM.png and STEM.svg.",
)
@device_option
@common
def command(
    models: tuple[Path, ...],
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float,
    plot: Path | None,
    device: Device,
    json: bool,
) -> None:
    """Measure how fast exported MODELs answer on this machine, side by side: latency and images per second.

    MODEL is a model.onnx, a folder with one, or a bundled model (`ducat models`).

    Configurations take turns, so that other work on the machine slows all of them alike. Images are random and of the
    model's size; decoding and HTTP are not included. It ends with what to give `ducat serve`, which
    `ducat serve --auto` finds out by itself.

    \b
    Example:
      ducat benchmark model.onnx model-int8.onnx
      ducat benchmark model.onnx --batch 1 --batch 8 --threads 1 --json
      ducat benchmark digits-small --plot speed
    """
    from ducat_serve.benchmark import BATCHES, inferences, measure, names_of, proposals, thread_counts
    from ducat_serve.predictor import Predictor

    output = Output(json)
    if plot is not None:
        _require_plot(plot)

    for model in models:
        _require_no_repository(model)
    files = list(dict.fromkeys(export_of(model, output) for model in models))
    for path in files:
        warning = overflow_warning(Predictor(path, "cpu", threads=1).spec)
        if warning is not None:
            output.warn(f"{path}: {warning}")
    runs = inferences(
        files,
        device,
        sorted(set(threads)) or thread_counts(),
        sorted(set(batch)) or BATCHES,
    )
    with output.progress("benchmark", seconds) as advance:
        timings = measure(runs, seconds, advance=advance)
    found, cpus = proposals(timings), usable_cpus()
    output.table(
        f"{cpus} usable {'CPU' if cpus == 1 else 'CPUs'}, "
        f"int8 dot product (VNNI): {'yes' if has_int8_dot_product() else 'no'}",
        ("model", "precision", "provider", "threads", "batch", "p50, ms", "p95, ms", "p99, ms", "images/s"),
        [
            (
                t.configuration.model,
                t.configuration.precision,
                t.configuration.provider.removesuffix("ExecutionProvider"),
                str(t.configuration.threads),
                str(t.configuration.batch),
                *(f"{1000 * t.latency(p):.2f}" for p in (50, 95, 99)),
                f"{t.images_per_second:,.0f}",
            )
            for t in timings
        ],
    )
    served_as = dict(zip(names_of(files), (bundled_name(file) or file for file in files), strict=True))
    for proposal in found:
        output.text(_in_words(proposal, served_as[proposal.timing.configuration.model]))
    if plot is not None:
        from ducat_serve.library.benchmark_plot import plot_timings

        output.say(f"Plot: {', '.join(map(str, plot_timings(timings, plot)))}")
    output.result(
        {
            "usable_cpus": cpus,
            "int8_dot_product": has_int8_dot_product(),
            "measurements": [timing.to_json() for timing in timings],
            "proposals": [
                {
                    "model": p.timing.configuration.model,
                    "provider": p.timing.configuration.provider,
                    "threads": p.threads,
                    "max_batch": p.max_batch,
                }
                for p in found
            ],
        }
    )


def _require_no_repository(path: Path) -> None:
    """Raise UsageError for a folder of NAME/VERSION/model.onnx, which `ducat serve` takes: which one is meant?"""
    found = [file for file in sorted(path.glob("*/*/model.onnx")) if file.parent.name.isdigit()]
    if found and not (path / "model.onnx").exists():
        raise UsageError(
            f"{path} is a repository of models ({len(found)} of them), and a MODEL is one file.",
            command_line("ducat", "benchmark", *found[:_SHOWN]),
        )


def _require_plot(stem: Path) -> None:
    """Find out before minutes of measuring what would keep the plot from being drawn."""
    require_writable(stem.with_name(stem.name + ".png"))
    try:
        import ducat_serve.library.benchmark_plot  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "matplotlib", "train") from error


def _in_words(proposal: Proposal, model: str | Path) -> str:
    given = proposal.timing.configuration
    command = command_line(
        "ducat", "serve", model, "--threads", proposal.threads, "--max-batch", proposal.max_batch
    )
    speed, milliseconds = proposal.timing.images_per_second, 1000 * proposal.timing.latency(50)
    return (
        f"{given.model} on {given.provider.removesuffix('ExecutionProvider')}: {command}  "
        f"({speed:,.0f} images/s, a full batch in {milliseconds:.1f} ms)"
    )

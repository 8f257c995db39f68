"""`ducat evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.atomic import require_writable, write_text
from ducat_serve.cli.corruptions_suite import show_corruptions
from ducat_serve.cli.evaluate_arguments import EvaluateArguments
from ducat_serve.cli.evaluate_options import evaluate_options
from ducat_serve.cli.evaluated_model import EvaluatedModel
from ducat_serve.cli.headings import CommandWithHeadings, heading
from ducat_serve.cli.options import common
from ducat_serve.cli.release_gate import require
from ducat_serve.cli.report_table import show_report
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.report_file import read_report
from ducat_serve.threads import choose_threads
from training.distributed.environment import is_first_process, launched
from training.evaluation.robustbench import robustbench_entry

if TYPE_CHECKING:
    from ducat_serve.cli.main import Invocation
    from ducat_serve.library.corruptions import MeasuredCorruptions
    from ducat_serve.library.foreign_sources import Source
    from ducat_serve.report import RobustnessReport


@click.command("evaluate", cls=CommandWithHeadings)
@click.argument("model", type=EvaluatedModel(), required=False)
@evaluate_options
@heading("All commands")
@common
@click.pass_context
def command(ctx: click.Context, /, devices: int | None, threads: int | None, json: bool, **given: Any) -> int:
    """Measure clean and robust accuracy of MODEL (a model.safetensors, its run folder, a model.onnx, a bundled model).

    The attack is run on the deployed function, the one that is exported and served: it knows the fold and
    the dummies. The report is stored in the checkpoint and follows it into the exported model.

    A .onnx file in float32 or float16 has no gradients: it is attacked by its scores and by images made on its
    checkpoint; an int8 file also by the gradients of a copy. The white-box report that a file got from its
    checkpoint stays; in another precision it has none, and this one is stored.

    package.module:callable is a model of others: the callable returns a torch.nn.Module from images in [0, 1] to
    logits. So is a .onnx file that ducat did not write, with --input and --scale: it is attacked by its scores, and by
    images made on a --twin. So is a running server, --url in the place of MODEL, within a --query-budget. All of them
    need --dataset and --eps; report and card are written here, or to --out.

    Of a bundled model (`ducat models`) a copy in the current folder is measured, and keeps the report.

    \b
    Example:
      ducat evaluate runs/digits
      ducat evaluate runs/digits --suite standard --max-examples 500 --json
      ducat evaluate runs/digits --attack apgd-ce --attack targeted
      ducat evaluate runs/digits --attack closest-first --attack mine:attack --import-from .
      ducat evaluate runs/digits --suite standard --bar clean=0.80,worst_case=0.45
      ducat evaluate runs/digits --eps 2/255 --eps 4/255 --eps 8/255
      ducat evaluate runs/digits --save-adversarial broken --per-image rows.csv
      ducat evaluate runs/digits --suite corruptions
      ducat evaluate runs/digits --suite full --devices 4
      ducat evaluate runs/digits/model.onnx
      ducat evaluate nets:make --import-from . --dataset cifar10 --eps 8/255
      ducat evaluate nets:make --import-from . --dataset folder:photos --image-size 224 --eps 4/255
      ducat evaluate their.onnx --input NCHW --scale 255 --dataset cifar10 --eps 8/255
      ducat evaluate --url http://127.0.0.1:3000/v1/predict --query-budget 100000 --dataset digits --eps 0.1
    """
    choose_threads(threads)
    output = Output(json)
    asked = EvaluateArguments.of(given)
    if (code := _in_several_processes(ctx, devices, asked, output)) is not None:
        return code
    asked.refuse_contradictions()
    source = asked.source()
    with _gone_on_with_as_typed(ctx):
        finished = _measured(asked, output) if source is None else _measured_of_others(asked, source, output)
    if finished is not None:
        _conclude(finished, asked, output)
    return 0


def _in_several_processes(
    ctx: click.Context, devices: int | None, asked: EvaluateArguments, output: Output
) -> int | None:
    """Start the processes that ``devices`` asks for, and return their exit code; None in one that shall measure."""
    if (devices or 1) == 1 and not launched():
        return None
    if asked.model is None:
        raise UsageError("--devices is for a MODEL: a server is asked by one process.", "leave it out")
    if asked.runs_no_attack:
        raise UsageError("--devices is for attacks: --suite corruptions runs in one process.", "leave it out")
    if launched():
        return None
    from training.distributed.launch import launch

    invocation: Invocation = ctx.find_root().obj
    again = invocation.with_flag("--resume")
    return launch(devices or 1, invocation.arguments, invocation.environment, output, again)


@contextmanager
def _gone_on_with_as_typed(ctx: click.Context) -> Iterator[None]:
    """Every option must be the same again, so the command that goes on is the one that was typed."""
    from ducat_serve.library.resuming import InterruptedEvaluation

    try:
        yield
    except InterruptedEvaluation as stopped:
        invocation: Invocation = ctx.find_root().obj
        stopped.next_step = invocation.with_flag("--resume")
        raise


@dataclass(frozen=True)
class _Finished:
    """A report of attacks that is stored, and what is said of the model beside it."""

    report: RobustnessReport
    beside: Path  # the file that plots and a leaderboard's entry are written beside
    architecture: str


def _measured_of_others(asked: EvaluateArguments, source: Source, output: Output) -> _Finished | None:
    """Measure a model of others, and write its report and card. None where nothing is left to be done."""
    from ducat_serve.library.corruptions import measure_foreign_on_corruptions
    from ducat_serve.library.foreign import card_beside, measure_foreign, write_report
    from ducat_serve.library.report_places import beside_a_better_one

    request = asked.foreign_request(source)
    out = asked.out or Path(f"{source.file_name}.robustness.json")
    for file in (out, card_beside(out)):  # before minutes of attacks, not after
        require_writable(file)
    read_report(out)  # raises where the file is something else
    if asked.runs_no_attack:
        _finish_corruptions(measure_foreign_on_corruptions(request, out, output), None, output)
        return None
    measured = measure_foreign(request, out, asked.outputs(), output, resume=asked.resume)
    if not is_first_process():
        return None
    show_report(measured.report, None, output)
    # A report whose place was named is put there; where the place is ours, one that says more is not lost.
    if asked.out is None and not asked.replace:
        out = beside_a_better_one(measured.report, out, output)
    write_report(source.name, measured.report, out, output)
    measured.forget()
    return _Finished(measured.report, out, source.name)


def _measured(asked: EvaluateArguments, output: Output) -> _Finished | None:
    """Measure a model of ours, and store the report in it. None where nothing is left to be done."""
    from ducat_serve.library.corruptions import measure_on_corruptions
    from ducat_serve.library.file_evaluation import measure
    from ducat_serve.library.report_places import beside_a_better_one

    request, out = asked.request(), asked.out
    if asked.runs_no_attack:
        _finish_corruptions(measure_on_corruptions(request, output), out, output)
        return None
    measured = measure(request, output, asked.outputs(), resume=asked.resume)
    if not is_first_process():
        return None
    report, spec = measured.report, measured.spec
    show_report(report, spec, output)
    if out is not None:  # before it is stored, which fails where the file is another model by now
        write_text(out, report.model_dump_json(indent=2) + "\n")
    if not measured.store(output, replace=asked.replace) and out is None:
        beside = measured.path.with_name(f"{measured.path.stem}.robustness.json")
        if not asked.replace:
            beside = beside_a_better_one(report, beside, output)
        write_text(beside, report.model_dump_json(indent=2) + "\n")
        output.say(f"The report: {beside}")
    measured.state.remove()
    return _Finished(report, measured.path, spec.network)


def _conclude(finished: _Finished, asked: EvaluateArguments, output: Output) -> None:
    """Write what else was asked for, hold the report against the bar, and print it."""
    report = finished.report
    if report.curve is not None:
        from training.evaluation.plot import plot_curve

        drawn = plot_curve(report, finished.beside.with_name(f"{finished.beside.stem}-accuracy-over-eps"))
        output.say(f"Accuracy over eps: {drawn[0]}")
    if asked.export is not None:
        entry = finished.beside.with_suffix(".robustbench.json")
        write_text(entry, robustbench_entry(report, finished.architecture))
        output.say(f"For RobustBench: {entry}; fill in what is empty.")
    if asked.bar is not None:
        require(report, asked.bar)  # its error is then the one document on stdout; --out has the report
    output.result(report.model_dump(mode="json"))


def _finish_corruptions(measured: MeasuredCorruptions, out: Path | None, output: Output) -> None:
    show_corruptions(measured.corruptions, output)
    measured.store(output)
    if out is not None:
        write_text(out, measured.corruptions.model_dump_json(indent=2) + "\n")
    output.result(measured.corruptions.model_dump(mode="json"))

"""`ducat evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ducat_serve.atomic import require_writable, write_text
from ducat_serve.cli.corruptions_suite import SUITE as CORRUPTIONS
from ducat_serve.cli.corruptions_suite import refuse_options_of_attacks, show_corruptions
from ducat_serve.cli.evaluated_model import EvaluatedModel, ForeignModel
from ducat_serve.cli.foreign_options import ForeignGiven, foreign_options
from ducat_serve.cli.headings import CommandWithHeadings, heading
from ducat_serve.cli.network_options import own_network_option
from ducat_serve.cli.options import PIXEL_SIZE, common, data_options, device_option
from ducat_serve.cli.release_gate import Bar, require, require_no_screening
from ducat_serve.cli.report_table import show_report
from ducat_serve.cli.threads_option import threads_option
from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.threads import choose_threads

if TYPE_CHECKING:
    from ducat_serve.cli.main import Invocation
    from ducat_serve.library.corruptions import MeasuredCorruptions
    from ducat_serve.predictor import Device
    from ducat_serve.threat_model import Norm


@click.command("evaluate", cls=CommandWithHeadings)
@click.argument("model", type=EvaluatedModel(), required=False)
@heading("Images and threat model")
@click.option("--dataset", help="Another data set than it was trained on, or where folder:PATH is now.")
@click.option(
    "--split", type=click.Choice(["val", "test"]), default="test", show_default=True, help="Which images."
)
@click.option(
    "--max-examples", type=click.IntRange(min=1), help="Only the first N images of a seeded shuffle."
)
@data_options
@click.option(
    "--norm", type=click.Choice(["linf", "l2", "l1"]), help="[default: the norm it was trained for]"
)
@click.option(
    "--eps",
    type=PIXEL_SIZE,
    multiple=True,
    help="Radius in pixels, e.g. 8/255; several give a curve.  [default: as trained]",
)
@click.option("--lattice", type=click.Choice(["8bit"]), help="Attacks may only make images of 8 bits.")
@heading("Attacks")
@click.option(
    "--suite",
    default="quick",
    show_default=True,
    help="quick (a few attacks: a screening), standard (the strongest few, more where gradients mislead, and whether "
    "images can be flagged) or full (also AutoAttack and Square); corruptions runs no attack, but CIFAR-10-C and its "
    "kind.",
)
@click.option("--attack", multiple=True, metavar="NAME", help="Instead of a suite; repeatable.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on after the last attack of an interrupted evaluation.")
@heading("Results")
@click.option(
    "--bar", type=Bar(), help="Exit 3 unless both hold, e.g. clean=0.80,worst_case=0.45: a release gate."
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report here, as JSON."
)
@click.option(
    "--replace",
    is_flag=True,
    help="Store the report even where the one that is stored already says more.",
)
@click.option(
    "--per-image",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a CSV row for each image: what broke it, and how sure the model was.",
)
@click.option(
    "--save-adversarial",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the images that break the model, as PNG and .safetensors.",
)
@click.option(
    "--export", type=click.Choice(["robustbench"]), help="Also write that leaderboard's JSON beside MODEL."
)
@heading("Models of other kinds")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="For a .onnx MODEL: the checkpoint it came from.  [default: model.safetensors beside it]",
)
@own_network_option
@foreign_options
@heading("Machine")
@device_option
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    help="Start so many processes here, one per device; batches are dealt out, and results stay the same.",
)
@threads_option
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Halved when memory runs out.  [default: 256; fewer of images above 64x64 pixels]",
)
@heading("All commands")
@common
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path | ForeignModel | None,
    split: Literal["val", "test"],
    norm: Norm | None,
    eps: tuple[float, ...],
    lattice: str | None,
    suite: str,
    attack: tuple[str, ...],
    max_examples: int | None,
    batch_size: int | None,
    seed: int,
    devices: int | None,
    resume: bool,
    replace: bool,
    save_adversarial: Path | None,
    per_image: Path | None,
    export: str | None,
    bar: dict[str, float] | None,
    checkpoint: Path | None,
    dataset: str | None,
    out: Path | None,
    data_dir: Path | None,
    offline: bool,
    device: Device,
    threads: int | None,
    json: bool,
    **foreign: Any,
) -> int:
    """Measure clean and robust accuracy of MODEL (a model.safetensors, its run folder, a model.onnx, a bundled model).

    The attack is run on the deployed function, the one that is exported and served: it knows the fold and
    the dummies. The report is stored in the checkpoint and follows it into the exported model.

    A .onnx file has no gradients: it is attacked by its scores and by images made on its checkpoint. The
    white-box report that it got from there stays; in another precision it has none, and this one is stored.

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
      ducat evaluate runs/digits --suite standard --bar clean=0.80,worst_case=0.45
      ducat evaluate runs/digits --eps 2/255 --eps 4/255 --eps 8/255
      ducat evaluate runs/digits --save-adversarial broken --per-image rows.csv
      ducat evaluate runs/digits --suite corruptions
      ducat evaluate runs/digits --suite full --devices 4
      ducat evaluate runs/digits/model.onnx
      ducat evaluate nets:make --import-from . --dataset cifar10 --eps 8/255
      ducat evaluate their.onnx --input NCHW --scale 255 --dataset cifar10 --eps 8/255
      ducat evaluate --url http://127.0.0.1:3000/v1/predict --query-budget 100000 --dataset digits --eps 0.1
    """
    choose_threads(threads)

    from training.distributed.environment import is_first_process, launched

    several = (devices or 1) > 1 or launched()
    if several and model is None:
        raise UsageError("--devices is for a MODEL: a server is asked by one process.", "leave it out")
    if several and suite == CORRUPTIONS:
        raise UsageError("--devices is for attacks: --suite corruptions runs in one process.", "leave it out")
    if several and not launched():
        from training.distributed.launch import launch

        invocation: Invocation = ctx.find_root().obj
        again = "the same command with --resume"
        return launch(devices or 1, invocation.arguments, invocation.environment, Output(json), again)

    from ducat_serve.library.corruptions import measure_foreign_on_corruptions, measure_on_corruptions
    from ducat_serve.library.evaluation import measure
    from ducat_serve.library.foreign import ForeignRequest, card_beside, measure_foreign, write_report
    from training.evaluation.outputs import Outputs
    from training.evaluation.prepare import Request
    from training.evaluation.robustbench import robustbench_entry

    output = Output(json)
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {out.parent}.")
    if suite == CORRUPTIONS:
        refuse_options_of_attacks(
            {
                "--attack": attack,
                "--norm": norm,
                "--eps": eps,
                "--lattice": lattice,
                "--bar": bar,
                "--export": export,
                "--save-adversarial": save_adversarial,
                "--per-image": per_image,
                "--checkpoint": checkpoint,
                "--resume": resume,
            }
        )
    if bar is not None:
        require_no_screening(bar, suite, attack)
    if out is not None:
        require_writable(out)
    outputs = Outputs(save_adversarial, per_image)
    source = ForeignGiven(**foreign).source(model, device)
    if source is not None:
        _refuse_for_models_of_others({"--checkpoint": checkpoint, "--replace": replace})
        if dataset is None:
            raise UsageError(f"{source.name} says nothing of its data.", "name them: --dataset cifar10")
        out = out or Path(f"{source.file_name}.robustness.json")
        for file in (out, card_beside(out)):  # before minutes of attacks, not after
            require_writable(file)
        asked = ForeignRequest(
            source,
            dataset,
            eps,
            norm=norm or "linf",
            eight_bit=lattice is not None,
            split=split,
            suite=suite,
            attacks=attack,
            max_examples=max_examples,
            batch_size=batch_size,
            seed=seed,
            data_dir=data_dir,
            offline=offline,
            device=device,
        )
        if suite == CORRUPTIONS:
            _finish_corruptions(measure_foreign_on_corruptions(asked, out, output), None, output)
            return 0
        of_others = measure_foreign(asked, out, outputs, output, resume=resume)
        if not is_first_process():
            return 0
        report = of_others.report
        show_report(report, None, output)
        write_report(source.name, report, out, output)
        of_others.forget()
        beside, trained_on, architecture = out, dataset, source.name
    else:
        assert isinstance(model, Path)
        request = Request(
            model,
            checkpoint=checkpoint,
            split=split,
            norm=norm,
            eps=eps,
            eight_bit=lattice is not None,
            suite=suite,
            attacks=attack,
            max_examples=max_examples,
            batch_size=batch_size,
            seed=seed,
            dataset=dataset,
            data_dir=data_dir,
            offline=offline,
            device=device,
        )
        if suite == CORRUPTIONS:
            _finish_corruptions(measure_on_corruptions(request, output), out, output)
            return 0
        measured = measure(request, output, outputs, resume=resume)
        if not is_first_process():
            return 0
        report, spec = measured.report, measured.spec
        show_report(report, spec, output)
        if out is not None:  # before it is stored, which fails where the file is another model by now
            write_text(out, report.model_dump_json(indent=2) + "\n")
        measured.store(output, replace=replace)
        measured.state.remove()
        beside, architecture = measured.path, spec.network
        trained_on = str((spec.recipe or {}).get("dataset", report.dataset))
    if report.curve is not None:
        from training.evaluation.plot import plot_curve

        drawn = plot_curve(report, beside.with_name("accuracy-over-eps"))
        output.say(f"Accuracy over eps: {drawn[0]}")
    if export is not None:
        entry = beside.with_suffix(".robustbench.json")
        write_text(entry, robustbench_entry(report, trained_on, architecture))
        output.say(f"For RobustBench: {entry}; fill in what is empty.")
    if bar is not None:
        require(report, bar)  # its error is then the one document on stdout; --out has the report
    output.result(report.model_dump(mode="json"))
    return 0


def _finish_corruptions(measured: MeasuredCorruptions, out: Path | None, output: Output) -> None:
    show_corruptions(measured.corruptions, output)
    measured.store(output)
    if out is not None:
        write_text(out, measured.corruptions.model_dump_json(indent=2) + "\n")
    output.result(measured.corruptions.model_dump(mode="json"))


def _refuse_for_models_of_others(given: dict[str, object]) -> None:
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: nothing is stored of a model of others.")

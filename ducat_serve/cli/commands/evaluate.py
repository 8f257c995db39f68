"""`ducat evaluate`."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve import __version__
from ducat_serve.cli.options import PIXEL_SIZE, common, data_options, device_option
from ducat_serve.cli.release_gate import Bar, require
from ducat_serve.cli.report_table import show_report
from ducat_serve.errors import InterruptedRun, UsageError, missing_extra
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec

if TYPE_CHECKING:
    from ducat_serve.predictor import Device
    from ducat_serve.threat_model import ThreatModel
    from training.data import Dataset
    from training.data.cache import Split

UNFINISHED = ".evaluation.partial"  # after the name of the model file


@click.command("evaluate")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["val", "test"]), default="test", show_default=True, help="Which images."
)
@click.option(
    "--norm", type=click.Choice(["linf", "l2", "l1"]), help="[default: the norm it was trained for]"
)
@click.option("--eps", type=PIXEL_SIZE, help="Radius in pixels, e.g. 8/255.  [default: as trained]")
@click.option(
    "--suite",
    default="quick",
    show_default=True,
    help="quick (PGD, APGD, pair margin), standard (all our attacks, and whether images can be flagged) or full "
    "(also AutoAttack and Square).",
)
@click.option("--attack", multiple=True, metavar="NAME", help="Instead of a suite; repeatable.")
@click.option(
    "--max-examples", type=click.IntRange(min=1), help="Only the first N images of a seeded shuffle."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Halved when memory runs out.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on after the last attack of an interrupted evaluation.")
@click.option(
    "--bar", type=Bar(), help="Exit 3 unless both hold, e.g. clean=0.80,worst_case=0.45: a release gate."
)
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="For a .onnx MODEL: the checkpoint it came from.  [default: model.safetensors beside it]",
)
@click.option("--dataset", help="Another data set than it was trained on, or where folder:PATH is now.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report here, as JSON."
)
@data_options
@device_option
@common
def command(
    model: Path,
    split: str,
    norm: str | None,
    eps: float | None,
    suite: str,
    attack: tuple[str, ...],
    max_examples: int | None,
    batch_size: int,
    seed: int,
    resume: bool,
    bar: dict[str, float] | None,
    checkpoint: Path | None,
    dataset: str | None,
    out: Path | None,
    data_dir: Path | None,
    offline: bool,
    device: Device,
    json: bool,
) -> None:
    """Measure clean and robust accuracy of MODEL (a model.safetensors, its run folder, or a model.onnx).

    The attack is run on the deployed function, the one that is exported and served: it knows the fold and
    the dummies. The report is stored in the checkpoint and follows it into the exported model.

    A .onnx file has no gradients: it is attacked by its scores and by images made on its checkpoint. The
    white-box report that it got from there stays; in another precision it has none, and this one is stored.

    \b
    Example:
      ducat evaluate runs/digits
      ducat evaluate runs/digits --suite standard --max-examples 500 --json
      ducat evaluate runs/digits --attack apgd-ce --attack targeted
      ducat evaluate runs/digits --suite standard --bar clean=0.80,worst_case=0.45
      ducat evaluate runs/digits/model.onnx
    """
    from ducat_serve.atomic import write_text
    from ducat_serve.checkpoint import checkpoint_path, read_checkpoint, write_checkpoint
    from training.batches import DeviceSplit
    from training.data.cache import content_digest
    from training.device import choose_device, exact_float32
    from training.evaluation.evaluate import evaluate
    from training.evaluation.prepare import prepare
    from training.evaluation.state import Unfinished
    from training.run.dataset import load_training_data

    output = Output(json)
    path = checkpoint_path(model)
    is_onnx = path.suffix == ".onnx"
    if checkpoint is not None and not is_onnx:
        raise UsageError("--checkpoint is for a .onnx MODEL.", f"ducat evaluate {checkpoint}")
    torch_device = choose_device("cpu" if is_onnx else device, output)
    exact_float32()
    prepared = prepare(
        path,
        checkpoint,
        suite=suite,
        attacks=attack,
        device=torch_device,
        runtime=device,
        output=output,
    )
    spec = prepared.spec
    threat_model = _threat_model(spec, norm, eps)
    store_report = _export_writer() if is_onnx and _has_no_white_box_report(spec) else None
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {out.parent}.")
    data = load_training_data(path, spec, dataset=dataset, data_dir=data_dir, offline=offline, output=output)
    chosen = _choose(data, spec, split, max_examples, seed)
    subject = prepared.subject(data.title, "val" if split == "val" else "test")
    unfinished = Unfinished(
        path.with_name(path.name + UNFINISHED),
        request={
            "version": __version__,
            "weights": spec.weights_digest,
            "artefact": f"{subject.artefact} {subject.precision}",
            "surrogate": prepared.surrogate_digest,
            "batch size": batch_size,
            "data": f"{data.title} {split} {content_digest(data.class_names, [chosen])}",
            "threat model": str(threat_model),
            "attacks": [[stage.name, stage.settings] for stage in prepared.plan.stages],
            "seed": seed,
        },
    )
    if resume and not unfinished.exists():
        output.warn("there is nothing to resume; starting from the beginning.")
    if unfinished.exists() and not resume:
        output.warn("an interrupted evaluation is dropped; --resume would have gone on with it.")
        unfinished.remove()
    try:
        report = evaluate(
            prepared.model,
            DeviceSplit.of(chosen, torch_device),
            subject,
            threat_model,
            prepared.with_val(DeviceSplit.of(data.val, torch_device)),
            seed=seed,
            batch_size=batch_size,
            output=output,
            unfinished=unfinished,
            resume=resume,
        )
    except KeyboardInterrupt:
        raise InterruptedRun(
            signal.SIGINT,
            "interrupted; what the finished attacks found is kept.",
            f"ducat evaluate {model} --resume (and the same options)",
        ) from None
    show_report(report, spec, output)
    if not is_onnx:
        _warn_of_loss(spec.robustness, report, output)
        _, tensors = read_checkpoint(path)
        write_checkpoint(path, tensors, spec.model_copy(update={"robustness": report}))
        output.say(f"Stored in {path}.\nNext: ducat export {path}")
    elif store_report is not None:
        store_report(path, report)
        output.say(f"Stored in {path}: attacks by scores are all that can be said of it.")
    elif spec.robustness is not None:
        output.say(f"The white-box report inside {path} stays: {spec.robustness.summary()}.")
    unfinished.remove()
    if out is not None:
        write_text(out, report.model_dump_json(indent=2) + "\n")
    if bar is not None:
        require(report, bar)  # its error is then the one document on stdout; --out has the report
    output.result(report.model_dump(mode="json"))


def _has_no_white_box_report(spec: ModelSpec) -> bool:
    return spec.robustness is None or spec.robustness.artefact == "onnx"


def _export_writer() -> Callable[[Path, RobustnessReport], None]:
    """What stores a report in an exported file. Asked for before hours of attack, not after."""
    try:
        from export.model_card import model_card
        from export.onnx_writer import store_report
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error
    from ducat_serve.atomic import write_text

    def store(path: Path, report: RobustnessReport) -> None:
        spec = store_report(path, report)
        card = path.with_suffix(".md")
        if card.is_file():
            write_text(card, model_card(spec, path.name))

    return store


def _threat_model(spec: ModelSpec, norm: str | None, eps: float | None) -> ThreatModel:
    from ducat_serve.threat_model import ThreatModel

    if eps == 0:
        raise UsageError(
            "--eps 0 is no attack; the clean accuracy is printed in any case.", "give --eps 8/255"
        )
    if eps is None and norm not in (None, spec.threat_model.norm):
        raise UsageError(f"--norm {norm} needs --eps: the model was trained for {spec.threat_model}.")
    return ThreatModel.model_validate(
        {"norm": norm or spec.threat_model.norm, "eps": spec.threat_model.eps if eps is None else eps}
    )


def _choose(data: Dataset, spec: ModelSpec, split: str, max_examples: int | None, seed: int) -> Split:
    """The images to measure on. Raises UsageError where the data set has other classes than the model."""
    import torch

    from training.data.cache import Split
    from training.randomness import stream

    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model ({len(data.class_names)} and {spec.num_classes})."
        )
    chosen: Split = getattr(data, split)
    if max_examples is None or max_examples >= len(chosen):
        return chosen
    order = torch.randperm(len(chosen), generator=stream(seed, "subset"))[:max_examples]
    index = order.sort().values.numpy()
    return Split(chosen.images[index], chosen.labels[index])


def _warn_of_loss(old: RobustnessReport | None, new: RobustnessReport, output: Output) -> None:
    """Say so where the report that is replaced told more, or something else."""
    if old is None:
        return
    losses = {
        "fewer attacks": len(new.attacks) < len(old.attacks),
        "fewer images": new.examples < old.examples,
        "another threat model": (new.norm, new.eps) != (old.norm, old.eps),
        "other data": (new.dataset, new.split) != (old.dataset, old.split),
    }
    found = [what for what, true in losses.items() if true]
    if found:
        output.warn(
            f"this report ({', '.join(found)}) replaces: {old.summary()}. Measure again with --suite standard."
        )

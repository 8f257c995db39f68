"""`ducat evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ducat_serve.cli.options import PIXEL_SIZE, common, data_options, device_option
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport


class Bar(click.ParamType[dict[str, float]]):
    """`clean=0.80,worst_case=0.45`, either or both."""

    name = "bar"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, float]:
        if isinstance(value, dict):
            return value
        bar: dict[str, float] = {}
        for part in str(value).split(","):
            name, _, number = part.partition("=")
            try:
                bar[name.strip()] = float(number)
            except ValueError:
                self.fail(f"'{part}' is not NAME=FRACTION", param, ctx)
        if not set(bar) <= {"clean", "worst_case"} or not all(0 <= b <= 1 for b in bar.values()):
            self.fail(f"'{value}' is not like clean=0.80,worst_case=0.45", param, ctx)
        return bar


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
    "--suite", default="quick", show_default=True, help="quick (PGD, APGD, pair margin) or standard."
)
@click.option("--attack", multiple=True, metavar="NAME", help="Instead of a suite; repeatable.")
@click.option(
    "--max-examples", type=click.IntRange(min=1), help="Only the first N images of a seeded shuffle."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--bar", type=Bar(), help="Exit 3 unless both hold, e.g. clean=0.80,worst_case=0.45: a release gate."
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
    bar: dict[str, float] | None,
    dataset: str | None,
    out: Path | None,
    data_dir: Path | None,
    offline: bool,
    device: str,
    json: bool,
) -> None:
    """Measure clean and robust accuracy of MODEL (a model.safetensors or its run folder).

    The attack is run on the deployed function, the one that is exported and served: it knows the fold and
    the dummies. The report is stored in the checkpoint and follows it into the exported model.

    \b
    Example:
      ducat evaluate runs/digits
      ducat evaluate runs/digits --suite standard --max-examples 500 --json
      ducat evaluate runs/digits --attack apgd-ce --attack targeted
      ducat evaluate runs/digits --suite standard --bar clean=0.80,worst_case=0.45
    """
    import torch

    from ducat_serve.atomic import write_text
    from ducat_serve.checkpoint import checkpoint_path, read_checkpoint, write_checkpoint
    from ducat_serve.cli.run_data import load_training_data
    from ducat_serve.deployed import load
    from ducat_serve.pixels import format_size
    from ducat_serve.spec import ThreatModel
    from training.batches import DeviceSplit
    from training.data.cache import Split
    from training.device import choose_device, exact_float32
    from training.evaluation.evaluate import Subject, evaluate
    from training.evaluation.stages import stage
    from training.evaluation.stages import suite as build_suite
    from training.randomness import stream

    output = Output(json)
    checkpoint = checkpoint_path(model)
    if checkpoint.suffix == ".onnx":
        raise UsageError(
            "Gradient attacks need the checkpoint, not the exported model.",
            f"ducat evaluate {checkpoint.parent}",
        )
    deployed = load(checkpoint)
    spec = deployed.spec
    stages = (
        [stage(name, spec.fold, spec.num_classes) for name in attack]
        if attack
        else build_suite(suite, spec.fold, spec.num_classes)
    )
    if eps == 0:
        raise UsageError(
            "--eps 0 is no attack; the clean accuracy is printed in any case.", "give --eps 8/255"
        )
    if eps is None and norm not in (None, spec.threat_model.norm):
        raise UsageError(f"--norm {norm} needs --eps: the model was trained for {spec.threat_model}.")
    threat_model = ThreatModel.model_validate(
        {"norm": norm or spec.threat_model.norm, "eps": spec.threat_model.eps if eps is None else eps}
    )
    torch_device = choose_device(device, output)
    exact_float32()
    data = load_training_data(
        checkpoint, spec, dataset=dataset, data_dir=data_dir, offline=offline, output=output
    )
    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model ({len(data.class_names)} and {spec.num_classes})."
        )
    chosen: Split = getattr(data, split)
    if max_examples is not None and max_examples < len(chosen):
        index = (
            torch.randperm(len(chosen), generator=stream(seed, "subset"))[:max_examples].sort().values.numpy()
        )
        chosen = Split(chosen.images[index], chosen.labels[index])
    report = evaluate(
        deployed.module.to(torch_device),  # type: ignore[arg-type]
        DeviceSplit.of(chosen, torch_device),
        Subject(spec.weights_digest, data.title, "val" if split == "val" else "test", spec.labels),
        threat_model,
        stages,
        seed=seed,
        batch_size=batch_size,
        output=output,
    )
    low, high = report.worst_case_interval
    legacy_row = []
    if report.legacy_2c_accuracy is not None:
        label = "legacy 2C: non-adaptive, not a robustness claim"
        legacy_row = [(label, f"{report.legacy_2c_accuracy:.1%}", "")]
    output.table(
        f"{data.title}, {report.examples} {split} images, {threat_model.norm} {format_size(threat_model.eps)}",
        ("accuracy of the deployed function", "%", "95 % interval"),
        [
            ("clean", f"{report.clean_accuracy:.1%}", ""),
            *((f"after {a.name}", f"{a.worst_case_accuracy:.1%}", "") for a in report.attacks),
            ("worst case", f"{report.worst_case_accuracy:.1%}", f"{low:.1%} to {high:.1%}"),
            *legacy_row,
        ],
    )
    if out is not None:
        write_text(out, report.model_dump_json(indent=2) + "\n")
    old = spec.robustness
    if old is not None and (len(old.attacks), old.examples) > (len(report.attacks), report.examples):
        output.warn(
            f"this report replaces one of more attacks or images: {old.summary()}. Measure again with --suite standard."
        )
    _, tensors = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, spec.model_copy(update={"robustness": report}))
    if report.dummy_mass is not None:
        mass = report.dummy_mass
        output.say(
            f"Dummy mass: {mass.clean_mean:.3f} clean, {mass.adversarial_mean:.3f} adversarial; AUROC {mass.auroc:.2f} "
            "against attacks that did not try to hide it."
        )
    output.say(f"Stored in {checkpoint}.\nNext: ducat export {checkpoint}")
    if bar is not None:
        _require(report, bar)  # its error is then the one document on stdout; --out has the report
    output.result(report.model_dump(mode="json"))


def _require(report: RobustnessReport, bar: dict[str, float]) -> None:
    """Raise VerificationError where the lower end of a measured 95 % interval is below the bar."""
    from training.evaluation.intervals import wilson

    right = round(report.clean_accuracy * report.examples)
    lower_ends = {"clean": wilson(right, report.examples)[0], "worst_case": report.worst_case_interval[0]}
    missed = [
        f"{name} is at least {lower_ends[name]:.1%} (95 % interval), the bar is {wanted:.1%}"
        for name, wanted in bar.items()
        if lower_ends[name] < wanted
    ]
    if missed:
        raise VerificationError(f"Below the bar: {'; '.join(missed)}.", "measure on more images, or train on")

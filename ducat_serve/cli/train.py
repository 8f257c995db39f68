"""`ducat train`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.cli.options import PIXEL_SIZE, common, data_options, device_option
from ducat_serve.errors import UsageError
from ducat_serve.output import Output

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.trainer import Trainer

DEFAULT_DATASET = "digits"
ROBUSTNESS_LOSS = 0.02  # accuracy on val; less is noise


@click.command("train")
@click.option("--dataset", help="digits, cifar10, cifar100, tiny-imagenet or folder:PATH.  [default: digits]")
@click.option("--network", help="See `ducat networks`.  [default: the recipe's; resnet18]")
@click.option(
    "--method",
    type=click.Choice(["pgd-at", "trades", "mart", "consistency"]),
    help="What DUCAT is plugged into.  [default: pgd-at]",
)
@click.option(
    "--beta", type=click.FloatRange(min=0), help="Weight of the regulariser of trades and mart.  [default: 6]"
)
@click.option(
    "--ducat",
    type=click.Choice(["off", "paper", "folded"]),
    help="off: the plain method, C logits. paper: as published, deployed through the max-fold. folded: attacks and "
    "trains folded posteriors, deployed through the lse-fold.  [default: paper]",
)
@click.option(
    "--ducat-start", type=click.IntRange(min=1), help="First epoch with dummies.  [default: after 80 %]"
)
@click.option(
    "--split-weight",
    type=click.FloatRange(0, 1),
    help="Weight of the dummy split, folded only.  [default: 0.1]",
)
@click.option(
    "--norm", type=click.Choice(["linf", "l2", "l1"]), help="Norm of the perturbation.  [default: linf]"
)
@click.option(
    "--eps", type=PIXEL_SIZE, help="Radius in pixels.  [default: 8/255; l2 128/255, l1 2000/255, digits 0.2]"
)
@click.option(
    "--step-size", type=PIXEL_SIZE, help="Attack step in pixels.  [default: 2/255; l2 15/255, l1 400/255]"
)
@click.option("--attack-steps", type=click.IntRange(min=1), help="Steps of the inner attack.  [default: 10]")
@click.option("--epochs", type=click.IntRange(min=1), help="[default: 130; digits 60]")
@click.option("--batch-size", type=click.IntRange(min=2), help="[default: 128; digits 64]")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.  [default: 0.1]")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="[default: 5e-4]")
@click.option(
    "--image-size", type=click.IntRange(min=1), help="Resize folder images to this height and width."
)
@click.option("--seed", type=click.IntRange(min=0), help="[default: 0]")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Arithmetic of attack and update; weights stay float32.  [default: auto]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run folder.  [default: runs/DATASET-NETWORK-DUCAT]",
)
@click.option(
    "--resume", type=click.Path(path_type=Path, file_okay=False), help="Go on with the run in this folder."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run a few steps of each phase, print memory, speed and an estimate of the whole run; write nothing.",
)
@data_options
@device_option
@common
def command(
    dry_run: bool,
    out: Path | None,
    resume: Path | None,
    data_dir: Path | None,
    offline: bool,
    device: str,
    json: bool,
    **given: Any,
) -> None:
    """Train a robust classifier and write a run folder with model.safetensors.

    Defaults come from the data set's recipe (the paper's setting for CIFAR and Tiny-ImageNet). Sizes are in
    pixels of [0, 1] and may be written as fractions: 8/255.

    \b
    Example:
      ducat train --dataset tiny-imagenet --network resnet-small --epochs 30
      ducat train --dataset cifar10 --ducat folded --eps 8/255 --out runs/folded
      ducat train --dataset cifar10 --method trades --ducat off
      ducat train --resume runs/folded
    """
    from training.config import resolve
    from training.data import load_dataset
    from training.device import choose_device, fastest_precision
    from training.run_folder import RunFolder
    from training.trainer import Trainer

    output = Output(json)
    torch_device = choose_device(device, output)
    if resume is not None:
        folder = RunFolder(resume)
        config, stored_data_dir = folder.read()
        data_dir = data_dir or stored_data_dir
        if given["dataset"] is not None:
            given["dataset"] = _absolute(given["dataset"])
        _refuse_changes(config.model_dump(), given, out, resume)
    else:
        dataset_name = _absolute(given.pop("dataset") or DEFAULT_DATASET)
        if given["precision"] in (None, "auto"):
            given["precision"] = fastest_precision(torch_device)
        config = _resolve(resolve, dataset_name, given)
        folder = RunFolder(out or Path("runs") / _run_name(dataset_name, config))
    dataset = load_dataset(
        config.dataset,
        data_dir=data_dir,
        offline=offline,
        image_size=config.image_size,
        seed=config.seed,
        output=output,
    )
    trainer = Trainer(config, dataset, folder, torch_device, output)
    if dry_run:
        _estimate(trainer, output)
        return
    summary = _train(trainer, data_dir, output, resumed=resume is not None)
    before = summary["pre_dummy_val_pgd_accuracy"]
    if before is not None and summary["best_val_pgd_accuracy"] < before - ROBUSTNESS_LOSS:
        output.warn(
            f"with dummies the deployed function is less robust: PGD val accuracy {before:.1%} before the dummy "
            f"phase, {summary['best_val_pgd_accuracy']:.1%} now. Compare with --ducat off and --ducat folded; "
            "docs/method.md says why."
        )
    accuracies = f"{summary['best_val_clean_accuracy']:.1%} clean, {summary['best_val_pgd_accuracy']:.1%} PGD"
    output.say(f"Best on val (epoch {summary['best_epoch']}): {accuracies} -> {folder.model}")
    output.say(f"Curves: {folder.curves}\nNext: ducat evaluate {folder.path}")
    output.result(summary)


def _estimate(trainer: Trainer, output: Output) -> None:
    from training.dry_run import dry_run

    config, cost = trainer.config, dry_run(trainer)
    per_epoch = ", ".join(f"{value:,.1f} s ({phase})" for phase, value in cost["seconds_per_epoch"].items())
    output.table(
        f"{trainer.dataset.title}, {config.network}, {config.method}, ducat {config.ducat}: nothing was written",
        ("", ""),
        [
            ("parameters", f"{cost['parameters']:,}"),
            ("peak memory", f"{cost['peak_memory_bytes'] / 1e9:.2f} GB"),
            ("steps per epoch", f"{cost['steps_per_epoch']:,}"),
            ("one epoch, with validation", per_epoch),
            (f"all {config.epochs} epochs", str(timedelta(seconds=round(cost["estimated_seconds"])))),
        ],
    )
    output.result(cost)


def _train(trainer: Trainer, data_dir: Path | None, output: Output, *, resumed: bool) -> dict[str, Any]:
    from training.curves import draw_curves
    from training.signals import StopSignal

    config, dataset, folder = trainer.config, trainer.dataset, trainer.folder
    with folder.locked():  # not before the data is there: a failed start leaves no folder
        if resumed:
            trainer.resume()
        else:
            folder.create(config, data_dir.resolve() if data_dir else None, dataset.digest)
        output.say(
            f"{dataset.title}: {len(dataset.train):,} train / {len(dataset.val):,} val images, "
            f"{len(dataset.class_names)} classes. {config.network}, {config.method}, ducat {config.ducat}, "
            f"{config.threat_model}, {config.precision} on {trainer.device.type}. Run folder: {folder.path}"
        )
        with StopSignal() as stop:
            summary = trainer.run(stop)
        draw_curves(trainer.state.rows, config, folder.curves)
    return summary


def _resolve(resolve: Any, dataset_name: str, given: dict[str, Any]) -> Any:
    from ducat_serve.errors import unknown_name
    from ducat_serve.networks import NETWORKS
    from training.data import DATASETS

    if dataset_name not in DATASETS and not dataset_name.startswith("folder:"):
        raise unknown_name("data set", dataset_name, [*DATASETS, "folder:PATH"])
    if given["network"] is not None and given["network"] not in NETWORKS:
        raise unknown_name("network", given["network"], NETWORKS)
    return resolve(dataset_name, given)


def _absolute(dataset: str) -> str:
    """`folder:PATH` with an absolute path, so that the run can be resumed from anywhere."""
    if not dataset.startswith("folder:"):
        return dataset
    return f"folder:{Path(dataset.removeprefix('folder:')).expanduser().resolve()}"


def _run_name(dataset: str, config: TrainConfig) -> str:
    method = "" if config.method == "pgd-at" else f"-{config.method}"
    return f"{Path(dataset.removeprefix('folder:')).name}-{config.network}{method}-{config.ducat}"


def _refuse_changes(stored: dict[str, Any], given: dict[str, Any], out: Path | None, resume: Path) -> None:
    changes = [
        f"--{key.replace('_', '-')} is {stored[key]} in the run, {value} here"
        for key, value in given.items()
        if value is not None and value != stored[key] and not (key == "precision" and value == "auto")
    ]
    if out is not None:
        changes.append("--out cannot be given with --resume")
    if changes:
        raise UsageError(
            f"--resume goes on with the run as it was: {'; '.join(changes)}.",
            f"ducat train --resume {resume}",
        )

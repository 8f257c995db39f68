"""`ducat train`."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.cli.options import common, data_options, device_option
from ducat_serve.cli.train_options import train_options
from ducat_serve.errors import UsageError
from ducat_serve.output import Output

if TYPE_CHECKING:
    import torch

    from training.config import TrainConfig
    from training.data import Dataset
    from training.distributed.processes import World
    from training.initial import InitialWeights
    from training.run.folder import RunFolder
    from training.trainer import Trainer

DEFAULT_DATASET = "digits"
ROBUSTNESS_LOSS = 0.02  # accuracy on val; less is noise


@click.command("train")
@click.option("--recipe", help="Whose defaults to take; see `ducat recipes`.  [default: the data set's]")
@train_options
@click.option(
    "--initial-checkpoint",
    type=click.Path(path_type=Path),
    help="Start from the weights of this .safetensors file or run folder; missing dummies are added.",
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
@click.option(
    "--devices",
    type=click.IntRange(min=1),
    help="Processes on this machine, one per GPU. Several machines: torchrun, docs/scaling.md.  [default: 1]",
)
@data_options
@device_option
@common
@click.pass_context
def command(
    ctx: click.Context,
    /,
    recipe: str | None,
    initial_checkpoint: Path | None,
    dry_run: bool,
    out: Path | None,
    resume: Path | None,
    devices: int | None,
    data_dir: Path | None,
    offline: bool,
    device: str,
    json: bool,
    **given: Any,
) -> int:
    """Train a robust classifier and write a run folder with model.safetensors.

    Defaults come from the data set's recipe (the paper's setting for CIFAR and Tiny-ImageNet). Sizes are in
    pixels of [0, 1] and may be written as fractions: 8/255.

    \b
    Example:
      ducat train --dataset tiny-imagenet --network resnet-small --epochs 30
      ducat train --dataset cifar10 --ducat folded --eps 8/255 --out runs/folded
      ducat train --recipe cifar10-trades --ducat off --devices 4
      ducat train --resume runs/folded
    """
    from training.device import choose_device
    from training.distributed.processes import World, launched, local_device
    from training.run.folder import RunFolder
    from training.trainer import Trainer

    if devices is not None and devices > 1 and not launched():
        from training.distributed.launch import launch

        return launch(devices, ctx.find_root().obj, Output(json))
    output = Output(json)
    torch_device = local_device(choose_device(device, output))
    world = World.join(torch_device)
    if not world.is_first:
        output = Output(silent=True)
    try:
        initial = None
        if resume is not None:
            folder = RunFolder(resume)
            config, stored_data_dir = folder.read()
            data_dir = data_dir or stored_data_dir
            start_only = {"--out": out, "--recipe": recipe, "--initial-checkpoint": initial_checkpoint}
            _refuse_changes(config.model_dump(), given, start_only, resume)
        else:
            initial = _initial(initial_checkpoint)
            config = _resolve(recipe, given, torch_device, initial)
            folder = RunFolder(out or Path("runs") / _run_name(config))
        dataset = _load(config, data_dir, offline, output, world)
        if initial is not None:
            initial.require_fit(config, dataset)
        trainer = Trainer(config, dataset, folder, torch_device, output, initial=initial, world=world)
        if dry_run:
            _estimate(trainer, output)
        else:
            _train(trainer, data_dir, output, resumed=resume is not None)
    finally:
        world.leave()
    return 0


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


def _train(trainer: Trainer, data_dir: Path | None, output: Output, *, resumed: bool) -> None:
    from training.run.curves import draw_curves
    from training.signals import StopSignal

    config, dataset, folder, world = trainer.config, trainer.dataset, trainer.folder, trainer.world
    # Not before the data is there: a failed start leaves no folder.
    with folder.locked() if world.is_first else nullcontext():
        if world.is_first and not resumed:
            folder.create(config, data_dir.resolve() if data_dir else None, dataset.digest)
        world.wait()
        if resumed:
            trainer.resume()
        where = trainer.device.type if world.size == 1 else f"{world.size} x {trainer.device.type}"
        output.event(
            "start",
            f"{dataset.title}: {len(dataset.train):,} train / {len(dataset.val):,} val images, "
            f"{len(dataset.class_names)} classes. {config.network}, {config.method}, ducat {config.ducat}, "
            f"{config.threat_model}, {config.precision} on {where}. Run folder: {folder.path}",
            run=str(folder.path),
            config=config.model_dump(mode="json"),
            processes=world.size,
        )
        with StopSignal() as stop:
            summary = trainer.run(stop)
        if world.is_first:
            draw_curves(trainer.state.rows, config, folder.curves)
    _conclude(summary, folder, output)


def _conclude(summary: dict[str, Any], folder: RunFolder, output: Output) -> None:
    before = summary["pre_dummy_val_pgd_accuracy"]
    if before is not None and summary["best_val_pgd_accuracy"] < before - ROBUSTNESS_LOSS:
        output.warn(
            f"with dummies the deployed function is less robust: PGD val accuracy {before:.1%} before the dummy "
            f"phase, {summary['best_val_pgd_accuracy']:.1%} now. Compare with --ducat off and --ducat folded; "
            "docs/method.md says why."
        )
    output.table(
        f"Best on val: epoch {summary['best_epoch']} of {summary['epochs']}",
        ("", ""),
        [
            ("clean", f"{summary['best_val_clean_accuracy']:.1%}"),
            ("PGD", f"{summary['best_val_pgd_accuracy']:.1%}"),
            ("PGD before the dummy phase", "" if before is None else f"{before:.1%}"),
            ("model", folder.model),
            ("curves", folder.curves),
        ],
    )
    output.say(f"Next: ducat evaluate {folder.path}")
    output.result(summary)


def _initial(path: Path | None) -> InitialWeights | None:
    from training.initial import InitialWeights

    return InitialWeights.read(path) if path else None


def _load(config: TrainConfig, data_dir: Path | None, offline: bool, output: Output, world: World) -> Dataset:
    """The data; downloaded and decoded by the first process alone, the others find it in the cache."""
    from training.data import load_dataset

    def load() -> Dataset:
        return load_dataset(
            config.dataset,
            data_dir=data_dir,
            offline=offline,
            image_size=config.image_size,
            seed=config.seed,
            output=output,
        )

    dataset = load() if world.is_first else None
    world.wait()
    return dataset or load()


def _resolve(
    recipe: str | None, given: dict[str, Any], device: torch.device, initial: InitialWeights | None
) -> TrainConfig:
    from ducat_serve.errors import unknown_name
    from ducat_serve.networks import NETWORKS
    from training.config import resolve
    from training.data import DATASETS
    from training.device import fastest_precision
    from training.recipes import load_recipe

    chosen = given.pop("dataset") or (load_recipe(recipe).get("dataset") if recipe else None)
    dataset = _absolute(chosen or DEFAULT_DATASET)
    if dataset not in DATASETS and not dataset.startswith("folder:"):
        raise unknown_name("data set", dataset, [*DATASETS, "folder:PATH"])
    if given["network"] is not None and given["network"] not in NETWORKS:
        raise unknown_name("network", given["network"], NETWORKS)
    if given["precision"] in (None, "auto"):
        given["precision"] = fastest_precision(device)
    if initial is not None:
        given["initial_weights"] = initial.spec.weights_digest
        given["network"] = given["network"] or initial.spec.network
    return resolve(dataset, given, recipe)


def _absolute(dataset: str) -> str:
    """`folder:PATH` with an absolute path, so that the run can be resumed from anywhere."""
    if not dataset.startswith("folder:"):
        return dataset
    return f"folder:{Path(dataset.removeprefix('folder:')).expanduser().resolve()}"


def _run_name(config: TrainConfig) -> str:
    method = "" if config.method == "pgd-at" else f"-{config.method}"
    dataset = Path(config.dataset.removeprefix("folder:")).name
    return f"{dataset}-{config.network}{method}-{config.ducat}"


def _refuse_changes(
    stored: dict[str, Any], given: dict[str, Any], start_only: dict[str, Any], resume: Path
) -> None:
    if given["dataset"] is not None:
        given["dataset"] = _absolute(given["dataset"])
    changes = [
        f"--{key.replace('_', '-')} is {stored[key]} in the run, {value} here"
        for key, value in given.items()
        if value is not None and value != stored[key] and not (key == "precision" and value == "auto")
    ]
    changes += [f"{name} cannot be given with --resume" for name, value in start_only.items() if value]
    if changes:
        raise UsageError(
            f"--resume goes on with the run as it was: {'; '.join(changes)}.",
            f"ducat train --resume {resume}",
        )

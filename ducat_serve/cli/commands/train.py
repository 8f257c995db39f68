"""`ducat train`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.cli.headings import CommandWithHeadings, heading
from ducat_serve.cli.options import common
from ducat_serve.cli.train_options import train_options
from ducat_serve.errors import command_line
from ducat_serve.output import Output
from ducat_serve.threads import choose_threads
from ducat_serve.threat_model import format_size

if TYPE_CHECKING:
    from ducat_serve.cli.main import Invocation
    from training.config import TrainConfig
    from training.run.metrics import RunSummary
    from training.trainer import Trainer

ROBUSTNESS_LOSS = 0.02  # accuracy on val; less is noise


@click.command("train", cls=CommandWithHeadings)
@train_options
@heading("All commands")
@common
@click.pass_context
def command(
    ctx: click.Context,
    /,
    recipe: str | None,
    initial_checkpoint: Path | None,
    pretrained: str | None,
    dry_run: bool,
    out: Path | None,
    resume: Path | None,
    devices: int | None,
    data_dir: Path | None,
    offline: bool,
    device: str,
    threads: int | None,
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
      ducat train --dataset cifar10 --method trades --ducat off --devices 4
      ducat train --resume runs/folded
    """
    choose_threads(threads)

    from training.distributed.environment import launched

    if devices is not None and devices > 1 and not launched():
        from training.distributed.launch import launch

        invocation: Invocation = ctx.find_root().obj
        again = "ducat train --resume RUN --devices N, with the run folder's path"
        return launch(devices, invocation.arguments, invocation.environment, Output(json), again)

    from training.device import choose_device
    from training.provenance import training_command
    from training.run.folder import RunFolder
    from training.run.start import (
        Run,
        network_asked_for,
        new_config,
        opened,
        require_unchanged,
        start_weights,
        stored_run,
        train,
    )

    output = Output(json)
    torch_device = choose_device(device, output)
    if resume is not None:
        run = stored_run(resume, given["dataset"], data_dir, offline=offline)
        start_only = {
            "--out": out,
            "--recipe": recipe,
            "--initial-checkpoint": initial_checkpoint,
            "--pretrained": pretrained is not None,
        }
        require_unchanged(run.config, given, start_only, resume)
    else:
        initial = start_weights(
            initial_checkpoint,
            pretrained,
            network_asked_for(given, recipe),
            given["pretrained_licence"],
            offline=offline,
        )
        config = new_config(given, recipe, initial, torch_device)
        run = Run(config, RunFolder.of(config, out), data_dir, offline, initial)
        if not dry_run:
            run.folder.require_free(config)  # before images are decoded, not after
    with opened(run, torch_device, output, only_look=dry_run) as trainer:
        if dry_run:
            for doubt in trainer.config.doubts():
                trainer.output.warn(doubt)
            if run.resumed:
                trainer.take_up()
            _show_estimate(trainer, trainer.output)
        else:
            command = training_command(_chosen(ctx, given, trainer.config))
            summary = train(trainer, run, command)
            _show(summary, trainer, trainer.output)
    return 0


def _chosen(ctx: click.Context, given: Mapping[str, Any], config: TrainConfig) -> dict[str, object]:
    """The options that decide the weights, in the order of `--help`: ``given``, the recipe, the start weights.

    In the place of a recipe that is a file, which may change or get lost, stand the settings that came from it.
    """
    from training.recipes import is_recipe_file
    from training.resolve import fewest_options

    values = {**given, **{name: ctx.params[name] for name in ("recipe", "initial_checkpoint", "pretrained")}}
    if values["recipe"] and is_recipe_file(values["recipe"]):
        values |= {**dict.fromkeys(given), "recipe": None, **fewest_options(config, given)}
    asked = {p.name: values[p.name] for p in ctx.command.params if p.name in values}
    if (pretrained := asked["pretrained"]) is not None:
        # Without a file it is a flag, and a file keeps its name alone.
        asked["pretrained"] = Path(pretrained) if pretrained else True
    # There is no --no-skip-broken.
    single_flags = {p.name for p in ctx.command.params if not p.secondary_opts}
    return {n: value for n, value in asked.items() if n and not (value is False and n in single_flags)}


def _show_estimate(trainer: Trainer, output: Output) -> None:
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
            (
                f"{cost['epochs_left']} of {config.epochs} epochs",
                str(timedelta(seconds=round(cost["estimated_seconds"]))),
            ),
        ],
    )
    settings = config.model_dump(mode="json")
    output.table("Settings", ("", ""), _rows(settings, config.idle_settings))
    output.result({**cost, "config": settings})


def _rows(settings: Mapping[str, object], idle: Container[str]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", "-"), _shown(name, value)) for name, value in settings.items() if name not in idle
    ]


def _shown(name: str, value: object) -> str:
    if name in ("eps", "step_size") and isinstance(value, float):
        return format_size(value)
    return "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _show(summary: RunSummary, trainer: Trainer, output: Output) -> None:
    from ducat_serve.networks.allowed import options_for
    from training.recipes import recommended_recipe

    folder, dataset = trainer.folder, trainer.config.dataset
    before = summary.pre_dummy_val_pgd_accuracy
    # A run knows what dummies cost only from its own epoch before them.
    dummies_cost = before is not None and summary.best_val_pgd_accuracy < before - ROBUSTNESS_LOSS
    if dummies_cost:
        output.warn(
            f"with dummies the deployed function is less robust: PGD val accuracy {before:.1%} before the dummy "
            f"phase, {summary.best_val_pgd_accuracy:.1%} now. Compare with --ducat off and --ducat folded; "
            "docs/method.md says why."
        )
    output.table(
        f"Best on val: epoch {summary.best_epoch} of {summary.epochs}",
        ("", ""),
        [
            ("clean", f"{summary.best_val_clean_accuracy:.1%}"),
            (f"PGD-{trainer.validation.attack.steps}", f"{summary.best_val_pgd_accuracy:.1%}"),
            *([] if before is None else [("PGD before the dummy phase", f"{before:.1%}")]),
            ("model", folder.model),
            ("curves", folder.curves),
        ],
    )
    output.next(command_line("ducat", "evaluate", folder.path, *options_for(trainer.config.network)))
    recommended = recommended_recipe(dataset, on_gpu=trainer.device.type == "cuda")
    # Those recipes were chosen by what they reach in linf.
    if dummies_cost and recommended is not None and trainer.config.norm == "linf":
        command = command_line("ducat", "train", "--dataset", dataset, "--recipe", recommended)
        output.say(f"We recommend a recipe without dummies for these data: {command}")
    output.result(asdict(summary))

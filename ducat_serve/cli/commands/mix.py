"""`ducat mix`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.network_options import import_from_option, own_network_option
from ducat_serve.cli.options import FiniteRange, ModelPath, Stem, common, data_options, device_option
from ducat_serve.cli.threads_option import threads_option
from ducat_serve.errors import UsageError, command_line
from ducat_serve.networks.allowed import options_for
from ducat_serve.output import Output
from ducat_serve.threads import choose_threads

if TYPE_CHECKING:
    from ducat_serve.library.mixing import Mixed
    from ducat_serve.predictor import Device
    from training.mixture.curve import Curve


@click.command("mix")
@click.argument("standard", type=ModelPath("safetensors"))
@click.argument("robust", type=ModelPath("safetensors"))
@click.option(
    "--give-up",
    type=FiniteRange(min=0, max=100),
    metavar="POINTS",
    help="How many points of ROBUST's worst case may be given up for clean accuracy.  [default: 2]",
)
@click.option(
    "--clean",
    type=FiniteRange(min=0, max=1),
    metavar="SHARE",
    help="Reach this clean accuracy instead, e.g. 0.82.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("mixed/model.safetensors"),
    show_default=True,
    help="Checkpoint to write.",
)
@click.option(
    "--curve",
    type=Stem(),
    help="Write no model: draw what every setting would do, as STEM.png, STEM.svg and STEM.json.",
)
@click.option("--max-examples", type=click.IntRange(min=1), help="Only so many val images.  [default: all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the attacks.")
@click.option("--dataset", help="Where the val images are.  [default: as ROBUST was trained]")
@click.option("--force", is_flag=True, help="Mix even if ROBUST gets nothing right under attack.")
@own_network_option
@import_from_option
@data_options
@device_option
@threads_option
@common
def command(
    standard: Path,
    robust: Path,
    give_up: float | None,
    clean: float | None,
    out: Path,
    curve: Path | None,
    max_examples: int | None,
    batch_size: int,
    seed: int,
    dataset: str | None,
    force: bool,
    data_dir: Path | None,
    offline: bool,
    device: Device,
    threads: int | None,
    json: bool,
) -> None:
    """Keep the accuracy of STANDARD and add the robustness of ROBUST: one checkpoint with both, and a switch.

    It answers STANDARD's class unless ROBUST is sure that it is wrong. Nothing is trained: how sure is sure is fitted
    on val images, clean and attacked. What both answered is kept in answers.safetensors beside what is written, so
    that the next setting takes no attack. The result is a model like every other one; `ducat evaluate` measures it
    with attacks that know the switch, and its floor with attacks on ROBUST alone.

    \b
    Example:
      ducat train --dataset cifar10 --network resnet14 --method standard --out runs/accurate
      ducat mix runs/accurate cifar10-small --curve runs/mixed/dial
      ducat mix runs/accurate cifar10-small --give-up 2 --out runs/mixed/model.safetensors
      ducat evaluate runs/mixed --suite standard
    """
    choose_threads(threads)
    from ducat_serve.library.mixing import Towers, draw_curve, mix

    if curve is not None and (give_up is not None or clean is not None):
        raise UsageError(
            "--curve draws every setting, and chooses none.",
            "leave out --give-up and --clean, then choose with them",
        )
    output = Output(json)
    towers = Towers(
        standard,
        robust,
        max_examples=max_examples,
        dataset=dataset,
        data_dir=data_dir,
        offline=offline,
        batch_size=batch_size,
        seed=seed,
        device=device,
        force=force,
    )
    if curve is not None:
        _show_curve(*draw_curve(towers, curve, output=output), output)
    else:
        _show(mix(towers, out=out, give_up=give_up, clean=clean, output=output), output)


def _show(mixed: Mixed, output: Output) -> None:
    answers, setting = mixed.answers, mixed.setting
    output.table(
        f"{len(answers.labels)} val images",
        ("", "clean", "under attack"),
        [
            ("standard tower", f"{answers.standard_clean:.1%}", ""),
            ("robust tower", f"{answers.robust_clean:.1%}", f"{answers.robust_worst_case:.1%} worst case"),
            ("both", f"{setting.clean:.1%}", f"{setting.floor:.1%} floor"),
        ],
    )
    output.text(f"{mixed.model}: the switch overrules at a lead of {setting.switch.threshold:g}.")
    own = dict.fromkeys(tower.network for tower in mixed.spec.towers or ())
    options = [word for network in own for word in options_for(network)]
    output.next(command_line("ducat", "evaluate", mixed.model, *options, "--suite", "standard"))
    output.result(
        {
            "model": str(mixed.model),
            "switch": setting.switch.model_dump(mode="json"),
            "val_images": len(answers.labels),
            "clean": setting.clean,
            "floor": setting.floor,
            "robust_tower": {"clean": answers.robust_clean, "worst_case": answers.robust_worst_case},
            "standard_tower": {"clean": answers.standard_clean},
        }
    )


def _show_curve(curve: Curve, files: list[Path], output: Output) -> None:
    output.table(
        curve.title,
        ("clean", "floor", "attacked end to end"),
        [
            (
                f"{point.setting.clean:.1%}",
                f"{point.setting.floor:.1%}",
                f"{point.clean:.1%} clean, {point.worst_case:.1%} worst case, {point.floor:.1%} floor "
                f"({point.images} images)",
            )
            for point in curve.attacked
        ],
    )
    output.text("\n".join(map(str, files)))
    output.result(curve.document() | {"files": [str(file) for file in files]})

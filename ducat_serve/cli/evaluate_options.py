"""The options of `ducat evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from ducat_serve.cli.foreign_options import foreign_options
from ducat_serve.cli.headings import heading, stacked
from ducat_serve.cli.network_options import own_network_option
from ducat_serve.cli.options import PIXEL_SIZE, data_options, device_option
from ducat_serve.cli.own_attacks import allow_attacks
from ducat_serve.cli.release_gate import Bar
from ducat_serve.cli.threads_option import threads_option
from ducat_serve.threat_model import NORMS

# All but those that every command has.
evaluate_options = stacked(
    heading("Images and threat model"),
    click.option("--dataset", help="Another data set than it was trained on, or where folder:PATH is now."),
    click.option(
        "--split", type=click.Choice(["val", "test"]), default="test", show_default=True, help="Which images."
    ),
    click.option(
        "--max-examples", type=click.IntRange(min=1), help="Only the first N images of a seeded shuffle."
    ),
    data_options,
    click.option("--norm", type=click.Choice(NORMS), help="[default: the norm it was trained for]"),
    click.option(
        "--eps",
        type=PIXEL_SIZE,
        multiple=True,
        help="Radius in pixels, e.g. 8/255; several give a curve.  [default: as trained]",
    ),
    click.option("--lattice", type=click.Choice(["8bit"]), help="Attacks may only make images of 8 bits."),
    heading("Attacks"),
    click.option(
        "--suite",
        default="quick",
        show_default=True,
        help="quick (a few attacks: a screening), standard (the strongest few, more where gradients mislead, and "
        "whether images can be flagged) or full (also AutoAttack and Square); corruptions runs no attack, but "
        "CIFAR-10-C and its kind.",
    ),
    click.option(
        "--attack",
        multiple=True,
        metavar="NAME",
        callback=allow_attacks,
        help="Instead of a suite; repeatable. package.module:function is one of your own.",
    ),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option("--resume", is_flag=True, help="Go on after the last attack of an interrupted evaluation."),
    heading("Results"),
    click.option(
        "--bar", type=Bar(), help="Exit 3 unless both hold, e.g. clean=0.80,worst_case=0.45: a release gate."
    ),
    click.option(
        "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report here, as JSON."
    ),
    click.option(
        "--replace",
        is_flag=True,
        help="Store the report even where the one that is stored already says more.",
    ),
    click.option(
        "--per-image",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write a CSV row for each image: what broke it, and how sure the model was.",
    ),
    click.option(
        "--save-adversarial",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Keep the images that break the model, as PNG and .safetensors.",
    ),
    click.option(
        "--export",
        type=click.Choice(["robustbench"]),
        help="Also write that leaderboard's JSON beside MODEL.",
    ),
    heading("Models of other kinds"),
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path),
        help="For a .onnx MODEL: the checkpoint it came from.  [default: model.safetensors beside it]",
    ),
    own_network_option,
    foreign_options,
    heading("Machine"),
    device_option,
    click.option(
        "--devices",
        type=click.IntRange(min=1),
        help="Start so many processes here, one per device; batches are dealt out, and results stay the same.",
    ),
    threads_option,
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Halved when memory runs out.  [default: 256; fewer of images above 64x64 pixels]",
    ),
)

"""The options of `ducat train`; where a setting is not given, the recipe's holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import click

from ducat_serve.cli.completion import complete_datasets, complete_networks, complete_recipes
from ducat_serve.cli.headings import heading, stacked
from ducat_serve.cli.network_options import allow_network, import_from_option
from ducat_serve.cli.options import PIXEL_SIZE, FiniteRange, data_options, device_option
from ducat_serve.cli.threads_option import threads_option
from ducat_serve.threat_model import NORMS
from training.objectives import METHODS


class Epochs(click.ParamType[tuple[int, ...]]):
    """Epoch numbers such as `100,105`; a list in a config file."""

    name = "epochs"
    takes_list: ClassVar[bool] = True

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = [part for part in value.split(",") if value] if isinstance(value, str) else value
        try:
            return tuple(sorted(int(part) for part in parts))
        except (TypeError, ValueError):
            self.fail(f"'{value}' is not a list of epochs such as 100,105", param, ctx)


# All but those that every command has.
train_options = stacked(
    heading("Model and run"),
    click.option(
        "--recipe",
        shell_complete=complete_recipes,
        metavar="NAME|FILE",
        help="Whose defaults to take: see `ducat recipes`, or a .toml file of your own, as `ducat recipes copy` writes "
        "one.  [default: the data set's]",
    ),
    click.option(
        "--dataset",
        help="digits, cifar10, cifar100, tiny-imagenet or folder:PATH; see `ducat datasets`.",
        shell_complete=complete_datasets,
    ),
    click.option(
        "--network",
        callback=allow_network,
        help="See `ducat networks`; also torchvision:NAME, timm:NAME, or package.module:factory of your own.  "
        "[default: the recipe's; resnet18]",
        shell_complete=complete_networks,
    ),
    import_from_option,
    click.option(
        "--pretrained",
        is_flag=False,
        flag_value="",
        metavar="[FILE]",
        help="Start from weights of others: those that torchvision or timm offers for --network, or a .safetensors or "
        ".pth FILE. The head is kept only where it fits.",
    ),
    click.option(
        "--pretrained-licence",
        metavar="TEXT",
        help="Of the weights of --pretrained, for the card: Apache-2.0.  [default: as their package says; unknown]",
    ),
    click.option(
        "--initial-checkpoint",
        type=click.Path(path_type=Path),
        help="Start from the weights of this .safetensors file or run folder; missing dummies are added.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        help="Run folder.  [default: runs/DATASET-NETWORK[-METHOD]-DUCAT, METHOD where it is not pgd-at]",
    ),
    click.option(
        "--resume",
        type=click.Path(path_type=Path, file_okay=False),
        help="Go on with the run in this folder.",
    ),
    click.option(
        "--save-every",
        type=click.IntRange(min=1),
        help="Also keep the checkpoint of every so many epochs.  [default: the best and the last]",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Run a few steps of each phase, print memory, speed and an estimate of the whole run; write nothing.",
    ),
    heading("Objective"),
    click.option(
        "--method",
        type=click.Choice(list(METHODS)),
        help="What DUCAT is plugged into; standard trains without attacks, and without dummies.  [default: pgd-at]",
    ),
    click.option(
        "--beta",
        type=FiniteRange(min=0),
        help="Weight of the method's regulariser.  [default: trades and mart 6, guided 10, pairing 0.5]",
    ),
    click.option(
        "--clean-share",
        type=FiniteRange(0, 1),
        help="How much of the classification loss clean images have; 0.5 is half-and-half batches.  "
        "[default: the method's; 0.5 with dummies]",
    ),
    click.option(
        "--ducat",
        type=click.Choice(["off", "paper", "folded"]),
        help="off: the plain method, C logits. paper: as published, deployed through the max-fold. folded: attacks and "
        "trains folded posteriors, deployed through the lse-fold.  [default: paper; method standard off]",
    ),
    click.option(
        "--ducat-start", type=click.IntRange(min=1), help="First epoch with dummies.  [default: after 80 %]"
    ),
    click.option(
        "--split-weight",
        type=FiniteRange(0, 1),
        help="Weight of the dummy split, folded only.  [default: 0.1]",
    ),
    click.option(
        "--label-smoothing",
        type=FiniteRange(0, 1, max_open=True),
        help="Weight of the uniform distribution in the labels of the update: 0.1.  [default: 0]",
    ),
    click.option(
        "--awp-gamma",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="Adversarial weight perturbation, in norms of each layer: 0.005. A second update's time.  [default: none]",
    ),
    heading("Attack in training"),
    click.option("--norm", type=click.Choice(NORMS), help="Norm of the perturbation.  [default: linf]"),
    click.option(
        "--eps",
        type=PIXEL_SIZE,
        help="Radius in pixels.  [default: 8/255; l2 128/255, l1 2000/255, digits 0.2]",
    ),
    click.option(
        "--step-size", type=PIXEL_SIZE, help="Attack step in pixels.  [default: 2/255; l2 15/255, l1 400/255]"
    ),
    click.option(
        "--attack-steps",
        type=click.IntRange(min=1),
        help="Steps of the inner attack, which is PGD then, also where the recipe has n-fgsm.  [default: 10]",
    ),
    click.option(
        "--inner-attack",
        type=click.Choice(["pgd", "n-fgsm"]),
        help="n-fgsm: one step before the dummy phase, several times as fast; goes back to PGD by itself where it "
        "overfits catastrophically, as guided does, which has a one-step attack of its own.  [default: pgd]",
    ),
    click.option(
        "--eps-ramp",
        type=click.IntRange(min=1),
        help="Epochs over which eps and step size of the inner attack grow from 0.  [default: the recipe's, scaled to "
        "--epochs; none; with --pretrained a fifth of them, or 1 where the weights turn out to be robust]",
    ),
    heading("Optimisation"),
    click.option("--epochs", type=click.IntRange(min=1), help="[default: 130; digits 60]"),
    click.option("--batch-size", type=click.IntRange(min=2), help="[default: 128; digits 64]"),
    click.option("--lr", type=FiniteRange(min=0, min_open=True), help="Peak learning rate.  [default: 0.1]"),
    click.option(
        "--schedule",
        type=click.Choice(["steps", "cosine", "one-cycle"]),
        help="Of the learning rate. steps: drops at --lr-milestones. cosine: down to 0. one-cycle: up from 0 over "
        "two fifths of the run, and down to 0.  [default: steps]",
    ),
    click.option(
        "--lr-milestones",
        type=Epochs(),
        help="After these epochs the learning rate of --schedule steps drops to a tenth.  "
        "[default: the recipe's, scaled to --epochs]",
    ),
    click.option(
        "--warmup",
        type=click.IntRange(min=1),
        help="Epochs over which the learning rate grows from 0.  [default: the recipe's, scaled to --epochs; none]",
    ),
    click.option(
        "--optimizer",
        type=click.Choice(["adamw"]),
        help="AdamW in the place of SGD.  [default: the recipe's; SGD]",
    ),
    click.option("--momentum", type=FiniteRange(0, 1, max_open=True), help="[default: 0.9]"),
    click.option("--weight-decay", type=FiniteRange(min=0), help="[default: 5e-4]"),
    click.option(
        "--backbone-lr",
        type=FiniteRange(0, 1),
        help="What the rate of all layers but the head is multiplied by; 0 trains the head alone, "
        "and BatchNorm below it keeps its statistics.  [default: 1]",
    ),
    click.option(
        "--ema-decay",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="Validate and keep an exponential moving average of the weights: 0.999.  [default: none]",
    ),
    click.option(
        "--ema-warmup/--no-ema-warmup",
        default=None,
        help="After t updates the decay is at most (1 + t) / (10 + t), so that the average forgets the fresh weights.  "
        "[default: no]",
    ),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: 0]"),
    heading("Images"),
    data_options,
    click.option(
        "--image-size", type=click.IntRange(min=1), help="Resize folder images to this height and width."
    ),
    click.option("--crop-padding", type=click.IntRange(min=0), help="[default: 4; digits 1]"),
    click.option(
        "--flip/--no-flip", default=None, help="Mirror images at random.  [default: yes; digits no]"
    ),
    click.option(
        "--balanced/--no-balanced",
        default=None,
        help="Draw every class as often as any other, rare images several times.  [default: no]",
    ),
    click.option(
        "--val-fraction",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="Of the training images, held out to choose models on.  [default: 0.1, at most 1,000 images]",
    ),
    click.option(
        "--test-fraction",
        type=FiniteRange(0, 1, min_open=True, max_open=True),
        help="Of the images of folder:PATH, held out as test where it names none.  [default: 0.2]",
    ),
    click.option(
        "--skip-broken",
        is_flag=True,
        default=None,
        help="Leave out images of folder:PATH that do not decode, instead of refusing them.",
    ),
    heading("Machine"),
    device_option,
    click.option(
        "--devices",
        type=click.IntRange(min=1),
        help="Processes on this machine, one per GPU. Several machines: torchrun, docs/scaling.md.  [default: 1]",
    ),
    threads_option,
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16"]),
        help="Arithmetic of attack and update; weights stay float32.  [default: auto]",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Compile the network with torch.compile: a minute at the start, faster steps.  [default: no]",
    ),
    click.option(
        "--accumulate",
        type=click.IntRange(min=2),
        help="Work through each batch in so many portions, and update once: less memory, the same update unless "
        "BatchNorm sees the portions.  [default: 1]",
    ),
    click.option(
        "--checkpoint-activations/--no-checkpoint-activations",
        default=None,
        help="Keep only what goes into each block of the network, and compute the rest again in the backward pass: "
        "less memory, more time, the same weights.  [default: no]",
    ),
)

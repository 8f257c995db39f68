"""`ducat import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.completion import complete_datasets, complete_networks
from ducat_serve.cli.network_options import allow_network, import_from_option
from ducat_serve.cli.options import PIXEL_SIZE, common, data_options
from ducat_serve.cli.threads_option import threads_option
from ducat_serve.errors import command_line
from ducat_serve.networks.allowed import options_for
from ducat_serve.output import Output
from ducat_serve.threads import choose_threads
from ducat_serve.threat_model import NORMS

if TYPE_CHECKING:
    from ducat_serve.threat_model import Norm


@click.command("import")
@click.argument("network", callback=allow_network, metavar="NETWORK", shell_complete=complete_networks)
@click.option(
    "--dataset",
    required=True,
    help="Whose classes, in their order, and whose images it is for: cifar10, folder:PATH, ...",
    shell_complete=complete_datasets,
)
@click.option(
    "--pretrained",
    is_flag=False,
    flag_value="",
    metavar="[FILE]",
    help="Its weights: a .safetensors or .pth FILE, or those that torchvision or timm offers.  "
    "[default: those that a factory of your own brings]",
)
@click.option("--pretrained-licence", metavar="TEXT", help="Licence of the weights, for the model card.")
@click.option("--image-size", type=click.IntRange(min=1), help="Side in pixels.  [default: the data set's]")
@click.option("--norm", type=click.Choice(NORMS), help="Of the threat model that it is meant for.")
@click.option("--eps", type=PIXEL_SIZE, help="Its radius.  [default: that of the data set's recipe]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("imported/model.safetensors"),
    show_default=True,
    help="Checkpoint to write.",
)
@import_from_option
@data_options
@threads_option
@common
def command(
    network: str,
    dataset: str,
    pretrained: str | None,
    pretrained_licence: str | None,
    image_size: int | None,
    norm: Norm | None,
    eps: float | None,
    out: Path,
    data_dir: Path | None,
    offline: bool,
    threads: int | None,
    json: bool,
) -> None:
    """Make a checkpoint of NETWORK, which others have trained, to be evaluated, exported and served like our own.

    NETWORK is torchvision:NAME, timm:NAME or package.module:factory, a callable of your own that returns a
    torch.nn.Module from images in [0, 1] to one logit per class. Nothing is trained. A look at 200 val images shows
    whether classes, image size and normalisation are those that it was made for.

    \b
    Example:
      ducat import nets:make --import-from . --dataset cifar10 --pretrained robust.pth --out robust/model.safetensors
      ducat evaluate robust/model.safetensors --network nets:make --import-from . --suite standard
      ducat export robust/model.safetensors --network nets:make --import-from . --onnx
    """
    choose_threads(threads)
    from ducat_serve.library.importing import import_model

    output = Output(json)
    imported = import_model(
        network,
        dataset,
        out=out,
        pretrained=pretrained,
        licence=pretrained_licence,
        data_dir=data_dir,
        offline=offline,
        output=output,
        image_size=image_size,
        norm=norm,
        eps=eps,
    )
    spec = imported.spec
    output.text(
        f"{imported.model}: {network}, {spec.num_classes} classes, {spec.image_size[0]}x{spec.image_size[1]} pixels, "
        f"{spec.threat_model}."
    )
    output.text(f"{imported.val_accuracy:.1%} of {imported.val_images} val images are right.")
    # A run folder would remember both; a checkpoint holds no path.
    where = ["--dataset", dataset] if dataset.startswith("folder:") else []
    where += ["--data-dir", str(data_dir)] if data_dir is not None else []
    output.next(
        command_line(
            "ducat", "evaluate", imported.model, *options_for(network), *where, "--suite", "standard"
        )
    )
    output.result(
        {
            "model": str(imported.model),
            "network": network,
            "classes": spec.num_classes,
            "weights_digest": spec.weights_digest,
            "val_images": imported.val_images,
            "val_accuracy": imported.val_accuracy,
        }
    )

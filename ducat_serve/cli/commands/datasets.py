"""`ducat datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ducat_serve.cli.options import FiniteRange, common, data_options
from ducat_serve.errors import DataError, UsageError, command_line
from ducat_serve.output import Output

if TYPE_CHECKING:
    from training.data.check import DataCheck

_SHOWN = 10  # of a long list, on a terminal; --json has all of it


@click.group("datasets", invoke_without_command=True)
@data_options
@common
@click.pass_context
def command(ctx: click.Context, data_dir: Path | None, offline: bool, json: bool) -> None:
    """List the data sets that `ducat train --dataset` takes, and what is there already.

    \b
    Example:
      ducat datasets
      ducat datasets --data-dir ~/data
      ducat datasets check photos/
      ducat datasets download cifar10
      ducat datasets verify cifar10
    """
    if ctx.invoked_subcommand is not None:
        return
    from training.data import DATASETS, classes_of, default_data_dir, find_archive

    output = Output(json)
    folder = data_dir or default_data_dir()
    entries = []
    for info in DATASETS.values():
        found = find_archive(info, folder)
        try:
            classes = classes_of(info, found)
        except DataError as error:
            output.warn(error.cause)
            classes = info.classes
        if info.archive is None:
            state = "embedded"
        elif found is not None:
            state = f"found: {found}"
        else:
            state = "missing" if offline else f"will be downloaded ({info.archive.size / 1e6:.0f} MB)"
        entries.append({"name": info.name, "classes": classes, "image_size": info.image_size, "state": state})
    output.table(
        "",
        ("name", "classes", "images", "state"),
        [
            *((e["name"], e["classes"], f"{e['image_size']}x{e['image_size']}", e["state"]) for e in entries),
            ("folder:PATH", "any", "any", "images of your own: ducat datasets check PATH"),
        ],
    )
    output.result({"data_dir": str(folder), "datasets": entries})


@command.command("check")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--test-fraction",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    help="As for `ducat train`.  [default: 0.2]",
)
@common
def check(path: Path, test_fraction: float | None, json: bool) -> int:
    """Look at every image of PATH, a folder or zip archive, before it is trained on.

    Says how many images each class and split has, which sizes and kinds of files there are, what does not decode, what
    is passed over, and which images of two splits look alike. Ends with exit code 4 where images are broken.

    \b
    Example:
      ducat datasets check photos/
      ducat datasets check photos.zip --json
    """
    from training.data.check import check_images
    from training.data.selection import Selection

    output = Output(json)
    if not path.exists():
        raise DataError(f"There is no {path}.", "name a folder of images, or a zip archive")
    found = check_images(path, Selection(test_fraction=test_fraction), output)
    _show(path, found, output)
    output.result({"path": str(path), **found.to_json()})
    return DataError.exit_code if found.broken else 0


def _show(path: Path, found: DataCheck, output: Output) -> None:
    from training.data.selection import share_in_words

    splits = tuple(found.splits)
    output.table(
        f"{path}: {sum(found.splits.values()):,} images, {len(found.classes):,} classes",
        ("class", *splits),
        [
            *((label, *(counts[split] for split in splits)) for label, counts in found.classes.items()),
            ("all", *found.splits.values()),
        ],
    )
    kinds = [f"{suffix} {count:,}" for suffix, count in found.suffixes.items()]
    sizes = [f"{height}x{width} {count:,}" for (height, width), count in found.sizes.items()]
    output.table("", ("", ""), [("files", _first(kinds)), ("height x width", _first(sizes))])
    if found.test_share is not None:
        output.text(f"{path} names no test images: {share_in_words(found.test_share)} are held out as test.")
    for name, why in list(found.broken.items())[:_SHOWN]:
        output.warn(f"{name}: {why}.")
    for pair in found.duplicates[:_SHOWN]:
        output.warn(f"{pair.one} and {pair.other} look alike.")
    for warning in found.warnings:
        output.warn(f"{warning}.")
    if not found.broken and not found.too_small:
        output.say("The next command says how long a training takes here; without --dry-run it trains.")
        options = _options_to_train(found)
        output.next(command_line("ducat", "train", "--dataset", f"folder:{path}", *options, "--dry-run"))


def _options_to_train(found: DataCheck) -> list[str]:
    """The recipe that we recommend on this machine, and what a training on these images would be refused without."""
    from training.data.splits import fitting_batch_size
    from training.device import choose_device
    from training.recipes import load_recipe, recommended_recipe

    on_gpu = choose_device("auto", Output(silent=True)).type == "cuda"
    recipe = recommended_recipe("folder", on_gpu=on_gpu) or "folder"
    options = ["--recipe", recipe]
    if len(found.sizes) > 1:
        options += ["--image-size", "64"]
    if found.to_train < load_recipe(recipe)["batch_size"]:
        options += ["--batch-size", str(fitting_batch_size(found.to_train))]
    return options


def _first(parts: list[str]) -> str:
    left = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {left:,} more" if left > 0 else "")


@command.command("download")
@click.argument("name")
@data_options
@common
def download(name: str, data_dir: Path | None, offline: bool, json: bool) -> None:
    """Download the data set NAME from its authors, checked by size and digest; a started download goes on.

    \b
    Example:
      ducat datasets download cifar10
      ducat datasets download tiny-imagenet --data-dir ~/data
    """
    from training.data import default_data_dir, obtain

    if offline:
        raise UsageError("--offline forbids to download.", "leave it out")
    output = Output(json)
    path = obtain(name, data_dir or default_data_dir(), output)
    output.text(f"{name} is embedded." if path is None else f"{name} is at {path}.")
    output.result({"name": name, "path": None if path is None else str(path)})


@command.command("verify")
@click.argument("name")
@data_options
@common
def verify(name: str, data_dir: Path | None, offline: bool, json: bool) -> None:  # noqa: ARG001 (never downloads)
    """Verify that the archive of the data set NAME is the one that its authors published: size and digest.

    \b
    Example:
      ducat datasets verify cifar10
    """
    from training.data import dataset_info, default_data_dir, find_archive
    from training.data.download import verify as verify_archive

    output = Output(json)
    info, folder = dataset_info(name), data_dir or default_data_dir()
    path = find_archive(info, folder)
    if info.archive is None:
        raise UsageError(f"{name} comes with scikit-learn; there is no archive of it.")
    if path is None:
        there = [] if data_dir is None else ["--data-dir", data_dir]
        download = command_line("ducat", "datasets", "download", name, *there)
        raise DataError(f"{info.title} is not in {folder}.", download)
    if path.name != info.archive.filename:
        raise UsageError(
            f"{path} is not an archive of its authors ({info.archive.filename}); no digest of it is known.",
            command_line("ducat", "datasets", "check", path),
        )
    verify_archive(info.archive, path)
    output.text(
        f"{path} is as its authors published it: {info.archive.size:,} bytes, MD5 {info.archive.md5}."
    )
    output.result({"name": name, "path": str(path), "md5": info.archive.md5})

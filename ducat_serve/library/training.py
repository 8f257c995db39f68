"""`ducat_serve.train_config`, `train` and `resume`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ducat_serve.errors import UsageError, unknown_name
from ducat_serve.library.arguments import require_device
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from training.config import TrainConfig
from training.device import choose_device
from training.recipes import load_recipe
from training.run.folder import RunFolder
from training.run.metrics import RunSummary
from training.run.start import Run, network_asked_for, new_config, opened, start_weights, stored_run
from training.run.start import train as train_opened


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, the checkpoint that was best on val, its settings, and what it reached."""

    path: Path
    model: Path
    config: TrainConfig
    summary: RunSummary


def train_config(
    dataset: str | None = None,
    *,
    recipe: str | Path | None = None,
    initial_checkpoint: str | Path | None = None,
    pretrained: str | Path | None = None,
    device: Device = "auto",
    **settings: Any,
) -> TrainConfig:
    """The settings of a run: a recipe, and what is given on top of it.

    Args:
        dataset: "digits", "cifar10", "cifar100", "tiny-imagenet" or "folder:PATH".
        recipe: whose settings to start from, by name (`ducat recipes`) or a .toml file of your own; that of the data
            set unless given.
        initial_checkpoint: a `model.safetensors` or run folder that `train` will start from as well.
        pretrained: weights of others that `train` will start from as well: a .safetensors or .pth file, or "" for those
            that torchvision or timm offers for ``network``.
        device: where it will be trained; the fastest arithmetic there is chosen unless ``precision`` is given.
        settings: fields of `TrainConfig`, which are the options of `ducat train` with underscores. Sizes are in pixels
            of [0, 1] and may be written as fractions: ``eps="8/255"``. None takes away what the recipe says:
            ``ema_decay=None``.

    Raises:
        UsageError: an unknown name or setting, a value out of range, or a combination that makes no sense.

    Examples:
        >>> config = train_config("digits", epochs=5, eps=0.1)
        >>> config.network, config.lr
        ('resnet-small', 0.1)
    """
    require_device(device)
    if not isinstance(dataset, (str, type(None))):
        raise UsageError(f"dataset: {dataset!r} is no name.", 'give "digits", say, or f"folder:{path}"')
    if dataset is None and (recipe is None or load_recipe(recipe).get("dataset") is None):
        raise UsageError(
            "dataset: nothing is trained without one.",
            'train_config("digits", ducat="off"), or train_config("folder:PATH") for images of your own',
        )
    for name in settings:
        if name not in TrainConfig.model_fields:
            raise unknown_name("setting", name, TrainConfig.model_fields)
    given = {"network": None, "precision": None, **settings, "dataset": dataset}
    initial = start_weights(
        initial_checkpoint,
        pretrained,
        network_asked_for(given, recipe),
        settings.get("pretrained_licence"),
        offline=False,
    )
    off = [name for name, value in settings.items() if value is None]
    return new_config(given, recipe, initial, choose_device(device, Output(silent=True)), off=off)


def train(
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    initial_checkpoint: str | Path | None = None,
    pretrained: str | Path | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: Device = "auto",
    output: Output | None = None,
) -> TrainedRun:
    """Train a robust classifier, as `ducat train` does. Two runs of one config on one CPU give equal weights.

    Args:
        config: the settings, from `train_config`.
        out: the run folder; runs/DATASET-NETWORK[-METHOD]-DUCAT unless given.
        initial_checkpoint: the checkpoint that ``config`` was made for, whose weights the run starts from.
        pretrained: the weights of others that ``config`` was made for.
        data_dir: where archives are or are downloaded to; the user's cache folder unless given. offline: no download.
        device: "cuda" fails without a usable GPU; "auto" takes it if there is one.
        output: where to say what happens; None prints on stderr as the command does, `Output(silent=True)` nothing.

    Raises:
        UsageError: the folder holds a run already, or the checkpoint does not fit. DataError: missing or corrupt data.
        InterruptedRun: a signal stopped it; `resume` goes on.

    Examples:
        >>> run = train(train_config("digits", epochs=5, eps=0.1), out="runs/digits")
        >>> run.model, run.summary.best_val_pgd_accuracy
        (PosixPath('runs/digits/model.safetensors'), 0.71)
    """
    if not isinstance(config, TrainConfig):
        raise UsageError(
            f"config: {config!r} is no TrainConfig.", 'make one: ducat_serve.train_config("digits", epochs=5)'
        )
    require_device(device)
    output = output or Output()
    initial = start_weights(
        initial_checkpoint, pretrained, config.network, config.pretrained_licence, offline=offline
    )
    run = Run(config, RunFolder.of(config, _path(out)), _path(data_dir), offline, initial)
    run.folder.require_free(config)
    return _trained(run, device, output)


def resume(
    path: str | Path,
    *,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    device: Device = "auto",
    output: Output | None = None,
) -> TrainedRun:
    """Go on with the run in the folder ``path``, as if it had never stopped. Arguments are those of `train`.

    Args:
        dataset: "folder:PATH" where the images of a run on a folder are somewhere else now.

    Raises:
        DataError: there is no run, its state is damaged, or the data is another.
    """
    require_device(device)
    run = stored_run(Path(path), dataset, _path(data_dir), offline=offline)
    return _trained(run, device, output or Output())


def _trained(run: Run, device: Device, output: Output) -> TrainedRun:
    with opened(run, choose_device(device, output), output) as trainer:
        summary = train_opened(trainer, run)
    return TrainedRun(run.folder.path, run.folder.model, trainer.config, summary)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)

"""Start a run, or go on with one as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ducat_serve.errors import UsageError, command_line
from ducat_serve.networks import require_name
from ducat_serve.networks.allowed import options_for
from ducat_serve.output import Output
from training.attacks.ball import require_linf_size
from training.config import TrainConfig
from training.data import DATASETS, folder_path, unknown_dataset
from training.device import fastest_precision
from training.distributed.processes import ProcessGroup, local_device
from training.initial import InitialWeights, StartWeights
from training.pretrained import Pretrained, package_weights
from training.provenance import Provenance, git_revision, installed_versions
from training.randomness import generators_kept
from training.recipes import load_recipe
from training.resolve import resolve
from training.run.curves import draw_curves
from training.run.dataset import load_run_data
from training.run.enough_memory import enough_memory_for
from training.run.folder import RunFolder
from training.run.metrics import RunSummary
from training.start_robustness import with_measured_ramp
from training.trainer import Trainer

_RAMP_SHARE = 5  # eps grows over one epoch in so many, where nobody says otherwise


def new_config(
    given: Mapping[str, Any],
    recipe: str | Path | None,
    initial: StartWeights | None,
    device: torch.device,
    *,
    off: Collection[str] = (),
) -> TrainConfig:
    """The configuration of a new run from what the user gave (None = not given).

    Args:
        recipe: its name, or a file; None is that of the data set.
        off: settings of the recipe that are not taken.

    Raises:
        UsageError: an unknown name, a value out of range, or a combination that makes no sense. DataError: a folder
            of a user that is not there.
    """
    if given["network"] is not None:
        require_name(given["network"])
    settings = load_recipe(recipe) if recipe else {}
    chosen = given["dataset"] or settings.get("dataset")
    if chosen is None:
        raise UsageError(
            "Which data set? Nothing is trained without --dataset.",
            "ducat train --dataset digits --ducat off (some minutes); `ducat datasets` lists the others, and "
            "folder:PATH is your own",
        )
    dataset = _absolute(chosen)
    if dataset not in DATASETS and not dataset.startswith("folder:"):
        raise unknown_dataset(dataset)
    values = dict(given)
    if (values["precision"] or settings.get("precision", "auto")) == "auto":
        values["precision"] = fastest_precision(device)
    if initial is not None:
        values["initial_weights"] = initial.digest
        values["network"] = values["network"] or initial.network
    if isinstance(initial, Pretrained):
        values["pretrained"], values["pretrained_licence"] = initial.source, initial.licence
    config = resolve(dataset, values, recipe, off=off)
    if initial is None and (config.measure_start or config.backbone_lr is not None):
        raise UsageError(
            "These settings are for weights that are trained already, and there are none: the network would start from "
            "random ones, with a smaller rate below its head.",
            "give --pretrained, or --initial-checkpoint, or take another recipe",
        )
    if isinstance(initial, Pretrained) and config.is_adversarial and config.eps_ramp is None:
        ramp = max(1, config.epochs // _RAMP_SHARE)
        config = config.model_copy(update={"eps_ramp": ramp, "measure_start": True})
    require_linf_size("--eps", config.eps, config.norm)  # before anything is downloaded
    require_linf_size("--step-size", config.step_size, config.norm)
    return config


def start_weights(
    checkpoint: str | Path | None,
    pretrained: str | Path | None,
    network: str | None,
    licence: str | None,
    *,
    offline: bool,
) -> StartWeights | None:
    """What a run starts from: a run of ours, weights of others, or None for fresh weights.

    Args:
        checkpoint: of `--initial-checkpoint`.
        pretrained: of `--pretrained`: a file, or "" for what the package of ``network`` offers.

    Raises:
        UsageError: both, or no network to ask for weights. DataError, VerificationError: of a file or a download.
    """
    if checkpoint is not None and pretrained is not None:
        raise UsageError(
            "--initial-checkpoint and --pretrained both say what the run starts from.",
            "give --initial-checkpoint to go on with a run of ours, --pretrained to begin another task",
        )
    if checkpoint is not None:
        return InitialWeights.read(Path(checkpoint))
    if pretrained is None:
        return None
    if str(pretrained):
        return Pretrained.read(Path(pretrained), licence)
    if network is None:
        raise UsageError(
            "--pretrained without a file needs to know whose weights.", "give --network torchvision:resnet50"
        )
    return package_weights(network, offline=offline, licence=licence)


def network_asked_for(given: Mapping[str, Any], recipe: str | Path | None) -> str | None:
    """The network that the user named, or the recipe that the user named."""
    network: str | None = given["network"] or (load_recipe(recipe).get("network") if recipe else None)
    return network


def require_unchanged(
    config: TrainConfig, given: Mapping[str, Any], start_only: Mapping[str, object], folder: Path
) -> None:
    """Raise UsageError where a resumed run was given other settings, or options in ``start_only`` at all."""
    stored = dict(config)
    values = {**given, "dataset": _absolute(given["dataset"]) if given["dataset"] else None}
    changes = [
        f"--{key.replace('_', '-')} is {stored[key]} in the run, {value} here"
        for key, value in values.items()
        if value is not None and value != stored[key] and not (key == "precision" and value == "auto")
    ]
    changes += [f"{name} cannot be given with --resume" for name, value in start_only.items() if value]
    if changes:
        raise UsageError(
            f"--resume goes on with the run as it was: {'; '.join(changes)}.",
            command_line("ducat", "train", "--resume", folder, *options_for(config.network)),
        )


@dataclass(frozen=True)
class Run:
    """A run that begins, or goes on.

    ``data_dir`` None is the user's cache folder; ``offline`` forbids to download; ``initial`` None is fresh weights;
    ``resumed`` says that it goes on.
    """

    config: TrainConfig
    folder: RunFolder
    data_dir: Path | None = None
    offline: bool = False
    initial: StartWeights | None = None
    resumed: bool = False


def stored_run(path: Path, dataset: str | None, data_dir: Path | None, *, offline: bool) -> Run:
    """The run in a folder, to go on with it. Raises DataError where there is none.

    ``dataset`` is `folder:PATH` where the images of one's own are now, ``data_dir`` where archives are now; None where
    they were. That the images are the same ones is seen when they are read.
    """
    folder = RunFolder(path)
    config, stored_data_dir = folder.read()
    if dataset is not None and dataset.startswith("folder:") and config.dataset.startswith("folder:"):
        config = config.model_copy(update={"dataset": _absolute(dataset)})
    return Run(config, folder, data_dir or stored_data_dir, offline, resumed=True)


@contextmanager
def opened(run: Run, device: torch.device, output: Output, *, only_look: bool = False) -> Iterator[Trainer]:
    """A run that is ready to be trained: its processes have met, its data is loaded. Nothing is written yet.

    What making and training it draws from torch's own generators is not drawn from those of the caller.
    With ``only_look`` start weights are not asked whether they are robust, which takes an epoch.

    Raises:
        UsageError: its start weights do not fit, or its settings were made for others. DataError: missing or corrupt
            data.
        DucatError: the other processes cannot be reached, or memory runs out, also while it is trained.
    """
    config, initial = run.config, run.initial
    given = None if initial is None else initial.digest
    # A run that goes on has its own weights; where it was killed before they were saved, `Trainer.take_up` says so.
    if given != config.initial_weights and not run.resumed:
        raise UsageError(
            f"The settings are those of a run that starts from {_short(config.initial_weights)}, and it is given "
            f"{_short(given)}.",
            "give `train_config` and `train` the same initial_checkpoint or pretrained",
        )
    device = local_device(device)
    processes = ProcessGroup.join(device)
    if not processes.is_first:
        output = Output(silent=True)
    try:
        dataset = load_run_data(config, run.data_dir, run.offline, output, processes)
        if initial is not None:
            initial.require_fit(config, dataset)
            if doubt := initial.doubt(config, dataset):
                output.warn(doubt)
        with enough_memory_for(config), generators_kept(device):
            if config.measure_start and not only_look:
                config = with_measured_ramp(config, dataset, device, output, initial, processes)
            yield Trainer(config, dataset, run.folder, device, output, initial=initial, processes=processes)
    finally:
        processes.leave()


def _short(digest: str | None) -> str:
    return "fresh weights" if digest is None else f"the weights {digest[:12]}"


def train(trainer: Trainer, run: Run, command: str | None = None) -> RunSummary:
    """Train an opened run in its folder, which no other process may use meanwhile; `curves.png` is drawn at the end.

    ``command`` is what a new run records as its own; a resumed one keeps that of its start.

    Raises:
        UsageError: the folder holds a run already, or another process trains there.
        DataError: a resumed run's state does not fit. And what `Trainer.run` raises.
    """
    config, dataset, folder = trainer.config, trainer.dataset, trainer.folder
    processes, output = trainer.processes, trainer.output
    # Not before the data is there: a failed start leaves no folder.
    with folder.locked() if processes.is_first else nullcontext():
        if processes.is_first and not run.resumed:
            origin = Provenance(command, git_revision(), installed_versions())
            data_dir = run.data_dir.resolve() if run.data_dir else None
            folder.create(config, data_dir, dataset.digest, origin)
        processes.wait()
        if run.resumed:
            trainer.resume()
            if trainer.state.epoch > config.epochs:
                output.say(f"{folder.path} ended with epoch {config.epochs}: nothing is left to train.")
        if processes.is_first:  # which alone writes checkpoints
            if run.resumed:
                _record_other_code(trainer)
            trainer.record(folder.read_provenance())
        where = trainer.device.type if processes.size == 1 else f"{processes.size} x {trainer.device.type}"
        output.event(
            "start",
            f"{dataset.title}: {len(dataset.train):,} train / {len(dataset.val):,} val images, "
            f"{len(dataset.class_names)} classes. {config.network}, {config.method}, ducat {config.ducat}, "
            f"{config.threat_model}, {config.precision} on {where}. Run folder: {folder.path}",
            run=str(folder.path),
            config=config.model_dump(mode="json"),
            processes=processes.size,
        )
        for warning in config.doubts():
            output.warn(warning)
        with trainer.stop:
            summary = trainer.run()
        if processes.is_first:
            draw_curves(trainer.state.rows, config, folder.curves)
    return summary


def _record_other_code(trainer: Trainer) -> None:
    """Say so, here and in every checkpoint from now on, where other code goes on with a run than began it."""
    folder, place = trainer.folder, trainer.state
    origin, revision, versions = folder.read_provenance(), git_revision(), installed_versions()
    if (place.epoch, place.step) == (1, 0):  # nothing of the code that began it is left
        folder.write_provenance(Provenance(origin.command, revision, versions))
    elif (changes := origin.changes(revision, versions)) and place.epoch <= trainer.config.epochs:
        trainer.output.warn(
            f"other code goes on with this run ({'; '.join(changes)}): it may come out otherwise than it would have. "
            "Its checkpoints record both."
        )
        folder.write_provenance(origin.resumed_by(place.epoch, revision, versions))


def _absolute(dataset: str) -> str:
    """`folder:PATH` with an absolute path, so that the run can be resumed from anywhere."""
    if not dataset.startswith("folder:"):
        return dataset
    return f"folder:{folder_path(dataset).resolve()}"

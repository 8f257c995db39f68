"""The data of a run: as its configuration says, or as a checkpoint remembers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ducat_serve.errors import DucatError
from ducat_serve.output import Output
from ducat_serve.spec import ModelSpec

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.data import Dataset
    from training.distributed.processes import ProcessGroup


def load_run_data(
    config: TrainConfig, data_dir: Path | None, offline: bool, output: Output, processes: ProcessGroup
) -> Dataset:
    """The data of a run, in each of its processes.

    The first process alone downloads and decodes them; the others find them in the cache.
    """
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

    dataset = load() if processes.is_first else None
    processes.wait()
    return dataset or load()


def load_training_data(
    checkpoint: Path,
    spec: ModelSpec,
    *,
    dataset: str | None,
    data_dir: Path | None,
    offline: bool,
    output: Output,
) -> Dataset:
    """The data set of a checkpoint, split as it was for training.

    Flags decide, then its run folder, then its ModelSpec. Raises DataError as `load_dataset` does.
    """
    from training.data import load_dataset
    from training.run.folder import RunFolder

    name = dataset or str(spec.training["recipe"]["dataset"])  # type: ignore[call-overload, index]
    try:
        config, stored_data_dir = RunFolder(checkpoint.parent).read()
    except DucatError:
        pass  # the checkpoint was moved out of its run folder; what the ModelSpec says must do
    else:
        name = dataset or config.dataset
        data_dir = data_dir or stored_data_dir
    recipe = spec.training["recipe"]
    return load_dataset(
        name,
        data_dir=data_dir,
        offline=offline,
        image_size=recipe["image_size"],  # type: ignore[call-overload, index, arg-type]
        seed=recipe["seed"],  # type: ignore[call-overload, index, arg-type]
        output=output,
    )

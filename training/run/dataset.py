"""The data of a run: as its configuration says, or as a checkpoint remembers it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from ducat_serve.errors import DataError, DucatError
from ducat_serve.output import Output
from ducat_serve.spec import MAX_IMAGE_SIZE, ModelSpec, first_problem

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.data import Dataset
    from training.data.selection import Selection
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
            selection=config.selection,
            output=output,
        )

    return processes.first_alone(load)


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

    Flags decide, then its run folder, then its ModelSpec. Raises DataError as `load_dataset` does, where nothing of
    these says which data set it is, and where images that it was trained on may be test images now.
    """
    from training.data import dataset_reference, held_out_splits, load_dataset
    from training.data.selection import Selection

    recipe = _read_recipe(checkpoint, spec)
    name, data_dir = locate_training_data(checkpoint, spec, dataset=dataset, data_dir=data_dir)
    if recipe.seed is None:
        output.warn(
            f"{checkpoint} does not record the seed that chose its val images; seed 0 is taken, so it may have been "
            "trained on some of them."
        )
    selection = recipe.selection if name.startswith("folder:") else Selection(recipe.val_fraction)
    data = load_dataset(
        name,
        data_dir=data_dir,
        offline=offline,
        image_size=recipe.image_size,
        seed=recipe.seed or 0,
        selection=selection,
        output=output,
    )
    if recipe.dataset == dataset_reference(name) and spec.data_digest not in (None, data.digest):
        _require_unseen(checkpoint, spec, data, held_out_splits(name, selection), output)
    return data


def _require_unseen(
    checkpoint: Path, spec: ModelSpec, data: Dataset, held_out: frozenset[str], output: Output
) -> None:
    """Raise DataError where a data set that has changed holds out other test images; warn where it is other val images.

    Which images are held out follows from the names and the number of all of them.
    """
    changed = (
        f"{data.title} is not as it was when {checkpoint} was trained on it "
        f"(digest {str(spec.data_digest)[:12]}, now {data.digest[:12]})"
    )
    if "test" in held_out:
        raise DataError(
            f"{changed}, and names no test images: some that are held out as test now may have been trained on.",
            "restore its files and their names, or put images that were not trained on into test/ of another folder, "
            "the others into train/, and name it with --dataset folder:PATH",
        )
    if "val" in held_out:
        output.warn(f"{changed}: some of the images that are held out as val now may have been trained on.")


def locate_training_data(
    checkpoint: Path, spec: ModelSpec, *, dataset: str | None, data_dir: Path | None
) -> tuple[str, Path | None]:
    """Name and data folder of a checkpoint's data set; decided, and raises, as `load_training_data` does."""
    from training.run.folder import RunFolder

    name = dataset or _read_recipe(checkpoint, spec).dataset
    try:
        config, stored_data_dir = RunFolder(checkpoint.parent).read()
    except DucatError:
        pass  # the checkpoint was moved out of its run folder; what the ModelSpec says must do
    else:
        name = dataset or config.dataset
        data_dir = data_dir or stored_data_dir
    if name is None:
        raise DataError(
            f"{checkpoint} does not record which data set it was trained on.",
            "name it with --dataset, e.g. --dataset cifar10 or --dataset folder:PATH",
        )
    return name, data_dir


class _Recipe(BaseModel):
    """Of a ModelSpec's recipe, what decides the images; None is what it does not record."""

    dataset: str | None = None
    image_size: int | None = Field(default=None, ge=1, le=MAX_IMAGE_SIZE)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    skip_broken: bool = False

    @property
    def selection(self) -> Selection:
        from training.data.selection import Selection

        return Selection(self.val_fraction, self.test_fraction, self.skip_broken)


def _read_recipe(checkpoint: Path, spec: ModelSpec) -> _Recipe:
    recorded: dict[str, Any] = spec.recipe
    try:
        return _Recipe.model_validate(recorded)
    except ValidationError as error:
        raise DataError(
            f"{checkpoint}: the recipe in its ModelSpec makes no sense: {first_problem(error)}.",
            "take the file from its source again, or train it again",
        ) from error

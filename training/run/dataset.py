"""The data of a run: as its configuration says, or as a checkpoint remembers it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from ducat_serve.errors import DataError, DucatError, UsageError
from ducat_serve.output import Output
from ducat_serve.spec import MAX_IMAGE_SIZE, ModelSpec, first_problem

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.data import Dataset
    from training.data.selection import Selection
    from training.distributed.processes import ProcessGroup

_TOWERS = ("the standard tower", "the robust tower")


def load_run_data(
    config: TrainConfig, data_dir: Path | None, offline: bool, output: Output, processes: ProcessGroup
) -> Dataset:
    """The data of a run, in each of its processes.

    The first process of a machine downloads and decodes them; the others find them in the cache.
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
    standard: ModelSpec | None = None,
) -> Dataset:
    """The data set of a checkpoint, split as it was for training.

    Flags decide, then its run folder, then its ModelSpec. ``standard`` is the standard tower that ``spec`` is about to
    be mixed with. Both of them, and both towers of a two-tower model, may not have been trained on test images.

    Raises:
        DataError: as `load_dataset` does, nothing of these says which data set it is, or images that a model was
            trained on may be test images now; where they may be val images, that is a warning.
        UsageError: its images are of another size, or have other channels, than those that the model takes.
    """
    from training.data import load_dataset

    recipe = _read_recipe(checkpoint, spec)
    name, data_dir = locate_training_data(checkpoint, spec, dataset=dataset, data_dir=data_dir)
    selection = _selection_for(name, recipe)
    data = load_dataset(
        name,
        data_dir=data_dir,
        offline=offline,
        image_size=_size_for(name, recipe, spec),
        seed=recipe.seed or 0,
        selection=selection,
        output=output,
    )
    _require_fitting(data, spec)
    now = _Now(name, data, recipe, selection)
    if spec.towers is None and standard is None:
        _require_unseen(str(checkpoint), spec, recipe, now, output)
    for tower, trained in zip(_TOWERS, spec.towers or ((standard, spec) if standard else ()), strict=False):
        own = _read_recipe(checkpoint, trained)
        _warn_of_other_data(tower, trained, own, now, output)
        _require_unseen(tower, trained, own, now, output)
    return data


def _size_for(name: str, recipe: _Recipe, spec: ModelSpec) -> int | None:
    """What images are resized to: as for training, and of another folder to what the model takes, as predict does."""
    from training.data import dataset_reference

    if not name.startswith("folder:") or recipe.dataset == dataset_reference(name):
        return recipe.image_size if name.startswith("folder:") else None
    height, width = spec.image_size
    return height if height == width else None


def _require_fitting(data: Dataset, spec: ModelSpec) -> None:
    """Raise UsageError for images that the model does not take: it would be measured on what nobody sends it."""
    found, wanted = data.test.shape[1:], (*spec.image_size, spec.channels)
    if found == wanted or data.class_names != spec.labels:
        # That these are others is said by who asked for them.
        return
    shapes = ["x".join(map(str, shape[:2])) + f" pixels and {shape[2]} channels" for shape in (found, wanted)]
    raise UsageError(
        f"{data.title} has images of {shapes[0]}, and the model takes {shapes[1]}.",
        "name a data set of such images with --dataset, or a folder of images of any size: --dataset folder:PATH",
    )


def _selection_for(name: str, recipe: _Recipe) -> Selection:
    """How much is held out, as for training; what a folder that is named now has of its own is taken as it is.

    Raises DataError as `held_out_splits` does.
    """
    from training.data import held_out_splits
    from training.data.selection import Selection

    if not name.startswith("folder:"):
        return Selection(recipe.val_fraction)
    has_fraction = recipe.val_fraction is not None or recipe.test_fraction is not None
    held_out = held_out_splits(name, Selection()) if has_fraction else frozenset()
    return Selection(
        recipe.val_fraction if "val" in held_out else None,
        recipe.test_fraction if "test" in held_out else None,
        recipe.skip_broken,
    )


@dataclass(frozen=True)
class _Now:
    """The data that models are measured on, and what they were split by."""

    name: str
    data: Dataset
    recipe: _Recipe
    selection: Selection

    @property
    def held_out(self) -> frozenset[str]:
        from training.data import held_out_splits

        return held_out_splits(self.name, self.selection)


def _warn_of_other_data(tower: str, spec: ModelSpec, own: _Recipe, now: _Now, output: Output) -> None:
    """A user knows of a whole checkpoint what it was trained on, and easily forgets that one of its towers was not."""
    is_other = own.dataset != now.recipe.dataset and spec.data_digest != now.data.digest
    if own.seed is not None and (spec.data_digest is None or is_other):
        output.warn(
            f"{tower} does not record that it was trained on {now.data.title}: it may have been trained on images that "
            "are held out as val or test here, and then accuracies are overstated."
        )


def _require_unseen(model: str, spec: ModelSpec, own: _Recipe, now: _Now, output: Output) -> None:
    """Raise DataError where images that a model was trained on may be test images now; warn where they may be val.

    Which images are held out follows from the names and the number of all of them, from the seed and the fractions.
    """
    from training.data import dataset_reference

    if own.seed is None:
        output.warn(
            f"{model} does not record the seed that chose its val images, so it may have been trained on some of those "
            f"that seed {now.recipe.seed or 0} chooses."
        )
    elif (
        spec.data_digest == now.data.digest
        and own.val_choice != now.recipe.val_choice
        and "val" in now.held_out
    ):
        output.warn(
            f"{model} was trained on some of the val images: it held out those of {own.val_choice}, and these are "
            f"those of {now.recipe.val_choice}. So accuracies on val are overstated."
        )
    if own.dataset != dataset_reference(now.name) or spec.data_digest in (None, now.data.digest):
        return
    held_out = now.held_out
    if "test" in held_out and own.test_share != now.recipe.test_share:
        raise DataError(
            f"{model} was trained with other test images of {now.data.title} (test fraction {own.test_share:g}, here "
            f"{now.recipe.test_share:g}): some that are held out as test now may have been trained on.",
            "train both towers with the same --test-fraction",
        )
    changed = (
        f"{now.data.title} is not as it was when {model} was trained on it "
        f"(digest {str(spec.data_digest)[:12]}, now {now.data.digest[:12]})"
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
    def val_choice(self) -> str:
        """What chooses the val images of a data set that names none, as options."""
        fraction = "" if self.val_fraction is None else f" --val-fraction {self.val_fraction:g}"
        return f"--seed {self.seed or 0}{fraction}"

    @property
    def test_share(self) -> float:
        """Of all images, where a folder names no test images."""
        from training.data.selection import TEST_SHARE

        return self.test_fraction or TEST_SHARE


def _read_recipe(checkpoint: Path, spec: ModelSpec) -> _Recipe:
    recorded: dict[str, Any] = spec.recipe
    try:
        return _Recipe.model_validate(recorded)
    except ValidationError as error:
        raise DataError(
            f"{checkpoint}: the recipe in its ModelSpec makes no sense: {first_problem(error)}.",
            "take the file from its source again, or train it again",
        ) from error

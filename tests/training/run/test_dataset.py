"""The data set of a checkpoint: images that it was trained on are never called test images of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ducat_serve.checkpoint import read_spec
from ducat_serve.errors import DataError, UsageError
from ducat_serve.output import Output
from ducat_serve.prediction import read_image
from ducat_serve.spec import ModelSpec, Switch
from tests.support.checkpoints import SPEC, forged, untrained
from training.data import Dataset, load_dataset
from training.data.cache import Split
from training.data.selection import Selection
from training.run.dataset import load_training_data


def write(folder: Path, *places: str, size: tuple[int, int] = (8, 8)) -> None:
    random = np.random.default_rng(0)
    for place in places:
        for label in ("cat", "dog"):
            (folder / place / label).mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / place / label / f"{number}.png")


def model(place: Path, folder: Path) -> Path:
    """A checkpoint that says that it was trained on the images of a folder as they are."""
    digest = load_dataset(f"folder:{folder}").digest
    training = {"recipe": {"dataset": f"folder:{folder.name}", "seed": 0}, "data_digest": digest}
    return forged(place / "model.safetensors", untrained(), training=training)


def data_of(checkpoint: Path, folder: Path) -> Dataset:
    return load_training_data(
        checkpoint,
        read_spec(checkpoint),
        dataset=f"folder:{folder}",
        data_dir=None,
        offline=True,
        output=Output(),
    )


def splits(data: Dataset) -> tuple[Split, Split, Split]:
    return data.train, data.val, data.test


def rename(folder: Path) -> None:
    """Give every image another name, by which others of them are held out."""
    for file in list(folder.rglob("*.png")):
        file.rename(file.with_name(f"renamed-{file.name}"))


def test_images_that_were_renamed_since_training_are_no_test_images(tmp_path: Path) -> None:
    write(tmp_path / "pets", "")
    checkpoint = model(tmp_path, tmp_path / "pets")
    assert len(data_of(checkpoint, tmp_path / "pets").test) == 4
    rename(tmp_path / "pets")
    with pytest.raises(DataError, match="may have been trained on") as caught:
        data_of(checkpoint, tmp_path / "pets")
    assert "--dataset folder:PATH" in str(caught.value.next_step)
    (tmp_path / "pets").rename(tmp_path / "others")
    assert len(data_of(checkpoint, tmp_path / "others").test) == 4  # of another name: another data set


def test_a_folder_with_test_images_of_its_own_may_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its test images stay what they are; what is held out as val is said to be doubtful."""
    write(tmp_path / "pets", "train", "test")
    checkpoint = model(tmp_path, tmp_path / "pets")
    data_of(checkpoint, tmp_path / "pets")
    assert capsys.readouterr().err == "Decoding 40 images of pets (once)\n"
    (tmp_path / "pets" / "train" / "cat" / "0.png").unlink()
    data_of(checkpoint, tmp_path / "pets")
    said = " ".join(capsys.readouterr().err.split())
    assert "held out as val now may have been trained on" in said


def tower(folder: Path, **recipe: Any) -> ModelSpec:
    """A model that was trained on the images of a folder as they are, by the settings in ``recipe``."""
    selection = Selection(test_fraction=recipe.get("test_fraction"))
    digest = load_dataset(f"folder:{folder}", selection=selection).digest
    settings = {"dataset": f"folder:{folder.name}", "seed": 0, **recipe}
    return SPEC.model_copy(update={"training": {"recipe": settings, "data_digest": digest}})


@pytest.fixture(params=["in the making", "mixed"])
def data_of_towers(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The data of two towers, before they are mixed or afterwards."""

    def load(standard: ModelSpec, robust: ModelSpec) -> Dataset:
        spec, beside = robust, standard if request.param == "in the making" else None
        if request.param == "mixed":
            switch = Switch(scale=4, power=1, shift=0, threshold=0.2)
            spec = robust.model_copy(update={"towers": (standard, robust), "fold": switch})
        return load_training_data(
            tmp_path / "model.safetensors",
            spec,
            dataset=f"folder:{tmp_path / 'pets'}",
            data_dir=None,
            offline=True,
            output=Output(),
            standard=beside,
        )

    return load


@pytest.mark.parametrize(
    ("recipe", "held_out"),
    [({"val_fraction": 0.3}, "--seed 0 --val-fraction 0.3"), ({"seed": 1}, "--seed 1")],
)
def test_a_tower_that_held_out_other_val_images(
    tmp_path: Path,
    data_of_towers: Any,
    recipe: dict[str, Any],
    held_out: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path / "pets", "")
    robust = tower(tmp_path / "pets")
    data_of_towers(robust, robust)
    assert "the standard tower" not in capsys.readouterr().err
    data_of_towers(tower(tmp_path / "pets", **recipe), robust)
    said = " ".join(capsys.readouterr().err.split())
    assert "the standard tower was trained on some of the val images" in said
    assert f"it held out those of {held_out}, and these are those of --seed 0." in said


def test_a_folder_that_names_its_val_images_holds_out_the_same_for_every_seed(
    tmp_path: Path, data_of_towers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "pets", "train", "val", "test")
    data_of_towers(tower(tmp_path / "pets", seed=1), tower(tmp_path / "pets"))
    assert "the standard tower" not in capsys.readouterr().err


def test_a_tower_that_held_out_other_test_images(tmp_path: Path, data_of_towers: Any) -> None:
    write(tmp_path / "pets", "")
    robust = tower(tmp_path / "pets", test_fraction=0.4)
    with pytest.raises(DataError, match="the standard tower was trained with other test images") as caught:
        data_of_towers(tower(tmp_path / "pets", test_fraction=0.1), robust)
    assert "test fraction 0.1, here 0.4" in caught.value.cause
    assert "--test-fraction" in str(caught.value.next_step)


@pytest.mark.parametrize("training", [{"data_digest": None}, {"data_digest": "of others"}])
def test_a_tower_of_unknown_images(
    tmp_path: Path, data_of_towers: Any, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "pets", "")
    robust = tower(tmp_path / "pets")
    training = {**training, "recipe": {"dataset": "folder:others", "seed": 0}}
    data_of_towers(SPEC.model_copy(update={"training": training}), robust)
    said = " ".join(capsys.readouterr().err.split())
    assert "the standard tower does not record that it was trained on folder:pets" in said


def test_fractions_of_the_training_do_not_hinder_a_measurement_on_another_folder(tmp_path: Path) -> None:
    """Nobody could leave them out: `evaluate`, `export` and `mix` have no such options."""
    write(tmp_path / "pets", "")
    write(tmp_path / "others", "train", "val", "test")
    write(tmp_path / "plain", "")
    recipe = {"dataset": "folder:pets", "seed": 0, "val_fraction": 0.3, "test_fraction": 0.4}
    checkpoint = forged(tmp_path / "model.safetensors", untrained(), training={"recipe": recipe})
    assert [len(part) for part in splits(data_of(checkpoint, tmp_path / "others"))] == [20, 20, 20]
    # Perhaps the same images by another name: the fractions hold.
    for folder in ("pets", "plain"):
        assert [len(part) for part in splits(data_of(checkpoint, tmp_path / folder))] == [8, 4, 8]
    with pytest.raises(DataError, match="There is no folder"):
        data_of(checkpoint, tmp_path / "nowhere")


def test_images_of_another_size_are_what_predict_makes_of_them(tmp_path: Path) -> None:
    """A model would else be measured on images that nobody gives it."""
    checkpoint, folder = forged(tmp_path / "model.safetensors", untrained()), tmp_path / "photos"
    write(folder, "train", "test", size=(2 * SPEC.image_size[0], 3 * SPEC.image_size[1]))
    data = data_of(checkpoint, folder)
    assert data.test.shape[1:3] == SPEC.image_size
    predicted = {read_image(file, SPEC).tobytes() for file in folder.glob("test/*/*.png")}
    assert {image.tobytes() for image in data.test.images} == predicted


def test_images_that_a_model_does_not_take_are_refused(tmp_path: Path) -> None:
    labels = tuple("0123456789")
    checkpoint = forged(
        tmp_path / "model.safetensors", untrained(), image_size=(32, 32), labels=labels, num_classes=10
    )
    with pytest.raises(UsageError, match="8x8 pixels and 3 channels, and the model takes 32x32 pixels"):
        load_training_data(
            checkpoint, read_spec(checkpoint), dataset="digits", data_dir=None, offline=True, output=Output()
        )

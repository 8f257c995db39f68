"""The data set of a checkpoint: images that it was trained on are never called test images of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ducat_serve.checkpoint import read_spec
from ducat_serve.errors import DataError
from ducat_serve.output import Output
from tests.support.checkpoints import forged, untrained
from training.data import Dataset, load_dataset
from training.run.dataset import load_training_data


def write(folder: Path, *places: str) -> None:
    random = np.random.default_rng(0)
    for place in places:
        for label in ("cat", "dog"):
            (folder / place / label).mkdir(parents=True)
            for number in range(10):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
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

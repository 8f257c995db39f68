"""What a new run is made of, and what it never writes over; a run whose images have moved goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from ducat_serve import import_model, resume, train, train_config
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError, UsageError
from ducat_serve.output import Output
from tests.support.image_folders import write_colours
from training.config import TrainConfig
from training.data import load_dataset
from training.device import choose_device
from training.objectives.guided import Guided
from training.objectives.objective import Batch
from training.run.folder import RunFolder

SILENT = Output(silent=True)


def tiny(folder: Path, **settings: Any) -> TrainConfig:
    """A run of seconds on a folder of images."""
    brief = {"network": "resnet-small", "image_size": 8, "epochs": 1, "batch_size": 8, "ducat": "off"}
    return train_config(f"folder:{folder}", **{**brief, "precision": "float32", **settings})


@pytest.mark.parametrize("name", ["model.safetensors", "last.safetensors", "last.pt"])
def test_a_model_that_is_no_runs_is_not_written_over(name: str, tmp_path: Path) -> None:
    """`ducat import` and `ducat mix` write into folders like those of runs."""
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match=f"{name} is there already"):
        train(train_config("digits", epochs=1), out=tmp_path, output=SILENT)
    assert run(["train", "--dataset", "digits", "--epochs", "1", "--out", str(tmp_path)]) == 2
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"precious"


@pytest.mark.parametrize("device", ["cuda:0", "mps", "GPU"])
def test_a_device_that_is_none_is_not_taken_for_another(device: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none of auto, cpu, cuda"):
        choose_device(device, SILENT)
    with pytest.raises(UsageError, match="device"):
        train(train_config("digits"), out=tmp_path, device=device)
    with pytest.raises(UsageError, match="device"):
        resume(tmp_path, device=device)


def test_settings_for_trained_weights_are_refused_without_any(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="for weights that are trained already"):
        train_config("folder:photos", recipe="folder-finetune")
    assert run(["train", "--dataset", "digits", "--backbone-lr", "0.1", "--dry-run"]) == 2
    assert "--pretrained" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["ema_decay", "eps_ramp"])
def test_none_takes_away_what_a_recipe_says(setting: str) -> None:
    assert getattr(train_config("cifar10", recipe="cifar10-hours"), setting) is not None
    config = train_config("cifar10", recipe="cifar10-hours", **cast("dict[str, Any]", {setting: None}))
    assert getattr(config, setting) is None
    assert config.epochs == train_config("cifar10", recipe="cifar10-hours").epochs
    assert train_config("digits", epochs=None).epochs == train_config("digits").epochs


def test_steps_on_a_recipe_of_another_schedule_drop_where_the_paper_has_them() -> None:
    config = train_config("cifar10", recipe="cifar10-hours", schedule="steps", epochs=130)
    assert config.lr_milestones == (100, 105)


@pytest.mark.parametrize("dataset", [Path("photos"), 7])
def test_what_is_no_name_or_config_is_said(dataset: Any) -> None:
    with pytest.raises(UsageError, match="is no name"):
        train_config(dataset)
    with pytest.raises(UsageError, match="is no TrainConfig"):
        train(dataset)


def test_settings_that_import_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="epochs, lr: nothing is trained"):
        import_model("nets:make", "digits", out=tmp_path / "m.safetensors", epochs=3, lr=7.0)


@pytest.mark.integration
def test_a_run_goes_on_with_images_that_were_moved(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos")
    config = tiny(tmp_path / "photos", attack_steps=1)
    once = train(config, out=tmp_path / "run", output=SILENT)
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(DataError, match="no folder"):
        resume(tmp_path / "run", output=SILENT)
    again = resume(tmp_path / "run", dataset=f"folder:{tmp_path / 'moved'}", output=SILENT)
    assert again.model.read_bytes() == once.model.read_bytes()
    command = ["train", "--resume", str(tmp_path / "run"), "--dataset", f"folder:{tmp_path / 'moved'}"]
    assert run(command) == 0
    write_colours(tmp_path / "others", train=9)
    assert run([*command[:-1], f"folder:{tmp_path / 'others'}"]) == 4


def test_files_that_change_places_are_decoded_anew(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos")
    before = load_dataset(f"folder:{tmp_path / 'photos'}", output=SILENT)
    first, second = (tmp_path / "photos" / "train" / name / "0.jpg" for name in ("red", "blue"))
    for file in (first, second):
        content = file.read_bytes().ljust(4000, b"\0")
        file.write_bytes(content)
    for file in (first, second):
        os.utime(file, (1e9, 1e9))
    before = load_dataset(f"folder:{tmp_path / 'photos'}", output=SILENT)
    between = tmp_path / "between"
    shutil.move(first, between)
    shutil.move(second, first)
    shutil.move(between, second)
    after = load_dataset(f"folder:{tmp_path / 'photos'}", output=SILENT)
    assert after.digest != before.digest


@pytest.mark.integration
def test_guided_attacks_take_turns_over_epochs_of_an_odd_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 images of which 4 are held out: 3 batches of 9, and so 6 steps in 2 epochs."""
    write_colours(tmp_path / "photos")
    asked: list[bool] = []
    real = Guided._is_guided

    def seen(self: Guided, batch: Batch) -> bool:
        asked.append(real(self, batch))
        return asked[-1]

    monkeypatch.setattr(Guided, "_is_guided", seen)
    config = tiny(tmp_path / "photos", method="guided", batch_size=9, epochs=2, eps_ramp=None)
    train(config, out=tmp_path / "run", output=SILENT)
    assert asked == [False, True] * 3


def test_a_folder_of_a_run_is_free_until_it_is_one(tmp_path: Path) -> None:
    RunFolder(tmp_path).require_free(train_config("digits"))

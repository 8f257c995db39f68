"""`ducat datasets`: the list, `check`, `download` and `verify`."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ducat_serve.cli.main import run
from tests.support.image_folders import write_colours
from training.data import DATASETS
from training.data.download import Archive

Capture = pytest.CaptureFixture[str]
CONTENT = b"not really images"


def class_folders(folder: Path, *names: str) -> Path:
    for split in ("train", "test"):
        for number, name in enumerate(names):
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (60 * number, 200 * (split == "test"), 0)).save(
                folder / split / name / "0.png"
            )
    return folder


def document(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, object]:
    capsys.readouterr()
    assert run(["datasets", *arguments, "--json"]) == code
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_classes_are_those_of_the_archive_that_is_there(tmp_path: Path, capsys: Capture) -> None:
    class_folders(tmp_path / "tiny-imagenet-3", "a", "b", "c")
    entries = document(capsys, "--data-dir", str(tmp_path))["datasets"]
    assert isinstance(entries, list)
    assert {entry["name"]: entry["classes"] for entry in entries} == {
        "digits": 10,
        "cifar10": 10,
        "cifar100": 100,
        "tiny-imagenet": 3,
    }


def test_an_archive_that_cannot_be_read_does_not_stop_the_list(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "cifar10-jpeg.zip").write_bytes(b"none")
    assert run(["datasets", "--data-dir", str(tmp_path)]) == 0
    assert "not a readable zip archive" in capsys.readouterr().err.replace("\n", " ")


def test_check_counts_and_ends_with_4_where_images_are_broken(tmp_path: Path, capsys: Capture) -> None:
    folder = class_folders(tmp_path / "set", "a", "b")
    assert document(capsys, "check", str(folder))["splits"] == {"train": 2, "test": 2}
    (folder / "train" / "a" / "1.png").write_text("none")
    found = document(capsys, "check", str(folder), code=4)
    assert list(found["broken"]) == ["train/a/1.png"]  # type: ignore[call-overload]
    assert run(["datasets", "check", str(folder)]) == 4
    assert "train/a/1.png" in capsys.readouterr().err


def test_the_next_command_after_check_resizes_where_sizes_differ(tmp_path: Path, capsys: Capture) -> None:
    folder = class_folders(tmp_path / "set", "a", "b")
    assert run(["datasets", "check", str(folder)]) == 0
    assert "--image-size" not in capsys.readouterr().err
    for label in ("a", "b"):
        Image.new("RGB", (9, 9)).save(folder / "train" / label / "1.png")
    assert run(["datasets", "check", str(folder)]) == 0
    command = f"ducat train --dataset folder:{folder} --recipe folder-hours --image-size 64"
    assert command in capsys.readouterr().err.replace("\n", "")


def test_check_proposes_no_training_that_a_class_would_be_refused_for(
    tmp_path: Path, capsys: Capture
) -> None:
    for label, count in {"a": 2, "b": 4}.items():
        (tmp_path / label).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    assert run(["datasets", "check", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "class 'a' has 1 training image" in said
    assert "ducat train" not in said


def test_the_next_command_after_check_has_a_batch_that_the_images_fill(
    tmp_path: Path, capsys: Capture
) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(30):  # of which 6 become test, and 2 val
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    assert run(["datasets", "check", str(tmp_path)]) == 0
    assert capsys.readouterr().err.rstrip().endswith("--batch-size 16 --dry-run")
    small = ["--network", "resnet-small", "--dry-run", "--dataset", f"folder:{tmp_path}"]
    assert run(["train", *small, "--batch-size", "45"]) == 2
    assert "more than the 44 training images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "sizes"), [({"train": 200}, []), ({"train": 130}, [32]), ({"train": 130, "val": 20}, [])]
)
def test_a_batch_is_named_where_what_is_left_to_train_on_does_not_fill_the_usual_one(
    layout: dict[str, int], sizes: list[int], tmp_path: Path, capsys: Capture
) -> None:
    for split, count in {**layout, "test": 4}.items():
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count // 2):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / split / label / f"{number}.png")
    assert run(["datasets", "check", str(tmp_path)]) == 0
    named = [int(rest.split()[0]) for rest in capsys.readouterr().err.split("--batch-size")[1:]]
    assert named == sizes


@pytest.mark.integration
def test_the_next_command_after_check_runs_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    """It names the recipe for a machine like this one, and says what a training would cost before it costs it."""
    folder = tmp_path / "my photos"
    write_colours(folder, train=5, size=40)
    assert run(["datasets", "check", str(folder)]) == 0
    command = capsys.readouterr().err.partition("Next:")[2]
    assert run(["--quiet", *shlex.split(command)[1:]]) == 0
    printed = capsys.readouterr().out
    assert "resnet14, pairing, ducat off: nothing was written" in printed
    assert "30 of 30 epochs" in printed


def test_a_share_of_nearly_all_is_not_said_to_be_all(tmp_path: Path, capsys: Capture) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    assert run(["datasets", "check", str(tmp_path), "--test-fraction", "0.999"]) == 0
    assert "99.9% of each class are held out as test" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    "command",
    [
        ["datasets", "check", ".", "--test-fraction"],
        ["train", "--test-fraction"],
        ["train", "--val-fraction"],
    ],
)
def test_a_share_that_is_no_number_is_a_usage_error(command: list[str], capsys: Capture) -> None:
    assert run([*command, "nan"]) == 2
    assert "'nan' is not a finite number" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300])
def test_a_folder_that_cannot_be_is_not_there(path: str, capsys: Capture) -> None:
    assert run(["train", "--dry-run", "--dataset", f"folder:{path}"]) == 4
    assert "There is no folder" in capsys.readouterr().err


def test_check_of_no_data_set(tmp_path: Path, capsys: Capture) -> None:
    assert run(["datasets", "check", str(tmp_path / "nowhere")]) == 4
    assert run(["datasets", "check", str(tmp_path)]) == 4
    assert "0 classes" in capsys.readouterr().err


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the authors' archive of CIFAR-10, at its URL."""
    (tmp_path / "site").mkdir()
    file = tmp_path / "site" / "cifar-10-binary.tar.gz"
    file.write_bytes(CONTENT)
    archive = Archive(file.as_uri(), len(CONTENT), hashlib.md5(CONTENT).hexdigest())
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], archive=archive))
    return file


def test_download_then_verify(site: Path, tmp_path: Path, capsys: Capture) -> None:
    data = ["--data-dir", str(tmp_path / "data")]
    assert run(["datasets", "verify", "cifar10", *data]) == 4
    assert "ducat datasets download cifar10" in capsys.readouterr().err
    path = tmp_path / "data" / site.name
    assert document(capsys, "download", "cifar10", *data)["path"] == str(path)
    assert path.read_bytes() == CONTENT
    assert document(capsys, "verify", "cifar10", *data)["md5"] == hashlib.md5(CONTENT).hexdigest()
    site.unlink()  # what is there already is not downloaded again
    assert run(["datasets", "download", "cifar10", *data]) == 0
    path.write_bytes(CONTENT[::-1])
    assert run(["datasets", "verify", "cifar10", *data]) == 3
    assert "its authors published" in capsys.readouterr().err


def test_what_verify_names_next_is_for_the_same_folder(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "my data"
    assert run(["datasets", "verify", "cifar10", "--data-dir", str(folder)]) == 4
    assert f"Next: ducat datasets download cifar10 --data-dir '{folder}'" in capsys.readouterr().err
    archive = class_folders(folder / "cifar10-mine", "a", "b")
    assert run(["datasets", "verify", "cifar10", "--data-dir", str(folder)]) == 2
    assert f"Next: ducat datasets check '{archive}'" in capsys.readouterr().err


def test_a_download_that_was_changed_on_the_way_leaves_nothing(site: Path, tmp_path: Path) -> None:
    site.write_bytes(CONTENT[::-1])
    assert run(["datasets", "download", "cifar10", "--data-dir", str(tmp_path / "data")]) == 4
    assert list((tmp_path / "data").iterdir()) == []


def test_what_cannot_be_downloaded_or_verified(tmp_path: Path, capsys: Capture) -> None:
    data = ["--data-dir", str(tmp_path)]
    assert run(["datasets", "download", "cifar", *data]) == 2
    assert run(["datasets", "download", "cifar10", "--offline", *data]) == 2
    assert run(["datasets", "download", "digits", *data]) == 0
    assert run(["datasets", "verify", "digits", *data]) == 2
    class_folders(tmp_path / "cifar10-mine", "a", "b")
    capsys.readouterr()
    assert run(["datasets", "verify", "cifar10", *data]) == 2
    assert "no digest of it is known" in capsys.readouterr().err.replace("\n", " ")

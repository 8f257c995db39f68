"""What a person watches: the list of runs, the curves; and one process per run."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from tests.support.training_runs import contents, epoch_row
from training.resolve import resolve
from training.run.curves import draw_curves
from training.run.folder import RunFolder
from training.run.metrics import kept_row
from training.run.state import load_state, save_state


def test_a_folder_holds_one_process(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lock is of the file as it was opened, so that a second one in this process is as good as another's."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    with RunFolder(folder).locked():
        before = contents(folder)
        assert run(["train", "--resume", str(folder)]) == 2
        assert "Another process is training" in capsys.readouterr().err
        assert contents(folder) == before
        assert RunFolder(folder).is_locked()
    assert not RunFolder(folder).is_locked()
    with pytest.raises(ZeroDivisionError), RunFolder(folder).locked():
        raise ZeroDivisionError
    with RunFolder(folder).locked():  # free again after an error
        pass


def test_a_folder_that_cannot_be_written_to(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A read-only file system, at the start and on resumption. (Permissions would not stop root.)"""
    flags = ["--dataset", "digits", "--epochs", "1"]
    assert run(["train", *flags, "--out", "/proc/nowhere/run"]) == 1
    assert "Cannot write to the run folder /proc/nowhere/run" in capsys.readouterr().err
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    before = contents(folder)

    def read_only(path: str, *arguments: object) -> int:
        if str(path).endswith(".lock"):
            raise OSError(30, "Read-only file system")
        return original(path, *arguments)  # type: ignore[arg-type]

    original = os.open
    monkeypatch.setattr(os, "open", read_only)
    assert run(["train", "--resume", str(folder)]) == 1
    error = capsys.readouterr().err
    assert "Read-only file system" in error
    assert "choose another --out" in error
    assert contents(folder) == before


@pytest.mark.integration
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from training.run.folder import RunFolder\n"
        f"with RunFolder(Path({str(tmp_path)!r})).locked(): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with RunFolder(tmp_path).locked():
        pass


def test_a_run_itself_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    capsys.readouterr()
    assert run(["runs", str(folder), "--json"]) == 0
    assert [r["name"] for r in json.loads(capsys.readouterr().out)["runs"]] == ["a run"]


def test_runs_are_listed(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("finished", "stopped", "damaged", "garbled"):
        shutil.copytree(run_folder, tmp_path / name)
    stopped = (tmp_path / "stopped" / "metrics.csv").read_text().splitlines()
    (tmp_path / "stopped" / "metrics.csv").write_text("\n".join(stopped[:3]) + "\n")
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "garbled" / "metrics.csv").write_text("epoch,loss\none,2.0\n")
    (tmp_path / "something else").mkdir()
    capsys.readouterr()
    with RunFolder(tmp_path / "stopped").locked():
        assert run(["runs", str(tmp_path), "--json"]) == 0
        states = {r["name"]: r["state"] for r in json.loads(capsys.readouterr().out)["runs"]}
        assert states["stopped"] == "training"
    assert run(["runs", str(tmp_path), "--json"]) == 0
    captured = capsys.readouterr()
    listed = {r["name"]: r for r in json.loads(captured.out)["runs"]}
    assert set(listed) == {"finished", "stopped", "damaged", "garbled"}
    assert (listed["finished"]["state"], listed["finished"]["epoch"]) == ("finished", 4)
    assert (listed["stopped"]["state"], listed["stopped"]["epoch"]) == ("stopped", 2)
    assert listed["damaged"]["state"].startswith("damaged")
    assert "metrics.csv is damaged" in listed["garbled"]["state"]
    assert listed["finished"]["robustness"] == "robustness not measured"
    assert listed["finished"]["method"] == "pgd-at, paper"
    assert run(["runs", str(tmp_path)]) == 0
    assert "finished" in capsys.readouterr().out
    assert run(["runs", str(tmp_path / "something else")]) == 0
    assert "there is no run" in capsys.readouterr().err
    assert run(["runs", str(tmp_path / "nowhere")]) == 4
    assert f"There is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err


def test_rows_of_older_versions_are_read(tmp_path: Path) -> None:
    """Without the columns that came later, and as dictionaries with empty strings in last.pt."""
    (tmp_path / "metrics.csv").write_text(
        "epoch,phase,learning_rate,loss,val_clean_accuracy,val_pgd_accuracy,dummy_share_clean,"
        "dummy_share_adversarial,images_per_second,seconds\n1,adversarial,0.1,2.25,0.5,0.25,,,700.5,1.5\n"
    )
    expected = epoch_row(
        loss=2.25, val_clean_accuracy=0.5, val_pgd_accuracy=0.25, images_per_second=700.5, seconds=1.5
    )
    assert RunFolder(tmp_path).read_metrics() == [expected]
    old = {
        "epoch": 1, "phase": "adversarial", "learning_rate": 0.1, "loss": 2.25, "val_clean_accuracy": 0.5,
        "val_pgd_accuracy": 0.25, "val_legacy_accuracy": "", "val_fgsm_accuracy": "", "dummy_share_clean": "",
        "dummy_share_adversarial": "", "images_per_second": 700.5, "seconds": 1.5,
    }  # fmt: skip
    state = {
        "epoch": 2, "step": 3, "weights": {}, "optimizer": {}, "average": {}, "fell_back": False,
        "losses": [2.0], "seconds": 0.5, "rows": [old],
    }  # fmt: skip
    torch.save(state, tmp_path / "last.pt")
    loaded = load_state(tmp_path / "last.pt")
    assert (loaded.epoch, loaded.step, loaded.rows) == (2, 3, [expected])
    later = {"val_balanced_accuracy": "", "val_lost_classes": "", "warning": "", "val_attack": ""}
    assert expected.cells() == old | later
    save_state(tmp_path / "again.pt", loaded)
    assert torch.load(tmp_path / "again.pt", weights_only=True) == {**state, "rows": [old | later]}


def test_the_summary_names_the_kept_epoch(run_folder: Path) -> None:
    """model.safetensors equals last.safetensors exactly where the last epoch was kept."""
    folder = RunFolder(run_folder)
    config, _ = folder.read()
    kept = kept_row(folder.read_metrics(), config)
    assert kept is not None
    same = read_spec(folder.model).weights_digest == read_spec(folder.last).weights_digest
    assert same == (kept.epoch == config.epochs)


def test_a_finished_run_has_its_curves(run_folder: Path, tmp_path: Path) -> None:
    with Image.open(run_folder / "curves.png") as picture:
        assert picture.size == (980, 1008)  # three panels
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert {(0x1B, 0x6C, 0xA8), (0xC8, 0x55, 0x3D)} <= {colour for _, colour in colours}  # clean and PGD
    rows = RunFolder(run_folder).read_metrics()
    for ducat, panels in (("off", 2), ("folded", 3)):
        config = resolve("digits", {"ducat": ducat, "epochs": 4})
        draw_curves(rows, config, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.size == (980, 336 * panels)


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard would show, read by its file format: length, checksum, Event, checksum."""
    found = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


@pytest.mark.integration
def test_events_and_tensorboard_tell_what_metrics_csv_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    flags = ["--dataset", "digits", "--epochs", "2", "--attack-steps", "1", "--batch-size", "256"]
    assert run(["train", *flags, "--precision", "float32", "--out", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.err.splitlines()]
    start = next(event for event in events if event["event"] == "start")
    assert start["config"] == json.loads((folder / "config.json").read_text())["config"]
    rows = RunFolder(folder).read_metrics()
    epochs = [event for event in events if event["event"] == "epoch"]
    drawn = scalars(folder / "tensorboard")
    assert len(rows) == len(epochs) == 2
    for row, event in zip(rows, epochs, strict=True):
        assert {key: event[key] for key in row.cells()} == row.cells()
        assert event["seconds_left"] >= 0
        for key in ("loss", "val_clean_accuracy", "val_pgd_accuracy"):
            assert drawn[key, row.epoch] == pytest.approx(row.cells()[key], rel=1e-6)
    assert epochs[-1]["seconds_left"] == 0
    assert json.loads(captured.out)["epochs"] == 2


def test_a_dry_run_estimates_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset", "digits", "--epochs", "10", "--attack-steps", "2", "--precision", "float32"]
    assert run(["train", *flags, "--ducat", "paper", "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    cost = json.loads(captured.out)
    assert list(tmp_path.iterdir()) == []
    assert cost["parameters"] == 702_756
    assert cost["steps_per_epoch"] == 1293 // 64
    assert set(cost["seconds_per_epoch"]) == {"adversarial", "dummy"}
    steps, validation = cost["seconds_per_step"], cost["seconds_of_validation"]
    whole = 20 * (8 * steps["adversarial"] + 2 * steps["dummy"]) + 10 * validation
    assert cost["estimated_seconds"] == pytest.approx(whole, rel=0.1, abs=1)
    assert "every epoch is one with dummies" not in captured.err
    assert run(["train", *flags, "--ducat", "paper", "--ducat-start", "1", "--dry-run", "--json"]) == 0
    captured = capsys.readouterr()
    assert set(json.loads(captured.out)["seconds_per_epoch"]) == {"dummy"}
    assert "every epoch is one with dummies" in captured.err
    assert run(["train", *flags, "--ducat", "off", "--eps", "8/255", "--dry-run"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "nothing was written" in shown
    assert "eps 8/255 " in shown
    assert "network resnet-small " in shown
    assert "beta" not in shown, "of other methods"
    assert "split-weight" not in shown, "of other modes"


def test_a_dry_run_of_a_resumption_estimates_what_is_left(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    state = load_state(folder / "last.pt")
    state.epoch, state.rows = 3, state.rows[:2]
    save_state(folder / "last.pt", state)
    before = contents(folder)
    capsys.readouterr()
    assert run(["train", "--resume", str(folder), "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert (cost["epochs_left"], cost["config"]["epochs"]) == (2, 4)
    assert set(cost["seconds_per_step"]) == {RunFolder(folder).read()[0].phase(epoch) for epoch in (3, 4)}
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 1}, ["every epoch is one with dummies", "learning rate 0.01 instead of 0.1"]),
        ({"epochs": 1, "ducat": "off"}, ["learning rate 0.01 instead of 0.1"]),
        ({"epochs": 1, "ducat": "off", "schedule": "cosine"}, []),
        ({"epochs": 10}, []),
        ({"epochs": 10, "ema_decay": 0.9995}, ["without --ema-warmup"]),
        ({"epochs": 10, "ema_decay": 0.9995, "ema_warmup": True}, []),
        ({"epochs": 10, "ema_decay": 0.99}, []),
    ],
)
def test_a_run_too_short_for_its_phases_says_so(given: dict[str, object], words: list[str]) -> None:
    doubts = resolve("cifar10", given).doubts()
    assert len(doubts) == len(words)
    assert all(word in doubt for word, doubt in zip(words, doubts, strict=True))


def test_where_there_is_no_run_one_without_dummies_is_proposed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As everywhere else: the dummies cost robustness."""
    assert run(["runs", str(tmp_path)]) == 0
    assert (
        f"Next: ducat train --dataset digits --ducat off --out {tmp_path}/NAME\n" in capsys.readouterr().err
    )

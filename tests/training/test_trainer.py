"""Training: exact resumption, interruption, divergence, and what a run folder holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.errors import DucatError
from tests.support import tiny_network
from tests.support.training_runs import (
    IMPORT_FROM,
    RESUME_FLAGS,
    TINY_FLAGS,
    around_steps,
    assert_same_run,
    contents,
    epoch_row,
    fill_weights,
    resumed,
    rows,
    run_until,
    trainer,
)
from training.attacks.pgd import PGD
from training.resolve import resolve
from training.run.metrics import COLUMNS, kept_row

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer(folder).run()
    return folder


def test_run_folder_holds_what_it_should(uninterrupted: Path) -> None:
    names = {p.name for p in uninterrupted.iterdir()}
    assert names == {
        "config.json", "last.pt", "metrics.csv", "tensorboard",
        "model.safetensors", "last.safetensors", "pre_dummy.safetensors",
    }  # fmt: skip
    table = rows(uninterrupted)
    assert [row["phase"] for row in table] == ["adversarial"] * 2 + ["dummy"] * 2
    assert set(table[0]) == set(COLUMNS) - {"seconds", "images_per_second"}
    assert all(float(row["loss"]) > 0 and 0 <= float(row["val_pgd_accuracy"]) <= 1 for row in table)
    assert table[0]["val_legacy_accuracy"] == ""
    assert table[3]["val_legacy_accuracy"] != ""
    spec = read_spec(uninterrupted / "model.safetensors")
    assert (spec.num_logits, spec.fold, spec.training["data"]) == (20, "max", "digits")


def test_the_same_seed_gives_the_same_run_and_another_does_not(uninterrupted: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "again").run()
    assert_same_run(uninterrupted, tmp_path / "again")
    losses = []
    for seed in (0, 1):
        subject = trainer(tmp_path / str(seed), seed=seed)
        subject.train_epoch()
        losses.append(subject.state.losses)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("steps", [1, 7, 10, 13, 19])
def test_stopped_at_any_step_and_resumed_is_the_same_run(
    uninterrupted: Path, tmp_path: Path, steps: int
) -> None:
    """5 steps per epoch: inside an epoch, at its end, and across the start of the dummy phase."""
    error = run_until(trainer(tmp_path / "run"), steps)
    assert error.exit_code == 143
    assert f"--resume {tmp_path / 'run'}" in str(error)
    resumed(tmp_path / "run").run()
    assert_same_run(uninterrupted, tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "own"),
    # Guided at the recipe's weight and ball learns nothing in fifteen steps.
    [
        ("trades", {}),
        ("mart", {}),
        ("consistency", {}),
        ("guided", {"eps": 0.05, "beta": 1.0}),
        ("pairing", {}),
    ],
)
def test_every_method_learns_and_resumes_exactly(tmp_path: Path, method: str, own: dict[str, object]) -> None:
    changes = {"method": method, "ducat": "folded", "epochs": 3, "ducat_start": 3, **own}
    whole = trainer(tmp_path / "whole", **changes)
    whole.run()
    # Not by accuracy: after fifteen steps it is near chance, and rounding differs from CPU to CPU.
    losses = [float(row["loss"]) for row in rows(tmp_path / "whole")]
    assert losses[1] < 0.9 * losses[0]
    run_until(trainer(tmp_path / "run", **changes), 12)  # in the dummy phase
    resumed(tmp_path / "run", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert read_spec(tmp_path / "run" / "model.safetensors").training["recipe"]["method"] == method  # type: ignore[index, call-overload]


@pytest.mark.parametrize(("method", "kept"), [("standard", 2), ("pgd-at", 1)])
def test_without_attacks_the_most_accurate_epoch_is_kept(method: str, kept: int) -> None:
    """By robust accuracy it would be the epoch that has learnt least."""
    epochs = [
        epoch_row(1, val_clean_accuracy=0.3, val_pgd_accuracy=0.2),
        epoch_row(2, val_clean_accuracy=0.9, val_pgd_accuracy=0.0),
    ]
    row = kept_row(epochs, resolve("digits", {"method": method, "ducat": "off"}))
    assert row is epochs[kept - 1]


@pytest.mark.parametrize("method", ["standard", "pgd-at"])
@pytest.mark.parametrize("sign", ["at-chance", "collapsed at-chance"])
def test_an_epoch_at_chance_is_kept_only_where_there_is_no_other(method: str, sign: str) -> None:
    """Always naming the class that 90 % of the images have is accurate, and no attack breaks it."""
    config = resolve("digits", {"method": method, "ducat": "off"})
    majority = replace(epoch_row(1, val_clean_accuracy=0.9, val_pgd_accuracy=0.9), warning=sign)
    learnt = epoch_row(2, val_clean_accuracy=0.85, val_pgd_accuracy=0.6)
    assert kept_row([majority], config) is majority
    assert kept_row([majority, learnt], config) is learnt


def test_training_without_attacks_learns_and_resumes_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"method": "standard", "ducat": "off", "ducat_start": None, "epochs": 8}
    summary = trainer(tmp_path / "whole", **changes).run()
    table = rows(tmp_path / "whole")
    assert summary.best_val_clean_accuracy == max(float(row["val_clean_accuracy"]) for row in table)
    assert {row["phase"] for row in table} == {"standard"}
    assert "overfitting" not in capsys.readouterr().err
    assert summary.best_val_clean_accuracy > 0.8
    run_until(trainer(tmp_path / "run", **changes), 12)
    resumed(tmp_path / "run", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_stopped_in_validation_and_resumed_is_the_same_run(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch's steps are done and saved; only its validation is repeated."""
    first = trainer(tmp_path / "run")

    attack = PGD.__call__

    def interrupted(pgd: PGD, *arguments: Any, **keywords: Any) -> Tensor:
        first.stop.received = signal.SIGINT
        return attack(pgd, *arguments, **keywords)

    monkeypatch.setattr(PGD, "__call__", interrupted)
    with pytest.raises(DucatError, match="Interrupted; saved at epoch 1, step 5") as caught:
        first.run()
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    resumed(tmp_path / "run").run()
    assert_same_run(uninterrupted, tmp_path / "run")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "ducat_serve", "train", *arguments]


def wait_for_epoch(folder: Path, epoch: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "metrics.csv").is_file() and len(rows(folder)) >= epoch:
            return
        assert process.poll() is None, "training ended too early"
        time.sleep(0.02)
    raise AssertionError("training did not reach the epoch")


@pytest.mark.parametrize("epoch", [1, pytest.param(3, marks=pytest.mark.extended)])
def test_kill_9_in_mid_epoch_then_resume(uninterrupted: Path, tmp_path: Path, epoch: int) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command("--dataset", "digits", *TINY_FLAGS, *IMPORT_FROM, "--out", str(folder))
    )
    wait_for_epoch(folder, epoch, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert run(["train", "--resume", str(folder), *RESUME_FLAGS]) == 0
    assert_same_run(uninterrupted, folder)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.extended)]
)
def test_signals_save_and_say_how_to_resume(tmp_path: Path, number: int, code: int) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        command(
            "--dataset",
            "digits",
            *TINY_FLAGS,
            *IMPORT_FROM,
            "--epochs",
            "400",
            "--ducat-start",
            "400",
            "--out",
            str(folder),
        ),
        stderr=subprocess.PIPE,
    )
    wait_for_epoch(folder, 1, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"ducat train --resume {folder}" in stderr.decode()
    assert (folder / "last.pt").is_file()


def test_nan_stops_with_the_step_named_and_the_last_state_kept(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "run")

    def poisoned(n: int, step: Callable[[], Tensor]) -> Tensor:
        if n == 8:
            fill_weights(subject, float("nan"))
        return step()

    around_steps(subject, poisoned)
    with pytest.raises(DucatError, match=r"nan at epoch 2, step 2") as caught:
        subject.run()
    assert caught.value.exit_code == 1
    assert caught.value.next_step == "train again with a smaller --lr", "it had float32 already"
    fresh = resumed(tmp_path / "run")
    assert fresh.state.epoch == 2
    assert all(torch.isfinite(t).all() for t in fresh.state.weights.values())


@pytest.mark.parametrize("stop_at", [6, 13])
def test_losses_that_are_read_in_bundles_change_nothing(
    uninterrupted: Path, tmp_path: Path, stop_at: int
) -> None:
    """As on a GPU, where reading a loss waits for the step: same run, same resumption, and NaN at its own step."""
    first = trainer(tmp_path / "run")
    first.bundle = 3
    run_until(first, stop_at)
    second = resumed(tmp_path / "run")
    second.bundle = 4
    second.run()
    assert_same_run(uninterrupted, tmp_path / "run")
    third = trainer(tmp_path / "nan")
    third.bundle = 4
    around_steps(third, lambda n, step: step() * (float("nan") if n == 7 else 1))
    with pytest.raises(DucatError, match=r"nan at epoch 2, step 1\. "):
        third.run()


def test_full_disk_while_saving_keeps_the_old_state(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = trainer(tmp_path / "run")
    subject.train_epoch()
    subject.finish_epoch()
    before = contents(tmp_path / "run")
    subject.train_epoch()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DucatError, match="No space left"):
        subject.finish_epoch()
    assert contents(tmp_path / "run") == before
    monkeypatch.undo()
    resumed(tmp_path / "run").run()
    assert_same_run(uninterrupted, tmp_path / "run")


def test_damaged_state_is_an_error_and_nothing_else_changes(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    assert run(["train", "--resume", str(folder)]) == 4
    assert (folder / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


def test_resume_refuses_another_configuration_and_shows_the_difference(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "--resume", str(uninterrupted), "--epochs", "9", "--network", "resnet18"]) == 2
    stderr = capsys.readouterr().err
    assert "--epochs is 4 in the run, 9 here" in stderr
    assert f"--network is {tiny_network.NAME} in the run, resnet18 here" in stderr


def test_a_run_folder_is_not_overwritten(uninterrupted: Path) -> None:
    before = (uninterrupted / "model.safetensors").read_bytes()
    assert run(["train", "--dataset", "digits", *TINY_FLAGS, "--out", str(uninterrupted)]) == 2
    assert (uninterrupted / "model.safetensors").read_bytes() == before


def test_resume_of_nothing(tmp_path: Path) -> None:
    assert run(["train", "--resume", str(tmp_path / "none")]) == 4


@pytest.mark.parametrize("ducat", ["off", "folded"])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_modes_and_norms_train(
    tmp_path: Path, ducat: str, norm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--epochs", "2", "--attack-steps", "1", "--batch-size", "256", "--ducat", ducat, "--norm", norm]
    assert run(["train", "--dataset", "digits", *flags, "--out", str(tmp_path / "run"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    spec = read_spec(Path(summary["model"]))
    assert spec.fold == {"off": "none", "folded": "lse"}[ducat]
    assert spec.num_logits == (10 if ducat == "off" else 20)
    assert spec.threat_model.norm == norm


def test_attack_never_touches_weights_gradients_or_batchnorm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the update begins, the attack is over: nothing of the model may have changed since the step began."""
    subject = trainer(tmp_path / "run")
    order = subject.batches.order(1)
    subject.classifier.train()
    # Leaves gradients behind, which an attack through the weights would add to.
    subject.train_step(order, 1, 0)
    state = {k: v.clone() for k, v in subject.classifier.network.state_dict().items()}
    gradients = {k: p.grad.clone() for k, p in subject.classifier.named_parameters() if p.grad is not None}
    original, seen = subject.step.backward, []

    def spy(losses: list[Callable[[], Tensor]]) -> Tensor:
        model = subject.step.train_model
        assert all(m.training for m in model.modules())
        assert all(p.requires_grad for p in model.parameters())
        now = subject.classifier.network.state_dict()
        assert all(torch.equal(now[name], tensor) for name, tensor in state.items())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradients[name])
        seen.append(True)
        return original(losses)

    monkeypatch.setattr(subject.step, "backward", spy)
    subject.train_step(order, 1, 1)
    assert seen


def test_killed_in_the_first_epoch_starts_over(uninterrupted: Path, tmp_path: Path) -> None:
    """config.json is there, last.pt is not: --resume does what the first try would have done."""
    trainer(tmp_path / "run")
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_run(uninterrupted, tmp_path / "run")


def test_resume_refuses_other_data(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, "data_digest": "0" * 64}))
    assert run(["train", "--resume", str(folder)]) == 4


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The last update of an epoch goes wrong after a finite loss."""
    subject = trainer(tmp_path / "run")

    def poisoned(n: int, step: Callable[[], Tensor]) -> Tensor:
        loss = step()
        if n == 5:
            fill_weights(subject, float("inf"))
        return loss

    around_steps(subject, poisoned)
    with pytest.raises(DucatError, match=r"not finite at epoch 1, step 5\. No state was saved"):
        subject.run()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.json"}

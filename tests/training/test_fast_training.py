"""N-FGSM and its guard, averaged weights, initial checkpoints, spikes, compiled networks."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ducat_serve.checkpoint import read_checkpoint, read_spec
from ducat_serve.cli.main import run
from ducat_serve.deployed import load
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.pairs import fold_logits, folded_log_posterior, widen_head
from tests.support.training_runs import (
    around_steps,
    assert_same_run,
    resumed,
    rows,
    run_until,
    trainer,
)
from training.attacks.inner import NFGSM, PGD, CornerFGSM
from training.chance import Chance
from training.collapse import CollapseGuard
from training.data import Dataset, load_dataset
from training.initial import InitialWeights, initial_spec
from training.overfitting import is_spike
from training.resolve import resolve
from training.trainer import Trainer

pytestmark = pytest.mark.integration

EPS = 0.1


def test_n_fgsm_is_the_published_step() -> None:
    """Uniform noise of 2 eps, one step of eps along the sign, no projection, pixels kept in [0, 1]."""
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    attack = NFGSM(EPS)
    start = attack.start(images, torch.Generator().manual_seed(1))
    inside = (images > 0.3) & (images < 0.7)  # where no clamp hides what was drawn
    moved = (start - images)[inside]
    assert moved.abs().max() <= 2 * EPS + 1e-6
    assert moved.std().item() == pytest.approx(2 * EPS / 3**0.5, rel=0.05)
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    after = attack.ascend(lambda x: (x * weight).sum(dim=(1, 2, 3)), images, start)
    torch.testing.assert_close(after, (start + EPS * weight.sign()).clamp(0, 1))
    assert (after - images).abs().max() > EPS, "not projected"
    assert after.min() >= 0
    assert after.max() <= 1


def attacks_of(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The inner attack of each step from now on."""
    seen: list[type] = []
    for attack in (NFGSM, PGD, CornerFGSM):
        original = attack.ascend

        def ascend(self: Any, *arguments: Any, original: Any = original) -> Tensor:
            seen.append(type(self))
            crafted: Tensor = original(self, *arguments)
            return crafted

        monkeypatch.setattr(attack, "ascend", ascend)
    return seen


def test_one_step_attacks_until_the_dummies_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = trainer(tmp_path / "run", inner_attack="n-fgsm", attack_steps=3)
    seen = attacks_of(monkeypatch)
    subject.run()
    assert seen == [NFGSM] * 10 + [PGD] * 10
    table = rows(tmp_path / "run")
    assert [row["val_fgsm_accuracy"] != "" for row in table] == [True, True, False, False]


def test_the_guard_falls_back_to_pgd_says_so_and_survives_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import training.trainer as module

    monkeypatch.setattr(module, "is_catastrophic", lambda rows, _: len(rows) == 2)
    changes = {"ducat": "off", "ducat_start": None, "inner_attack": "n-fgsm", "epochs": 4}
    seen = attacks_of(monkeypatch)
    whole = trainer(tmp_path / "whole", **changes)
    whole.run()
    assert seen.count(PGD) == 2 * 5, "epochs 3 and 4"
    assert "From epoch 3 on the inner attack is PGD-1" in capsys.readouterr().err
    run_until(trainer(tmp_path / "run", **changes), 13)
    second = resumed(tmp_path / "run", **changes)
    assert second.state.fell_back
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_one_step_attacks_that_protect_against_nothing_give_way_to_pgd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However high accuracy under FGSM is, or ever was; the run is not ended for it."""
    import training.collapse as module

    monkeypatch.setattr(CollapseGuard, "_is_not_robust", lambda *_: True)
    monkeypatch.setattr(Chance, "is_exceeded_by", lambda *_: True)
    monkeypatch.setattr(module, "PATIENCE_OF_FRESH_WEIGHTS", 2)
    changes = {"ducat": "off", "ducat_start": None, "inner_attack": "n-fgsm", "epochs": 3, "attack_steps": 3}
    seen = attacks_of(monkeypatch)
    trainer(tmp_path / "run", **changes).run()
    assert seen == [NFGSM] * 10 + [PGD] * 5
    assert "From epoch 3 on the inner attack is PGD-3" in capsys.readouterr().err
    assert [row["warning"] for row in rows(tmp_path / "run")] == [
        "not-robust",
        "lasting not-robust",
        "not-robust",
    ]


@pytest.mark.parametrize("ducat", ["off", "folded"])
def test_the_guard_holds_for_guided_training(
    ducat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its attack has one step in every epoch, those with dummies as well."""
    import training.trainer as module

    monkeypatch.setattr(module, "is_catastrophic", lambda rows, _: len(rows) == 3)
    start = {"ducat": ducat, "ducat_start": 3 if ducat == "folded" else None}
    changes = {**start, "method": "guided", "epochs": 4, "attack_steps": 2}
    seen = attacks_of(monkeypatch)
    whole = trainer(tmp_path / "whole", **changes)
    whole.run()
    assert seen == [CornerFGSM] * 15 + [PGD] * 5
    assert "From epoch 4 on the inner attack is PGD-2" in capsys.readouterr().err
    assert [row["val_fgsm_accuracy"] != "" for row in rows(tmp_path / "whole")] == [True, True, True, False]
    run_until(trainer(tmp_path / "run", **changes), 17)
    second = resumed(tmp_path / "run", **changes)
    assert second.state.fell_back
    second.run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_averaged_weights_are_what_is_kept_and_resume_exactly(tmp_path: Path) -> None:
    changes = {"ema_decay": 0.9}
    whole = trainer(tmp_path / "whole", **changes)
    history: list[Tensor] = []

    def recorded(_: int, step: Callable[[], Tensor]) -> Tensor:
        loss = step()
        history.append(whole.classifier.network.state_dict()["fc.weight"].clone())
        return loss

    around_steps(whole, recorded)
    whole.run()
    literal = history[0].double()
    for weights in history[1:]:
        literal = 0.9 * literal + 0.1 * weights.double()
    kept = torch.from_numpy(read_checkpoint(tmp_path / "whole" / "last.safetensors")[1]["fc.weight"].copy())
    torch.testing.assert_close(kept.double(), literal, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept, history[-1], atol=1e-4)
    run_until(trainer(tmp_path / "run", **changes), 8)
    resumed(tmp_path / "run", **changes).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_every_so_many_epochs_are_kept(tmp_path: Path) -> None:
    trainer(tmp_path / "run", save_every=2).run()
    kept = sorted(path.name for path in (tmp_path / "run").glob("epoch-*"))
    assert kept == ["epoch-002.safetensors", "epoch-004.safetensors"]
    last = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert (tmp_path / "run" / "epoch-004.safetensors").read_bytes() == last


def test_a_new_dummy_changes_no_decision() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    weight, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 8), (5,)))
    logits = features @ weight.T + bias
    wide_weight, wide_bias = widen_head(weight, bias)
    wide = features @ wide_weight.T + wide_bias
    assert wide.shape == (50, 10)
    torch.testing.assert_close(fold_logits(wide, "max"), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded_log_posterior(wide), logits.log_softmax(dim=1), rtol=1e-12, atol=1e-12)


FAST = ["--epochs", "1", "--attack-steps", "1", "--batch-size", "256", "--precision", "float32"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert run(["train", "--dataset", "digits", "--ducat", "off", *FAST, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("mode", ["paper", "folded"])
def test_dummies_are_added_to_a_plain_model(plain: Path, tmp_path: Path, mode: str) -> None:
    """Before the first update the new model is the old one; --initial-checkpoint is kept by its digest alone."""
    import training.trainer as module
    from ducat_serve.deployed import Deployed
    from ducat_serve.output import Output
    from training.data import load_dataset
    from training.initial import InitialWeights
    from training.resolve import resolve
    from training.run.folder import RunFolder

    initial = InitialWeights.read(plain)
    config = resolve("digits", {"ducat": mode, "initial_weights": initial.spec.weights_digest})
    subject = module.Trainer(
        config, load_dataset("digits"), RunFolder(tmp_path), torch.device("cpu"), Output(), initial=initial
    )
    images = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    new = Deployed(subject.classifier, subject.spec.fold).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            new(images).log_softmax(dim=1), load(plain)(images).log_softmax(dim=1), rtol=1e-4, atol=1e-4
        )
    folder = tmp_path / "run"
    arguments = ["train", "--dataset", "digits", "--ducat", mode, "--ducat-start", "1", *FAST]
    assert run([*arguments, "--initial-checkpoint", str(plain), "--out", str(folder)]) == 0
    recipe = read_spec(folder / "model.safetensors").training["recipe"]
    assert recipe["initial_weights"] == initial.spec.weights_digest  # type: ignore[index, call-overload]
    assert str(plain) not in (folder / "config.json").read_text()


def test_a_run_from_a_checkpoint_is_resumed_without_it(plain: Path, tmp_path: Path) -> None:
    """Stopped in its first step: the state that was saved at the start holds the weights."""
    moved = tmp_path / "moved"
    shutil.copytree(plain, moved)
    arguments = [
        "train",
        "--dataset",
        "digits",
        "--ducat",
        "folded",
        *FAST,
        "--initial-checkpoint",
        str(moved),
    ]
    assert run([*arguments, "--out", str(tmp_path / "whole")]) == 0
    original = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda *_: (_ for _ in ()).throw(RuntimeError("power cut")))
        assert run([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert Trainer.train_step is original
    shutil.rmtree(moved)
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "resnet18"], "other network"),
        (["--seed", "1"], "--seed 0"),
        (["--dataset", "cifar10"], "other classes"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    plain: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cifar10" in arguments:
        (tmp_path / "cifar10" / "train" / "a").mkdir(parents=True)
        from PIL import Image

        for split in ("train", "test"):
            for name in "ab":
                (tmp_path / "cifar10" / split / name).mkdir(parents=True, exist_ok=True)
                for number in range(4):
                    Image.new("RGB", (32, 32)).save(tmp_path / "cifar10" / split / name / f"{number}.png")
        arguments = [*arguments, "--data-dir", str(tmp_path), "--batch-size", "2"]
    command = ["train", "--dataset", "digits", *FAST, "--initial-checkpoint", str(plain), *arguments]
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def empty_images(folder: Path, *places: str) -> None:
    for place in places:
        (folder / place).mkdir(parents=True)
        for name in "01":
            (folder / place / f"{name}.png").touch()


@pytest.mark.parametrize(
    ("splits", "given", "is_refused"),
    [
        (("val/a", "test/b"), {"seed": 4}, False),
        (("val/a",), {"seed": 4}, True),  # these are then the test images
        (("test/b",), {"seed": 4}, True),
        (("test/b",), {"val_fraction": 0.2}, True),
    ],
)
def test_a_seed_may_change_where_the_folder_names_the_images_itself(
    splits: tuple[str, ...], given: dict[str, object], is_refused: bool, tmp_path: Path
) -> None:
    empty_images(tmp_path, "train/a", "train/b", *splits)
    split = load_dataset("digits")
    data = Dataset("photos", split.class_names, split.train, split.val, split.test, "0" * 64)
    name, options = f"folder:{tmp_path}", {"ducat": "off", "image_size": 8}
    theirs = resolve(name, {**options, "seed": 3}, "folder")
    start = InitialWeights(Path("a.safetensors"), initial_spec(theirs, data), {})
    ours = resolve(name, {**options, "seed": 3, **given}, "folder")
    if is_refused:
        with pytest.raises(UsageError, match="held out as val or test here"):
            start.require_fit(ours, data)
    else:
        start.require_fit(ours, data)


@pytest.mark.parametrize(
    ("recorded", "given", "advice"),
    [
        ({}, {"test_fraction": 0.5}, "train with --seed 3, and without --test-fraction"),
        ({"test_fraction": 0.5}, {}, "train with --seed 3 --test-fraction 0.5"),
        ({"val_fraction": 0.3}, {"seed": 4}, "train with --seed 3 --val-fraction 0.3"),
        ({}, {"skip_broken": True}, "train with --seed 3, and without --skip-broken"),
        ({"dataset": "folder:others"}, {"test_fraction": 0.5, "seed": 4}, None),
    ],
)
def test_another_selection_of_the_same_folder_is_refused(
    recorded: dict[str, object], given: dict[str, object], advice: str | None, tmp_path: Path
) -> None:
    """Its train images may be test images here; the digests of both selections differ."""
    empty_images(tmp_path, "photos/a", "photos/b")
    split = load_dataset("digits")
    data = Dataset("photos", split.class_names, split.train, split.val, split.test, "0" * 64)
    config = resolve(
        f"folder:{tmp_path / 'photos'}", {"ducat": "off", "seed": 3, "image_size": 8, **given}, "folder"
    )
    spec = initial_spec(config, data)
    recipe = {"dataset": "folder:photos", "seed": 3, **recorded}
    training = {"recipe": recipe, "data": "photos", "data_digest": "1" * 64}
    start = InitialWeights(Path("a.safetensors"), spec.model_copy(update={"training": training}), {})
    if advice is None:
        start.require_fit(config, data)
        return
    with pytest.raises(UsageError, match="held out as val or test here") as caught:
        start.require_fit(config, data)
    assert caught.value.next_step == advice


@pytest.mark.parametrize(("dataset", "names_all_splits"), [("digits", False), ("folder", True)])
def test_images_that_changed_under_the_same_name_are_refused_where_we_hold_some_out(
    tmp_path: Path, dataset: str, names_all_splits: bool
) -> None:
    """Seed and fractions are the same, but they choose other images."""
    if names_all_splits:
        empty_images(tmp_path, "train/a", "train/b", "val/a", "test/b")
        dataset = f"folder:{tmp_path}"
    split = load_dataset("digits")
    data = Dataset("photos", split.class_names, split.train, split.val, split.test, "0" * 64)
    config = resolve(dataset, {"ducat": "off", "image_size": 8 if names_all_splits else None}, None)
    spec = initial_spec(config, data)
    start = InitialWeights(
        Path("a.safetensors"),
        spec.model_copy(update={"training": {**spec.training, "data_digest": "1" * 64}}),
        {},
    )
    if names_all_splits:
        start.require_fit(config, data)
        return
    with pytest.raises(UsageError, match=r"other images.*\n?.*held out as val or test here"):
        start.require_fit(config, data)


def test_dummies_are_not_thrown_away(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        "--dataset",
        "digits",
        "--ducat",
        "off",
        *FAST,
        "--initial-checkpoint",
        str(run_folder),
    ]
    assert run([*command, "--out", str(tmp_path / "run")]) == 2
    assert "has dummy classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "before", "expected"),
    [
        (2.5, [], False),
        (2.9, [0.1] * 60, False),  # thirty times as much, but no more than guessing costs
        (29.0, [2.3] * 60, False),
        (31.0, [2.3] * 60, True),
        (31.0, [], False),  # accurate start weights under attack: nothing to compare with
        (95.0, [10.0] * 60, False),
        (101.0, [10.0] * 60, True),
    ],
)
def test_what_a_spike_is(loss: float, before: list[float], expected: bool) -> None:
    assert is_spike(loss, before, num_logits=20) is expected


def test_a_spike_stops_the_run_and_the_state_before_is_kept(tmp_path: Path) -> None:
    subject = trainer(tmp_path / "run")
    around_steps(subject, lambda n, step: step() * (100 if n == 8 else 1))
    with pytest.raises(DucatError, match=r"at epoch 2, step 2\. The last good state is kept"):
        subject.run()
    fresh = resumed(tmp_path / "run")
    assert (fresh.state.epoch, fresh.state.step) == (2, 0)


def test_the_first_loss_may_be_any_and_later_epochs_remember_the_one_before(tmp_path: Path) -> None:
    """Methods that multiply a distance by 20 begin at 60 and more from weights that were never attacked."""
    subject = trainer(tmp_path / "run")
    around_steps(subject, lambda n, step: step() * {1: 100, 6: 1000}.get(n, 1))
    with pytest.raises(DucatError, match=r"at epoch 2, step 0\. The last good state is kept"):
        subject.run()


def test_a_signal_in_a_long_attack_saves_at_once(tmp_path: Path) -> None:
    """One step of this attack takes far more than the 10 s that a preempted machine has."""
    subject, calls = trainer(tmp_path / "run", attack_steps=100_000), iter(range(10**9))
    objective = type(subject.step.objective_of(1))
    original = objective.attack_loss

    def counted(*arguments: Any) -> Tensor:
        if next(calls) == 5:
            subject.stop.received = signal.SIGTERM
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "attack_loss", counted)
        with pytest.raises(DucatError, match="saved at epoch 1, step 0"):
            subject.run()
    assert next(calls) <= 8, "steps of the attack, of 100,000"
    assert all(p.requires_grad for p in subject.classifier.parameters())


def test_compiled_and_plain_networks_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced but not compiled, which takes minutes (docs/performance/training.md): the trace is the same step."""
    import training.step as step

    monkeypatch.setattr(step, "_BACKEND", "aot_eager")
    plain_one, compiled = trainer(tmp_path / "a"), trainer(tmp_path / "b", compile=True)
    losses = []
    for subject in (plain_one, compiled):
        subject.classifier.train()
        order = subject.batches.order(1)
        losses.append([subject.train_step(order, 1, step).item() for step in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert compiled.step.train_model is not compiled.classifier
    assert compiled.step.attack_model is not compiled.step.fused.model


def test_compile_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DucatError, match=r"needs a C\+\+ compiler"):
        trainer(tmp_path / "run", compile=True)

"""What every attack must do: find what a closed form says, stay in the ball, know the pairs, say what it is."""

from __future__ import annotations

import sys
from dataclasses import fields

import pytest
import torch
from torch import nn

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from ducat_serve.spec import Fold
from ducat_serve.threat_model import Norm
from tests.support.oracle import WRONG, Linear, WithIdleDummies, oracle, run
from tests.support.towers import SWITCH
from training.attacks import losses
from training.attacks.apgd import APGD
from training.attacks.autoattack import AutoAttack
from training.attacks.ball import Ball, distance
from training.attacks.base import TargetModel, Task
from training.attacks.criteria import misclassified, misclassified_unflagged, right
from training.attacks.pair_margin import PairMargin
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.attacks.targeted_apgd import TargetedAPGD
from training.attacks.transfer import Transfer
from training.evaluation.detectors import detectors
from training.evaluation.runner import counted
from training.evaluation.stages import ATTACKS, SUITES, attack_named, on_doubt, suite
from training.randomness import stream


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "name",
    [
        "pgd",
        "apgd-ce",
        "apgd-dlr",
        "apgd-lse",
        "pair-margin-0",
        "pair-margin-1",
        "pair-margin-4",
        "targeted",
        "square-warm",
        "closest-first",
    ],
)
def test_finds_every_image_nearer_than_eps_and_none_beyond(norm: Norm, name: str) -> None:
    """Two classes for untargeted losses: among more they may follow one that is not the nearest."""
    classes = 5 if name in ("targeted", "closest-first") else 2
    model, images, labels, nearest, eps = oracle(norm, classes)
    if name in ("apgd-lse", "pair-margin-0", "pair-margin-4"):
        # For models with dummies: here ones that never win.
        model = Deployed(WithIdleDummies(model.classifier), "max")
    found = run(name, model, images, labels, Ball(norm, eps), classes)
    wrong = model(found).argmax(dim=1) != labels
    clear = (nearest - eps).abs() > 0.01 * eps  # on the sphere itself float32 decides
    assert torch.equal(wrong[clear], (nearest < eps)[clear])


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "pair-margin-1", "targeted", "closest-first"])
def test_l1_finds_every_image_that_spending_greedily_can_fool(name: str) -> None:
    """A linear margin in the l1 ball and the pixel box falls fastest on the largest weights, each up to its bound."""
    generator = stream(5, "images")
    model = Linear(2).eval()
    images = torch.rand(150, 3, 3, 3, generator=generator)
    with torch.no_grad():
        logits = model(images)
        labels = logits.argmax(dim=1)
        slope = (model.weight[1 - labels] - model.weight[labels]).double()
        gap = (logits.max(dim=1).values - logits.min(dim=1).values).double()
    pixels = images.flatten(1).double()
    room = torch.where(slope > 0, 1 - pixels, pixels)
    order = slope.abs().argsort(dim=1, descending=True)
    eps = 0.6
    spent = room.gather(1, order).cumsum(dim=1).clamp_max(eps)
    spent = spent.diff(dim=1, prepend=torch.zeros(150, 1, dtype=torch.float64))
    reachable = (slope.abs().gather(1, order) * spent).sum(dim=1) - gap
    found = run(name, Deployed(model, "none"), images, labels, Ball("l1", eps), 2)
    wrong = model(found).argmax(dim=1) != labels
    clear = reachable.abs() > 0.03 * gap
    assert 30 < wrong.sum() < 120
    assert torch.equal(wrong[clear], (reachable > 0)[clear])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_standard_suite_together_finds_every_one(norm: Norm) -> None:
    model, images, labels, nearest, eps = oracle(norm)
    wrong = torch.zeros(len(images), dtype=torch.bool)
    for each in suite("standard", TargetModel("none", 5)):
        found = run(each.name, model, images, labels, Ball(norm, eps), 5)
        wrong |= model(found).argmax(dim=1) != labels
    clear = (nearest - eps).abs() > 0.01 * eps
    assert torch.equal(wrong[clear], (nearest < eps)[clear])


class SafeSink(nn.Module):
    """Two classes with dummies. Brighter images move mass from class 0 to its own dummy, and only beyond the
    ball's middle, and slowly, to class 1: what a raw 2C attack finds first is harmless when deployed."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        # The sink wins on 2C logits as soon as the image darkens; class 1 wins the pair when it brightens enough.
        own = 4 - 6 * (level - 0.5).abs() * (level < 0.5)
        sink = 3.9 + 20 * (0.5 - level).clamp_min(0)
        other = 4 + 10 * (level - 0.6)
        return torch.stack([own, other, sink, torch.full_like(own, -9)], dim=1)


def test_the_safe_sink_fools_the_raw_attack_and_not_ours() -> None:
    images = torch.full((8, 3, 2, 2), 0.5)
    labels = torch.zeros(8, dtype=torch.long)
    ball, model = Ball("linf", 0.2), Deployed(SafeSink(), "max")
    assert (model(images).argmax(dim=1) == labels).all()
    unaware = APGD(loss=losses.cross_entropy, steps=50)(
        Task(Deployed(SafeSink(), "none"), images, labels, ball, WRONG, stream(0, "t"))
    )
    raw = SafeSink()(unaware)
    assert (raw.argmax(dim=1) != labels).all()  # the raw attack thinks it has won
    fooled_by_raw = (model(unaware).argmax(dim=1) != labels).float().mean()
    for name in ("apgd-ce", "pair-margin-1"):
        found = run(name, model, images, labels, ball, 2)
        assert (model(found).argmax(dim=1) != labels).all(), name
    assert fooled_by_raw < 1


def fold_for(name: str) -> Fold:
    """One that an attack can run on: `switch` is for two towers."""
    return SWITCH if name == "switch" else "max"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", [*ATTACKS, "evading dummy_mass", "evading confidence"])
def test_every_attack_stays_inside_and_leaves_the_model_alone(norm: Norm, name: str) -> None:
    torch.manual_seed(0)
    batch_norm = nn.BatchNorm2d(4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), batch_norm, nn.Flatten(), nn.Linear(36, 10))
    network.train()
    fold = fold_for(name)
    model = Deployed(network, fold)
    assert batch_norm.running_mean is not None
    statistics = batch_norm.running_mean.clone()
    images, labels = torch.rand(5, 3, 5, 5), torch.arange(5)
    eps = {"linf": 0.05, "l2": 0.3, "l1": 2.0}[norm]
    if name.startswith("evading"):
        detector = next(each for each in detectors("max") if name == f"evading {each.name}")
        found = detector.attack(
            Task(model, images, labels, Ball(norm, eps), misclassified(fold), stream(0, "t"))
        )
    else:
        found = run(name, model, images, labels, Ball(norm, eps), 5, surrogate=model)
    assert (distance(images, found, norm) <= eps).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(batch_norm.running_mean, statistics)
    assert network.training


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_what_it_says_of_itself(name: str) -> None:
    """An exported file is attacked by what needs no gradient; a report shows every hyperparameter."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    fold = fold_for(name)
    model = Deployed(network, fold)
    surrogate = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "none")
    attack = attack_named(name, TargetModel(fold, 5, surrogate))
    images = torch.rand(2, 3, 2, 2, generator=stream(0, "images"))
    labels = model(images).argmax(dim=1).detach()
    with counted(network) as cost:
        attack(Task(model, images, labels, Ball("linf", 1e-6), misclassified(fold), stream(0, "t")))
    assert (cost.gradient_steps > 0) == attack.needs_gradient
    expected = {f.name for f in fields(attack)} - {"surrogate", "step_size"}  # no step size was given
    assert set(attack.settings()) == expected
    assert attack.needs_dummies == (name == "apgd-lse")
    blind = {"pgd", "apgd-ce", "apgd-dlr", "transfer", "autoattack", "square"}
    assert attack.knows_pairs == (name not in blind)


def test_settings_are_what_was_run() -> None:
    assert PairMargin(4, steps=7).settings() == {"temperature": 4, "steps": 7}
    assert APGD(losses.dlr, 3).settings() == {"loss": "dlr", "steps": 3}
    assert PGD(5, 0.1).settings() == {"steps": 5, "step_size": 0.1}
    model = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "none")
    assert Transfer(9, surrogate=model).settings() == {"steps": 9}


def test_square_needs_no_gradient_and_finds_what_it_should() -> None:
    model, images, labels, nearest, eps = oracle("linf")

    class ScoresOnly(nn.Module):
        def forward(self, candidates: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(model(candidates).detach().numpy().copy())  # no graph survives this

    found = Square(queries=500)(
        Task(Deployed(ScoresOnly(), "none"), images, labels, Ball("linf", eps), WRONG, stream(0, "t"))
    )
    wrong = model(found).argmax(dim=1) != labels
    assert not wrong[nearest > 1.01 * eps].any()
    assert wrong[nearest < 0.7 * eps].all()


def test_targeted_looks_at_dummies_too() -> None:
    """Only the dummy of class 3 can win, so targets among the C originals alone find nothing."""

    class OnlyDummy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            raw = torch.zeros(len(images), 10)
            raw[:, 0] = 1.0
            raw[:, 3] = -5 + 0 * level
            return raw + torch.nn.functional.one_hot(torch.tensor(8), 10) * (20 * (level - 0.55)).unsqueeze(1)

    model = Deployed(OnlyDummy(), "max")
    images, labels = torch.full((3, 3, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    found = TargetedAPGD(loss=losses.targeted_dlr, steps=20)(
        Task(model, images, labels, Ball("linf", 0.2), misclassified("max"), stream(0, "t"))
    )
    assert (model(found).argmax(dim=1) == 3).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_targeted_looks_at_dummies_below_four_classes_too(classes: int) -> None:
    """The dummy of class 1 wins in the dark, nothing else anywhere; untargeted margins climb towards the light."""

    class DarkDummy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3)) - 0.5
            raw = torch.full((len(images), 2 * classes), -9.0) + 0 * level.unsqueeze(1)
            raw[:, 0] = 1.0
            raw[:, 1] = 0.5 + level  # never reaches 1 within the ball
            raw[:, classes + 1] = -20 * (level + 0.1)
            return raw

    model = Deployed(DarkDummy(), "max")
    images, labels = torch.full((3, 3, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    found = run("targeted", model, images, labels, Ball("linf", 0.2), classes)
    assert (model(found).argmax(dim=1) == 1).all()


def test_nan_logits_count_as_wrong() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, torch.nan], [torch.nan, 0.0]])
    assert right(logits, torch.tensor([0, 0, 0])).tolist() == [True, False, False]


def test_suites_fit_the_model() -> None:
    folds: list[Fold] = ["none", "max", "lse"]
    names = {fold: [attack.name for attack in on_doubt("standard", TargetModel(fold, 10))] for fold in folds}
    assert "apgd-lse" in names["max"]
    assert "apgd-lse" not in names["lse"]  # there it is apgd-ce
    assert [n for n in names["none"] if "margin" in n] == ["pair-margin-1"]
    assert on_doubt("quick", TargetModel("none", 10)) == []
    alone = [attack.name for attack in suite("standard", TargetModel("max", 10))]
    assert alone == ["pgd", "closest-first", "apgd-ce"]  # there is no surrogate
    surrogate = Deployed(nn.Identity(), "max")
    assert "transfer" in [s.name for s in suite("standard", TargetModel("max", 10, surrogate))]
    assert set(SUITES["quick"]) < set(SUITES["full"]) == set(ATTACKS)
    assert set(SUITES["standard"]) < set(SUITES["full"])
    for name, setting, loss in (
        ("apgd-dlr", "loss", "margin"),
        ("targeted", "loss", "targeted_margin"),
        ("closest-first", "targeted", "targeted_margin"),
    ):  # DLR needs 4 classes
        assert attack_named(name, TargetModel("none", 3)).settings()[setting] == loss
        assert attack_named(name, TargetModel("none", 4)).settings()[setting] == loss.replace("margin", "dlr")
    with pytest.raises(UsageError, match="Did you mean 'standard'"):
        suite("standart", TargetModel("none", 10))
    with pytest.raises(UsageError, match="Did you mean 'square'"):
        attack_named("sqare", TargetModel("none", 10))
    few = attack_named("autoattack", TargetModel("none", 3)).settings()
    assert few == {"version": "apgd-ce, fab, square"}
    with pytest.raises(UsageError, match="has no dummies"):
        attack_named("apgd-lse", TargetModel("none", 10))
    with pytest.raises(UsageError, match="needs pre_dummy"):
        attack_named("transfer", TargetModel("max", 10))


def test_transfer_shows_what_it_found_on_the_surrogate() -> None:
    """The target returns no useful gradient at all; the surrogate has the same boundaries."""
    model, images, labels, nearest, eps = oracle("linf", classes=2)

    class Rounded(nn.Module):
        def forward(self, candidates: torch.Tensor) -> torch.Tensor:
            rounded: torch.Tensor = (model(candidates) * 1000).round() / 1000
            return rounded

    target = Deployed(Rounded(), "none")
    ball = Ball("linf", eps)
    blind = run("apgd-ce", target, images, labels, ball, 2)
    found = Transfer(surrogate=model, steps=50)(Task(target, images, labels, ball, WRONG, stream(0, "t")))
    clear = (nearest - eps).abs() > 0.01 * eps
    assert torch.equal((target(found).argmax(dim=1) != labels)[clear], (nearest < eps)[clear])
    assert (target(blind).argmax(dim=1) != labels).sum() < (nearest < eps).sum() / 2


def test_an_unflagged_criterion_needs_both() -> None:
    raw = torch.tensor([[1.0, 0.0, 5.0], [1.0, 0.0, -5.0], [0.0, 1.0, 5.0], [0.0, 1.0, -5.0]])
    labels = torch.tensor([0, 0, 0, 0])
    criterion = misclassified_unflagged("none", lambda r: r[:, 2], threshold=0.0)
    decided = torch.stack([raw[:, 0], raw[:, 1], raw[:, 2]], dim=1)
    assert criterion(decided, labels).tolist() == [False, False, False, True]


def test_autoattack_takes_no_debugger_or_coverage_away() -> None:
    def trace(*_: object) -> None: ...

    model = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "none").eval()
    images, labels = torch.rand(2, 3, 2, 2), torch.tensor([0, 1])
    before = sys.gettrace()
    try:
        sys.settrace(trace)
        AutoAttack()(
            Task(model, images, labels, Ball("linf", 0.01), misclassified("none"), stream(0, "trace"))
        )
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)

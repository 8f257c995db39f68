"""Attacks: inside the ball, against closed forms, and without side effects on the model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from ducat_serve.deployed import Deployed
from ducat_serve.threat_model import Norm
from training.attacks.apgd import APGD
from training.attacks.ball import Ball, distance
from training.attacks.base import Task
from training.attacks.criteria import misclassified
from training.attacks.frozen import frozen
from training.attacks.inner import ascend_loss
from training.attacks.losses import margin
from training.attacks.pgd import PGD
from training.evaluation.runner import counted
from training.randomness import stream

NORMS: list[Norm] = ["linf", "l2", "l1"]
WRONG = misclassified("none")


def plain(network: nn.Module) -> Deployed:
    return Deployed(network, "none")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NORMS), st.floats(1e-3, 20), st.integers(0, 1000), st.floats(0, 50))
@example("l1", 0.22, 0, 32.0)  # left the ball once, by rounding
def test_projection_stays_inside_ball_and_pixels(norm: Norm, eps: float, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 5, 5, generator=generator)
    far = images + scale * torch.randn(4, 3, 5, 5, generator=generator)
    ball = Ball(norm, eps)
    for candidates in (ball.project(images, far), ball.random_start(images, generator)):
        assert (distance(images, candidates, norm) <= eps).all()
        assert candidates.min() >= 0
        assert candidates.max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NORMS),
    st.integers(1, 40),
    st.sampled_from([0, 0.6]),
    st.integers(0, 1000),
    st.floats(0, 50),
)
def test_eight_bit_projection_gives_eight_bit_images_inside(
    norm: Norm, levels: int, more: float, seed: int, scale: float
) -> None:
    """Counted in whole grey levels, where nothing rounds."""
    generator = torch.Generator().manual_seed(seed)
    grey = torch.randint(256, (4, 3, 5, 5), generator=generator)
    images = grey.float() / 255
    far = images + scale * torch.randn(4, 3, 5, 5, generator=generator)
    shown = Ball(norm, (levels + more) / 255, eight_bit=True).project(images, far) * 255
    assert (shown - shown.round()).abs().max() < 1e-3
    delta = (shown.round().long() - grey).double().flatten(1)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    assert (torch.linalg.vector_norm(delta, order, dim=1) <= levels + more + 1e-9).all()
    assert shown.round().min() >= 0
    assert shown.round().max() <= 255
    if norm == "linf" and scale > 5:  # the budget is used: rounding must not cost a grey level
        assert delta.abs().max() == levels


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("levels", [1, 2, 255])
def test_an_image_of_eight_bits_on_the_sphere_itself_is_allowed(norm: Norm, levels: int) -> None:
    images = torch.zeros(1, 3, 5, 5)
    far = images.clone()
    far[0, 1, 2, 2] = levels / 255
    assert torch.equal(Ball(norm, levels / 255, eight_bit=True).project(images, far), far)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.25), ("l2", 1.0), ("l1", 6.0), ("linf", 2 / 255)])
def test_images_of_eight_bits_are_found_that_use_the_budget(norm: Norm, eps: float) -> None:
    """A linear model, whose margin grows with every level. In l2 a step is a fraction of a level in each pixel."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(3 * 32 * 32, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) / 50)
    model = Deployed(nn.Sequential(nn.Flatten(), linear), "none").eval()
    images = torch.randint(60, 196, (4, 3, 32, 32), generator=generator).float() / 255
    labels = model(images).argmax(dim=1)

    def gain(eight_bit: bool) -> float:
        ball = Ball(norm, eps, eight_bit=eight_bit)
        task = Task(model, images, labels, ball, lambda raw, _: torch.zeros(len(raw)).bool(), stream(0, "t"))
        found = APGD(margin, 50)(task)
        with torch.no_grad():
            before, after = (margin("none")(model(shown), labels, labels) for shown in (images, found))
        return (after - before).mean().item()

    assert gain(eight_bit=True) > 0.9 * gain(eight_bit=False)


@pytest.mark.parametrize("levels", [1, 1.5])
def test_a_step_among_images_of_eight_bits_is_a_level_at_least(levels: float) -> None:
    """A quarter of such an eps, the step of PGD, would be rounded back to where it began."""
    weight = torch.randn(2, 48, generator=stream(0, "weights"))
    linear = nn.Linear(48, 2, bias=False)
    linear.weight = nn.Parameter(weight)
    model = Deployed(nn.Sequential(nn.Flatten(), linear), "none").eval()
    images, labels = torch.full((2, 3, 4, 4), 128 / 255), torch.zeros(2, dtype=torch.long)
    never = lambda raw, _: torch.zeros(len(raw), dtype=torch.bool)  # noqa: E731
    found = PGD()(
        Task(model, images, labels, Ball("linf", levels / 255, eight_bit=True), never, stream(0, "t"))
    )
    highest = (weight[1] - weight[0]).sign().view(1, 3, 4, 4).expand(2, -1, -1, -1)
    assert torch.equal(((found - images) * 255).round(), highest)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_points_inside_alone(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    images = 0.25 + 0.5 * torch.rand(4, 3, 5, 5, generator=generator)
    near = images + 1e-3 * torch.randn(4, 3, 5, 5, generator=generator)
    torch.testing.assert_close(Ball(norm, 0.2).project(images, near), near, rtol=0, atol=2e-6)


def test_l1_projection_is_the_nearest_point() -> None:
    """Against a search over the soft threshold by bisection, in float64."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((6, 3, 4, 4), 0.5, dtype=torch.float64)
    delta = 0.15 * torch.randn(6, 3, 4, 4, generator=generator, dtype=torch.float64)
    eps = 1.0
    projected = Ball("l1", eps).project(images, images + delta) - images
    for row, literal in zip(projected, delta, strict=True):
        low, high = 0.0, 10.0
        for _ in range(100):
            middle = (low + high) / 2
            total = (literal.abs() - middle).clamp_min(0).sum()
            low, high = (middle, high) if total > eps else (low, middle)
        nearest = literal.sign() * (literal.abs() - high).clamp_min(0)
        torch.testing.assert_close(row, nearest, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_l1_projection_onto_ball_and_box_is_the_nearest_point() -> None:
    """Against Dykstra's alternating projections in float64, near the bounds of the pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64).round(decimals=1)
    wanted = images + 0.4 * torch.randn(6, 1, 4, 4, generator=generator, dtype=torch.float64)
    eps = 1.5
    projected = Ball("l1", eps).project(images, wanted)
    for image, point, result in zip(images, wanted, projected, strict=True):
        x, p, q = (point - image).clone(), torch.zeros_like(point), torch.zeros_like(point)
        for _ in range(100):  # it has converged after 50
            y = (x + p + image).clamp(0, 1) - image
            p = x + p - y
            low, high = 0.0, 10.0
            for _ in range(60):  # onto the l1 ball
                middle = (low + high) / 2
                total = ((y + q).abs() - middle).clamp_min(0).sum()
                low, high = (middle, high) if total > eps else (low, middle)
            x = (y + q).sign() * ((y + q).abs() - high).clamp_min(0)
            q = y + q - x
        torch.testing.assert_close(result - image, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_step_has_the_asked_length(norm: Norm) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.full((4, 3, 8, 8), 0.5)
    moved = Ball(norm, 1.0).ascend(images, torch.randn(4, 3, 8, 8, generator=generator), 0.1)
    torch.testing.assert_close(distance(images, moved, norm), torch.full((4,), 0.1), rtol=1e-4, atol=1e-5)


class TwoClasses(nn.Module):
    """Logits (w.x + b, 0): the distance to the boundary is |w.x + b| over the dual norm of w."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(27, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum() / 2)  # the middle grey image is on the boundary

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = images.flatten(1) @ self.weight + self.bias
        return torch.stack([score, torch.zeros_like(score)], dim=1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_pgd_finds_exactly_what_the_closed_form_says(norm: Norm, dual: float) -> None:
    model = TwoClasses()
    generator = torch.Generator().manual_seed(4)
    # Near the middle, so that the pixel bounds are out of reach and the closed form is exact.
    images = 0.5 + 0.05 * torch.randn(200, 3, 3, 3, generator=generator)
    with torch.no_grad():
        scores = model(images)[:, 0]
    labels = (scores < 0).long()
    margins = scores.abs() / torch.linalg.vector_norm(model.weight.detach(), dual)
    eps = margins.median().item()
    attacked = PGD(40, eps / 4)(Task(plain(model), images, labels, Ball(norm, eps), WRONG, stream(0, "t")))
    with torch.no_grad():
        found = model(attacked).argmax(dim=1) != labels
    clear = (margins - eps).abs() > 1e-3 * eps  # images on the sphere itself may fall either way
    assert 50 < found.sum() < 150
    assert torch.equal(found[clear], (margins < eps)[clear])


class Stubborn(nn.Module):
    """Wrong only in a thin shell that the last iterate has left: best iterate and last iterate differ."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        wrong = (level > 0.52) & (level < 0.56)
        right = torch.where(wrong, -1.0, 1.0) - level
        return torch.stack([right, torch.zeros_like(right)], dim=1)


def test_best_iterate_is_returned_not_the_last() -> None:
    model, images = Stubborn(), torch.full((4, 3, 2, 2), 0.5)
    labels = torch.zeros(4, dtype=torch.long)
    generator = stream(0, "t")
    last = ascend_loss(
        lambda x: nn.functional.cross_entropy(model(x), labels, reduction="none"),
        images,
        Ball("linf", 0.2),
        start=Ball("linf", 0.2).random_start(images, generator),
        steps=20,
        step_size=0.02,
    )
    best = PGD(20, 0.02)(Task(plain(model), images, labels, Ball("linf", 0.2), WRONG, generator))
    assert (model(last).argmax(dim=1) == labels).all()
    assert (model(best).argmax(dim=1) != labels).all()


def test_an_image_that_is_wrong_already_stays_wrong() -> None:
    model = TwoClasses()
    images = 0.5 + 0.05 * torch.randn(20, 3, 3, 3)
    wrong_labels = (model(images)[:, 0] > 0).long().detach()
    attacked = PGD(5, 0.1)(Task(plain(model), images, wrong_labels, Ball("linf", 0.3), WRONG, stream(0, "t")))
    assert (model(attacked).argmax(dim=1) != wrong_labels).all()


def test_model_is_left_as_it_was() -> None:
    """No weight gradients, no BatchNorm update, every module's mode and every flag restored one by one."""
    norm, head = nn.BatchNorm2d(4), nn.Linear(36, 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), norm, nn.Flatten(), head)
    model.train()
    model[1].eval()
    head.bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    assert norm.running_mean is not None
    statistics = norm.running_mean.clone()
    PGD(3, 0.05)(
        Task(
            plain(model),
            torch.rand(6, 3, 5, 5),
            torch.zeros(6, dtype=torch.long),
            Ball("linf", 0.1),
            WRONG,
            stream(0, "t"),
        )
    )
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(norm.running_mean, statistics)
    assert all(p.grad is None for p in model.parameters())
    assert not head.bias.requires_grad
    assert head.weight.requires_grad


def test_weights_need_no_gradient_while_attacked() -> None:
    """Their activations would be kept for nothing."""
    needed: list[bool] = []

    class Watching(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            needed.append(self.weight.requires_grad)
            return super().forward(images.flatten(1))

    PGD(2, 0.05)(
        Task(
            plain(Watching(27, 3)),
            torch.rand(2, 3, 3, 3),
            torch.zeros(2, dtype=torch.long),
            Ball("linf", 0.1),
            WRONG,
            stream(0, "t"),
        )
    )
    assert needed
    assert not any(needed)


def test_modes_are_restored_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not model[0].training
        raise ZeroDivisionError
    assert model[0].training
    assert model[0].weight.requires_grad


def test_the_same_seed_gives_the_same_attack() -> None:
    model, images = TwoClasses(), 0.5 + 0.05 * torch.randn(8, 3, 3, 3, generator=stream(0, "images"))
    labels = model(images).argmax(dim=1)

    def attack(seed: int) -> torch.Tensor:
        return PGD(2, 0.01)(Task(plain(model), images, labels, Ball("l2", 0.02), WRONG, stream(seed, "t")))

    assert torch.equal(attack(0), attack(0))
    assert not torch.equal(attack(0), attack(1))


@pytest.mark.parametrize("norm", NORMS)
def test_where_there_is_no_gradient_apgd_spends_no_steps(norm: Norm) -> None:
    """A bright image is seen as white: a gradient of 0, which one evaluation shows."""

    class Rounded(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3))
            seen = torch.where(level > 0.5, level.round(), level)
            return torch.stack([0.1 + seen, 1 - seen], dim=1)

    images = torch.cat([torch.full((5, 1, 4, 4), 0.9), torch.full((2, 1, 4, 4), 0.4)])
    model, labels = plain(Rounded()), torch.tensor([0] * 5 + [1] * 2)
    with counted(model.classifier) as cost:
        found = APGD(margin, 20)(Task(model, images, labels, Ball(norm, 0.02), WRONG, stream(0, "t")))
    searches = 3 if norm == "l1" else 1  # it begins in larger balls there
    assert found.isfinite().all()
    assert cost.gradient_steps == 5 * searches + 2 * (20 + searches)

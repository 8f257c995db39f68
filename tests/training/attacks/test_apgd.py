"""APGD: the steps of the algorithm, where it begins, and when it stops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ducat_serve.deployed import Deployed
from tests.support.oracle import WRONG, Linear, oracle
from training.attacks import losses
from training.attacks.apgd import APGD, Iterates, dense_checkpoints
from training.attacks.ball import Ball
from training.attacks.base import Evaluated, Task
from training.attacks.square import Square
from training.randomness import stream


def test_checkpoints_are_those_of_the_paper() -> None:
    """Croce and Hein 2020, section 3.1: 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of the steps."""
    assert dense_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def test_a_start_is_where_the_attack_begins() -> None:
    """Wrong only in a far corner of the ball that no gradient points to."""

    class Island(nn.Module):
        def forward(self, candidates: torch.Tensor) -> torch.Tensor:
            inside = (candidates.flatten(1) > 0.69).all(dim=1).float()
            return torch.stack([1 - 2 * inside, torch.zeros_like(inside)], dim=1) + 0 * candidates.sum()

    model = Deployed(Island(), "none")
    images, labels = torch.full((2, 3, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)
    ball, corner = Ball("linf", 0.2), torch.full((2, 3, 2, 2), 0.6999)
    for start, expected in ((None, False), (corner, True)):
        by_apgd = APGD(loss=losses.margin, steps=3)(
            Task(model, images, labels, ball, WRONG, stream(0, "t")), start=start
        )
        by_square = Square(queries=3)(Task(model, images, labels, ball, WRONG, stream(1, "t")), start=start)
        for found in (by_apgd, by_square):
            assert (model(found).argmax(dim=1) != labels).all() == expected


def test_steps_are_halved_where_they_bring_too_little() -> None:
    """The highest loss is at a point inside the ball, which steps of one length jump over for ever."""
    images, labels = torch.full((2, 3, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)
    top = images + 0.2 * (2 * torch.rand(images.shape, generator=stream(0, "top")) - 1)

    class Hill(nn.Module):
        def forward(self, candidates: torch.Tensor) -> torch.Tensor:
            away = (candidates - top).square().flatten(1).sum(dim=1)
            return torch.stack([torch.zeros_like(away), -1 - away], dim=1)

    model = Deployed(Hill(), "none")
    found = APGD(loss=losses.margin, steps=100)(
        Task(model, images, labels, Ball("linf", 0.25), WRONG, stream(1, "t"))
    )
    assert (found - top).abs().max() < 0.01


def test_four_steps_are_those_of_the_algorithm_worked_out_by_hand() -> None:
    """One pixel at 0.5, eps 0.1, the loss -(x - 0.51)^2: a step goes to an edge, and a quarter of the last move stays.

    At the checkpoint after three steps two have increased the loss, which is too few: the steps are halved, and the
    search goes on from the best place, the start, along the gradient of that place, which points up.
    """
    start = torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    ball = Ball("linf", 0.1)

    def at(place: torch.Tensor) -> tuple[Evaluated, torch.Tensor]:
        loss = -(place - 0.51).square().flatten()
        return Evaluated(loss, torch.zeros(1, dtype=torch.bool)), -2 * (place - 0.51)

    iterates = Iterates.begin(torch.arange(1), start, start, *at(start), ball)
    visited = []
    for step in range(1, 5):
        proposed = iterates.propose(ball, first=step == 1)
        visited.append(proposed.item())
        iterates.update(proposed, *at(proposed))
        if step == 3:
            iterates.checkpoint(3)

    by_hand = [
        0.6,  # up, to the edge
        0.6 + 0.75 * (0.4 - 0.6) + 0.25 * (0.6 - 0.5),  # 0.475: down
        0.475 + 0.75 * (0.6 - 0.475) + 0.25 * (0.475 - 0.6),  # 0.5375: up
        0.5
        + 0.75 * (0.6 - 0.5)
        + 0.25 * (0.5 - 0.475),  # up again, with half of the step size: from the start
    ]
    assert visited == pytest.approx(by_hand, abs=1e-6)
    assert iterates.step_size.item() == pytest.approx(0.1)


def test_keep_going_reaches_a_higher_loss_than_stopping_at_success() -> None:
    model, images, labels, _, eps = oracle("linf", classes=2)
    margin = losses.margin("none")

    def best_loss(keep_going: bool) -> torch.Tensor:
        found = APGD(loss=losses.margin, steps=20)(
            Task(model, images, labels, Ball("linf", 2 * eps), WRONG, stream(0, "t")), keep_going=keep_going
        )
        return margin(model(found), labels, labels)

    assert isinstance(model.classifier, Linear)
    slope = model.classifier.weight[1] - model.classifier.weight[0]
    highest = margin(model(images), labels, labels) + 2 * eps * slope.abs().sum()
    torch.testing.assert_close(best_loss(True), highest, rtol=1e-3, atol=1e-3)
    assert (best_loss(False) < highest - 0.1).any()

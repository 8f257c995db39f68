"""The windows of Square in l2 and l1: the published bump, and what a query does with the budget."""

from __future__ import annotations

import pytest
import torch
from pyautoattack.square import SquareAttack
from torch import Tensor

from ducat_serve.threat_model import Norm
from training.attacks.ball import Ball, distance
from training.attacks.square_windows import _bump, move_budget, tiled_start
from training.randomness import stream

GREY = torch.full((40, 1, 9, 9), 0.5)


def size(candidates: Tensor, norm: Norm) -> Tensor:
    return distance(GREY, candidates, norm)


@pytest.mark.parametrize("side", [1, 3, 5, 8])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_a_bump_is_that_of_the_reference(norm: Norm, side: int) -> None:
    reference = SquareAttack(lambda images: images, norm=norm.upper(), eps=1.0, device="cpu")
    reference.init_hyperparam(GREY)
    torch.manual_seed(0)
    theirs = [reference.eta(side) for _ in range(20)]  # some of them transposed
    ours = _bump(side, norm)
    assert any(torch.allclose(bump, ours, atol=1e-6) for bump in theirs)
    assert any(torch.allclose(bump, ours.T, atol=1e-6) for bump in theirs)


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.8), ("l1", 2.0)])
def test_a_query_spends_all_of_eps_and_leaves_the_rest_of_the_image_alone(norm: Norm, eps: float) -> None:
    ball, generator = Ball(norm, eps), stream(0, "windows")
    start = tiled_start(GREY, ball, generator)
    assert size(start, norm).tolist() == pytest.approx([eps] * 40, rel=1e-3)
    assert ((start - GREY).abs() > 1e-6).flatten(1).float().mean(dim=1).min() > 0.9  # bumps everywhere
    moved = move_budget(start, GREY, ball, 3, generator)
    assert size(moved, norm).tolist() == pytest.approx([eps] * 40, rel=1e-3)
    changed = ((moved - start).abs() > 1e-4).any(dim=1).flatten(1).sum(dim=1)
    assert changed.max() <= 2 * 9  # two windows of 3 x 3
    assert changed.min() >= 5
    assert len({tuple(row.flatten().tolist()) for row in (moved - start).abs() > 1e-4}) > 30  # each its own


@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.8), ("l1", 2.0)])
def test_the_second_window_is_emptied_and_the_first_holds_what_both_held(norm: Norm, eps: float) -> None:
    ball, generator = Ball(norm, eps), stream(1, "windows")
    start = tiled_start(GREY, ball, generator)
    moved = move_budget(start, GREY, ball, 3, generator)
    empty = ((moved - GREY).abs() < 1e-7).all(dim=1).flatten(1).sum(dim=1)
    assert (empty >= 9).any()  # windows that do not overlap leave nine empty pixels
    assert (empty <= 9).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (2, 3, 4, 7), (2, 1, 32, 32)])
def test_any_shape_stays_inside(norm: Norm, shape: tuple[int, ...]) -> None:
    generator = stream(2, "windows")
    images, ball = torch.rand(shape, generator=generator), Ball(norm, 0.7)
    current = tiled_start(images, ball, generator)
    for side in (1, 2, 5):
        current = move_budget(current, images, ball, side, generator)
        assert distance(images, current, norm).max() <= 0.7
        assert current.min() >= 0
        assert current.max() <= 1
        assert current.isfinite().all()

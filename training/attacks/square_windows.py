"""The windows of the Square attack in l2 and l1 (Andriushchenko et al. 2020, arXiv 1912.00049, section 3.4).

A pixel that moves costs budget there, so a new bump is paid for: a query empties one window, and puts what was in it,
together with what the image had left, into another. In l1 as AutoAttack has it (Croce and Hein 2021, arXiv 2103.01208):
steeper bumps, and a projection in place of scaling. Every image has windows of its own; the reference implementation
draws one pair for the whole batch.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ducat_serve.threat_model import Norm
from training.attacks.ball import Ball, distance

_STEEPNESS = {"l2": 2, "l1": 4}  # the exponent with which a bump falls off from its centre
_TILES = 5  # bumps along the shorter side of the image, to begin with
_SMALLEST = 3
_TINY = 1e-12


def tiled_start(images: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    """Images full of bumps, one beside the other, each of random sign in each channel; in the ball."""
    height, width = images.shape[2:]
    side = max(1, min(height, width) // _TILES)
    delta = torch.zeros_like(images)
    for top in range((height % side) // 2, height - side + 1, side):
        for left in range((width % side) // 2, width - side + 1, side):
            bump = _bumps(images, side, ball, generator)
            delta[:, :, top : top + side, left : left + side] += bump
    return ball.project(images, images + _filled(delta, ball))


def move_budget(current: Tensor, origin: Tensor, ball: Ball, side: int, generator: torch.Generator) -> Tensor:
    """``current`` with the budget of one random window moved into a bump in another; in the ball.

    Args:
        current, origin: where the search is and the clean images, float [N, channels, H, W].
        side: of both windows, in pixels; made odd and at least 3, where the image is that large.
    """
    count, channels, height, width = current.shape
    side = min(max(side, _SMALLEST) | 1, height, width)
    delta = current - origin
    to, emptied = (_Windows(delta, side, generator) for _ in range(2))
    both = torch.zeros(count, 1, height, width, dtype=torch.bool, device=current.device)
    both[to.row_of, 0, to.rows, to.columns] = True
    both[emptied.row_of, 0, emptied.rows, emptied.columns] = True
    unspent = _unspent(delta, ball)
    inside = to.of(delta)
    bump = _bumps(current, side, ball, generator) + inside / _size(inside, ball).clamp_min(_TINY)
    bump = bump / _size(bump, ball).clamp_min(_TINY)
    held = _size(delta * both, ball)
    budget = (unspent / channels + held.square()).sqrt() if ball.norm == "l2" else unspent + held * channels
    emptied.fill(delta, torch.zeros_like(bump))
    to.fill(delta, bump * budget)
    return ball.project(origin, origin + _filled(delta, ball))


def _unspent(delta: Tensor, ball: Ball) -> Tensor:
    """What is left of eps (l2: of its square), float [N, 1, 1, 1]; for l2 the channels share it."""
    spent = distance(torch.zeros_like(delta), delta, ball.norm).view(-1, 1, 1, 1)
    left = ball.eps**2 - spent.square() if ball.norm == "l2" else ball.eps - spent
    return left.clamp_min(0)


def _filled(delta: Tensor, ball: Ball) -> Tensor:
    """l2: scaled to the surface of the ball, which clamping to [0, 1] had left. l1: as it is."""
    if ball.norm == "l1":
        return delta
    length = distance(torch.zeros_like(delta), delta, "l2").view(-1, 1, 1, 1)
    return ball.eps * delta / length.clamp_min(_TINY)


def _size(values: Tensor, ball: Ball) -> Tensor:
    """The norm of each channel, float [N, channels, 1, 1]."""
    order = 2 if ball.norm == "l2" else 1
    size: Tensor = torch.linalg.vector_norm(values, order, dim=(2, 3), keepdim=True)
    return size


class _Windows:
    """A square of pixels in each image, at random places."""

    def __init__(self, like: Tensor, side: int, generator: torch.Generator) -> None:
        count, _, height, width = like.shape
        along = torch.arange(side, device=like.device)

        def places(limit: int) -> Tensor:
            return torch.randint(limit, (count, 1), generator=generator, device=like.device) + along

        self.rows = places(height - side + 1).unsqueeze(2)  # [N, side, 1]
        self.columns = places(width - side + 1).unsqueeze(1)  # [N, 1, side]
        self.row_of = torch.arange(count, device=like.device).view(-1, 1, 1)

    def of(self, values: Tensor) -> Tensor:
        """What ``values`` [N, channels, H, W] are in the windows, [N, channels, side, side]."""
        return values[self.row_of, :, self.rows, self.columns].movedim(3, 1)

    def fill(self, values: Tensor, content: Tensor) -> None:
        values[self.row_of, :, self.rows, self.columns] = content.movedim(1, 3)


def _bumps(like: Tensor, side: int, ball: Ball, generator: torch.Generator) -> Tensor:
    """A bump for each image, upright or on its side, of random sign in each channel; [N, channels, side, side]."""
    count, channels = like.shape[:2]
    shape = _bump(side, ball.norm).to(like)
    lies = torch.randint(2, (count, 1, 1, 1), generator=generator, device=like.device).bool()
    signs = 2 * torch.randint(2, (count, channels, 1, 1), generator=generator, device=like.device) - 1
    return torch.where(lies, shape.T, shape) * signs


@cache
def _bump(side: int, norm: Norm) -> Tensor:
    """Two rectangles of opposite sign, one above the other, each highest in its middle; float [side, side], norm 1.

    A rectangle is a sum of nested squares: the k-th around its middle adds (k + 1) to the power of minus 2 (l1: 4).
    """
    half = side // 2
    steepness, order = _STEEPNESS[norm], 2 if norm == "l2" else 1
    parts = [_rectangle(half, side, steepness), -_rectangle(side - half, side, steepness)]
    # Both rectangles weigh the same before they are put together, as published.
    bump = torch.cat([part / torch.linalg.vector_norm(part, order) for part in parts if part.numel()])
    whole: Tensor = bump / torch.linalg.vector_norm(bump, order)
    return whole


def _rectangle(height: int, width: int, steepness: int) -> Tensor:
    rows = (torch.arange(height) - height // 2).abs().unsqueeze(1)
    columns = (torch.arange(width) - width // 2).abs().unsqueeze(0)
    nested = max(height, width) // 2 + 1
    # From the outermost square inwards: the k-th covers every pixel at most k away from the middle.
    added = (torch.arange(nested, dtype=torch.float32) + 1).pow(-steepness)
    reaching = added.flip(0).cumsum(0).flip(0)
    return reaching[torch.maximum(rows, columns)]

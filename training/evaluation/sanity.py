"""Signs of attacks that fail for a bad reason (Carlini et al. 2019, arXiv 1902.06705; Athalye et al. 2018).

A model whose gradients mislead looks robust. Most checks show what a strong attack left to one of another kind that
should be weaker: where that one breaks some of it, the report says "gradient masking suspected". So a check costs
little where a model is easily broken by its gradients, and much only where it is not. Attacks of one kind and different
lengths each get all the images, since any attack breaks a few more from another random start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.report import SanityCheck
from training.attacks.apgd import APGD
from training.attacks.ball import Ball, largest_eps
from training.attacks.base import Attack, Best, Task, value
from training.attacks.criteria import misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, margin
from training.attacks.square import Square
from training.attacks.transfer import Transfer
from training.evaluation.examples import Examples
from training.evaluation.first_order import gradients_foretell
from training.evaluation.runner import Runner

EXAMPLES = 50
ENOUGH = 20  # with fewer images the slack of one hides everything
_SLACK = 1  # images: one may fall either way


def check_sanity(
    runner: Runner, examples: Examples, surrogate: Deployed | None, gradients: Literal["copy", "none"] | None
) -> tuple[SanityCheck, ...]:
    """Run the checks on ``EXAMPLES`` images that are right when clean; none where there are fewer than ``ENOUGH``.

    Args:
        surrogate: another model, to make images on.
        gradients: whose they are, as in the report. Those of a copy foretell what the copy does.
    """
    index = runner.sample("sanity", examples.clean, EXAMPLES)
    if len(index) < ENOUGH:
        return ()

    criterion, total = misclassified(runner.model.fold), len(index)

    def left(name: str, attack: Attack, among: Tensor, ball: Ball | None = None) -> Tensor:
        """Which of the examples ``among`` (int64 [M]) are still right; only what another ball breaks does not count."""
        if ball is None:
            raw = examples.check(runner, f"sanity {name}", attack, among, criterion)
        else:
            raw = replace(runner, ball=ball).attack(f"sanity {name}", attack, among, criterion)
        return among[~criterion(raw, runner.data.labels[among])]

    many = left("100 steps", APGD(cross_entropy, steps=100), index)
    few = left("10 steps", APGD(cross_entropy, steps=10), index)
    white_box = left("margin", APGD(margin, steps=100), many)
    noise = left("noise", Noise(draws=20), white_box)
    squares = left("squares", Square(queries=200), white_box)
    pixels = math.prod(runner.data.images.shape[1:])
    everything = Ball(runner.ball.norm, largest_eps(runner.ball.norm, pixels))
    large = left("large eps", APGD(cross_entropy, steps=100), index, everything)
    large = left("large eps, margin", APGD(margin, steps=100), large, everything)
    nothing = large[:0]
    checks = [
        _compare(
            "more steps help the attack",
            "10 steps of APGD-CE break no more than 100 steps do",
            ("100 steps", many),
            ("10 steps", few),
            total,
        ),
        _compare(
            "noise is weaker than gradients",
            "random points of the ball break nothing that APGD left",
            ("apgd", white_box),
            ("then noise", noise),
            total,
        ),
        _compare(
            "scores are weaker than gradients",
            "random squares break nothing that APGD left",
            ("apgd", white_box),
            ("then squares", squares),
            total,
        ),
        _compare(
            "a large eps leaves nothing",
            "in a ball that holds every image APGD drives accuracy to 0",
            ("apgd", large),
            ("nothing", nothing),
            total,
        ),
    ]
    if gradients is None and (foretold := gradients_foretell(runner, index, ENOUGH)) is not None:
        checks.append(foretold)
    if surrogate is not None:
        shown = left("transfer", Transfer(steps=100, surrogate=surrogate), white_box)
        checks.append(
            _compare(
                "transfer is weaker than white-box",
                "images made on another model break nothing that APGD left",
                ("apgd", white_box),
                ("then transfer", shown),
                total,
            )
        )
    return tuple(checks)


def _compare(
    name: str, expectation: str, stronger: tuple[str, Tensor], after: tuple[str, Tensor], total: int
) -> SanityCheck:
    """Passed where the stronger attack left at most one image more than the weaker one, of ``total``."""
    counts = {label: len(survivors) for label, survivors in (stronger, after)}
    return SanityCheck(
        name=name,
        expectation=expectation,
        passed=counts[stronger[0]] <= counts[after[0]] + _SLACK,
        figures={label: count / total for label, count in counts.items()},
    )


@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the ball, as far out as they get: no search at all."""

    name: ClassVar[str] = "noise"
    needs_gradient: ClassVar[bool] = False
    draws: int

    def __call__(self, task: Task) -> Tensor:
        model, images, labels, ball = task.model, task.images, task.labels, task.ball
        best = Best(images)
        index = torch.arange(len(images), device=images.device)
        loss = cross_entropy(model.fold)
        with frozen(model):
            for _ in range(self.draws):
                direction = ball.random_start(images, task.generator) - images
                found = ball.project(images, ball.ascend(images, direction, ball.eps))
                best.offer(index, found, value(model, found, labels, labels, loss, task.criterion))
        return best.images

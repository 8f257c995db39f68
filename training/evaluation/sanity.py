"""Signs of attacks that fail for a bad reason (Carlini et al. 2019, arXiv 1902.06705; Athalye et al. 2018).

A model whose gradients mislead looks robust. Each check compares two attacks on the same few images; where the
one that should be weaker wins, the report says "gradient masking suspected".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.report import SanityCheck
from training.attacks.apgd import APGD
from training.attacks.ball import Ball, largest_eps
from training.attacks.base import Attack, Best, value
from training.attacks.criteria import Criterion, misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, margin
from training.attacks.square import Square
from training.attacks.transfer import Transfer
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner

EXAMPLES = 50
ENOUGH = 20  # with fewer images the slack of one hides everything
_SLACK = 1  # images: one may fall either way


def check_sanity(runner: Runner, examples: Examples, surrogate: Deployed | None) -> tuple[SanityCheck, ...]:
    """Run the checks on ``EXAMPLES`` images that are right when clean; none where there are fewer than ``ENOUGH``."""
    index = runner.sample("sanity", examples.clean, EXAMPLES)
    if len(index) < ENOUGH:
        return ()

    criterion = misclassified(runner.model.fold)

    def left(name: str, attack: Attack, ball: Ball = runner.ball) -> Tensor:
        """Which of the images are still right, bool [M]."""
        raw = replace(runner, ball=ball).attack(f"sanity {name}", attack, index, criterion)
        return ~criterion(raw, runner.data.labels[index])

    few = left("10 steps", APGD(cross_entropy, steps=10))
    many = left("100 steps", APGD(cross_entropy, steps=100))
    white_box = many & left("margin", APGD(margin, steps=100))
    noise = left("noise", Noise(draws=20))
    squares = left("squares", Square(queries=200))
    pixels = math.prod(runner.data.images.shape[1:])
    everything = Ball(runner.ball.norm, largest_eps(runner.ball.norm, pixels))
    large = left("large eps", APGD(cross_entropy, steps=100), everything)
    large &= left("large eps, margin", APGD(margin, steps=100), everything)
    checks = [
        _compare(
            "more steps help the attack",
            "APGD-CE with 100 steps leaves no more accuracy than with 10",
            ("100 steps", many),
            ("10 steps", few),
        ),
        _compare(
            "noise is weaker than gradients",
            "random points of the ball leave more accuracy than APGD",
            ("apgd", white_box),
            ("noise", noise),
        ),
        _compare(
            "scores are weaker than gradients",
            "random squares leave more accuracy than APGD",
            ("apgd", white_box),
            ("squares", squares),
        ),
        _compare(
            "a large eps leaves nothing",
            "in a ball that holds every image APGD drives accuracy to 0",
            ("apgd", large),
            ("nothing", torch.zeros_like(large)),
        ),
    ]
    if surrogate is not None:
        shown = left("transfer", Transfer(steps=100, surrogate=surrogate))
        checks.append(
            _compare(
                "transfer is weaker than white-box",
                "images made on the pre-dummy weights leave more accuracy than APGD",
                ("apgd", white_box),
                ("transfer", shown),
            )
        )
    return tuple(checks)


def _compare(
    name: str, expectation: str, stronger: tuple[str, Tensor], weaker: tuple[str, Tensor]
) -> SanityCheck:
    """Passed where the stronger attack leaves at most one image more than the weaker one."""
    counts = {label: int(survivors.sum()) for label, survivors in (stronger, weaker)}
    return SanityCheck(
        name=name,
        expectation=expectation,
        passed=counts[stronger[0]] <= counts[weaker[0]] + _SLACK,
        figures={label: count / len(stronger[1]) for label, count in counts.items()},
    )


@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the ball, as far out as they get: no search at all."""

    name: ClassVar[str] = "noise"
    needs_gradient: ClassVar[bool] = False
    draws: int

    def __call__(
        self,
        model: Deployed,
        images: Tensor,
        labels: Tensor,
        ball: Ball,
        criterion: Criterion,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        best = Best(images)
        index = torch.arange(len(images), device=images.device)
        loss = cross_entropy(model.fold)
        with frozen(model):
            for _ in range(self.draws):
                direction = ball.random_start(images, generator) - images
                found = ball.project(images, ball.ascend(images, direction, ball.eps))
                best.offer(index, found, value(model, found, labels, labels, loss, criterion))
        return best.images

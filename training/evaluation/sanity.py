"""Signs of attacks that fail for a bad reason (Carlini et al. 2019, arXiv 1902.06705; Athalye et al. 2018).

A model whose gradients mislead looks robust. Each check compares two attacks on the same few images; where the
one that should be weaker wins, the report says "gradient masking suspected".
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.report import SanityCheck
from training.attacks.apgd import apgd
from training.attacks.ball import Ball, largest_eps
from training.attacks.base import Attack, Best, look
from training.attacks.criteria import Criterion, misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, margin
from training.attacks.square import square
from training.attacks.transfer import transfer
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

    def left(name: str, attack: Attack, ball: Ball | None = None) -> Tensor:
        return _survivors(runner, f"sanity {name}", attack, index, ball)

    ce, gap = cross_entropy(runner.model.fold), margin(runner.model.fold)
    few = left("10 steps", partial(apgd, loss=ce, steps=10))
    many = left("100 steps", partial(apgd, loss=ce, steps=100))
    white_box = many & left("margin", partial(apgd, loss=gap, steps=100))
    noise = left("noise", partial(_noise, draws=20))
    squares = left("squares", partial(square, queries=200))
    pixels = math.prod(runner.data.images.shape[1:])
    everything = Ball(runner.ball.norm, largest_eps(runner.ball.norm, pixels))
    large = left("large eps", partial(apgd, loss=ce, steps=100), everything)
    large &= left("large eps, margin", partial(apgd, loss=gap, steps=100), everything)
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
        shown = left("transfer", partial(transfer, surrogate=surrogate, steps=100))
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


def _survivors(runner: Runner, name: str, attack: Attack, index: Tensor, ball: Ball | None) -> Tensor:
    """Which of the examples ``index`` are still right, bool [len(index)]."""
    criterion = misclassified(runner.model.fold)
    fooled = torch.zeros(len(runner.data), dtype=torch.bool, device=index.device)

    @torch.no_grad()
    def saw(batch: Tensor, found: Tensor) -> None:
        fooled[batch] = criterion(runner.model.classifier(found), runner.data.labels[batch])

    runner.attack(name, attack, index, criterion, saw, ball=ball)
    return ~fooled[index]


def _noise(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Random points of the ball, as far out as they get: no search at all."""
    best = Best(images)
    index = torch.arange(len(images), device=images.device)
    loss = cross_entropy(model.fold)
    with frozen(model):
        for _ in range(draws):
            direction = ball.random_start(images, generator) - images
            found = ball.project(images, ball.ascend(images, direction, ball.eps))
            best.offer(index, found, look(model, found, labels, labels, loss, criterion, gradient=False))
    return best.images

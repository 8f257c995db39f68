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
from training.attacks.criteria import Criterion, misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy
from training.attacks.search import Attack, Best, look
from training.attacks.square import square
from training.attacks.transfer import transfer
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner

EXAMPLES = 50


def check_sanity(runner: Runner, examples: Examples, surrogate: Deployed | None) -> tuple[SanityCheck, ...]:
    """Run the checks on at most ``EXAMPLES`` images that are right when clean; none where all are wrong."""
    index = runner.sample("sanity", examples.clean, EXAMPLES)
    if len(index) == 0:
        return ()
    slack = 1 / len(index)  # one image may fall either way

    def accuracy(name: str, attack: Attack, ball: Ball | None = None) -> float:
        return _accuracy(runner, f"sanity {name}", attack, index, ball)

    loss = cross_entropy(runner.model.fold)
    few = accuracy("10 steps", partial(apgd, loss=loss, steps=10))
    many = accuracy("100 steps", partial(apgd, loss=loss, steps=100))
    noise = accuracy("noise", partial(_noise, draws=20))
    squares = accuracy("squares", partial(square, queries=200))
    pixels = math.prod(runner.data.images.shape[1:])
    everything = Ball(runner.ball.norm, largest_eps(runner.ball.norm, pixels))
    large = accuracy("large eps", partial(apgd, loss=loss, steps=100), everything)
    checks = [
        SanityCheck(
            name="more steps help the attack",
            expectation="APGD-CE with 100 steps leaves no more accuracy than with 10",
            passed=many <= few + slack,
            figures={"10 steps": few, "100 steps": many},
        ),
        SanityCheck(
            name="noise is weaker than gradients",
            expectation="random points of the ball leave more accuracy than APGD-CE",
            passed=noise >= many - slack,
            figures={"noise": noise, "apgd-ce": many},
        ),
        SanityCheck(
            name="scores are weaker than gradients",
            expectation="random squares leave more accuracy than APGD-CE",
            passed=squares >= many - slack,
            figures={"squares": squares, "apgd-ce": many},
        ),
        SanityCheck(
            name="a large eps leaves nothing",
            expectation="in a ball that holds every image APGD-CE drives accuracy to 0",
            passed=large <= slack,
            figures={"eps": everything.eps, "apgd-ce": large},
        ),
    ]
    if surrogate is not None:
        shown = accuracy("transfer", partial(transfer, surrogate=surrogate, steps=100))
        checks.append(
            SanityCheck(
                name="transfer is weaker than white-box",
                expectation="images made on the pre-dummy weights leave more accuracy than APGD-CE",
                passed=shown >= many - slack,
                figures={"transfer": shown, "apgd-ce": many},
            )
        )
    return tuple(checks)


def _accuracy(runner: Runner, name: str, attack: Attack, index: Tensor, ball: Ball | None) -> float:
    criterion = misclassified(runner.model.fold)
    fooled = torch.zeros(len(runner.data), dtype=torch.bool, device=index.device)

    @torch.no_grad()
    def saw(batch: Tensor, found: Tensor) -> None:
        fooled[batch] = criterion(runner.model.classifier(found), runner.data.labels[batch])

    runner.attack(name, attack, index, criterion, saw, ball=ball)
    return 1 - int(fooled.sum()) / len(index)


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

"""Whether gradients foretell what small steps do: where they do not, attacks that follow them search in the dark.

A model may hide behind fine ripples (shattered gradients: Athalye et al. 2018, arXiv 1802.00420): its gradients are
large, and of the ripples alone. Attacks with gradients then fail together, and no weaker one need succeed. So this
check runs no attack: it compares what the gradient promises of a short step with what comes of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.report import SanityCheck
from training.attacks.base import nonzero, value, value_and_grad
from training.attacks.criteria import misclassified
from training.attacks.frozen import frozen
from training.attacks.losses import margin
from training.batches import to_pixels
from training.evaluation.runner import Runner
from training.randomness import torch_seeded

_STEP = 0.1  # of eps
# On networks that hide nothing, robust or not, at most 8 % of the images keep less than a tenth of the promise, and
# those only where an l1 step has five pixels (results/first-order.md).
_KEPT = 0.1
_IMAGES = 0.75
_ROUNDING = 100 * torch.finfo(torch.float32).eps  # of the largest logit; a promise below that cannot be seen


def gradients_foretell(runner: Runner, index: Tensor, fewest: int) -> SanityCheck | None:
    """Take a step of eps / 10 along the gradient of the margin, from the clean images of the examples ``index``.

    Returns None where fewer than ``fewest`` promises are large enough to be seen: eps is tiny (in images of 8 bits, a
    few levels), or the logits are huge.
    """
    model, ball = runner.model, runner.ball
    loss, criterion = margin(model.fold), misclassified(model.fold)

    def work(start: int, batch: Tensor) -> Tensor:
        images, labels = to_pixels(runner.data.images[batch]), runner.data.labels[batch]
        with frozen(model), torch_seeded(labels.device, runner.seed, "first order", start):
            before, gradient = value_and_grad(model, images, labels, labels, loss, criterion)
            moved = ball.project(images, ball.ascend(images, gradient, _STEP * ball.eps))
            after = value(model, moved, labels, labels, loss, criterion)
            with torch.no_grad():
                smallest = _ROUNDING * model(images).abs().amax(dim=1)
        promised = ((moved - images) * gradient).flatten(1).sum(dim=1)
        # No gradient at all promises nothing, and leads nowhere.
        judged = (promised > smallest) | ~nonzero(gradient)
        kept = (promised > 0) & (after.loss - before.loss >= _KEPT * promised)
        return torch.stack([judged, judged & kept]).cpu()

    judged, kept = torch.cat(runner.batches.over(index, work), dim=1).sum(dim=1).tolist()
    if judged < fewest:
        return None
    return SanityCheck(
        name="gradients foretell small steps",
        expectation="a step of eps / 10 raises the margin by at least a tenth of what its gradient promises",
        passed=kept >= _IMAGES * judged,
        figures={"images where it does": kept / judged},
    )

"""Targeted APGD at every likely wrong class, and at its dummy: a dummy win counts as its class when deployed."""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import pair_columns
from training.attacks.apgd import apgd
from training.attacks.ball import Ball
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen
from training.attacks.losses import Loss

MAX_TARGETS = 9  # as in AutoAttack: the classes that score best on the clean image


def apgd_targeted(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,
    *,
    loss: Loss,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """APGD with a targeted loss at the best ``MAX_TARGETS`` other classes t, each as t and as t + C.

    Returns a success for every example that has one, else what the last target led to; an example that succeeds
    is not attacked again.
    """
    with frozen(model), torch.no_grad():
        logits = model(images)
    classes = logits.shape[1]
    ranked = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argsort(dim=1, descending=True)
    best = images.clone()
    open_ = torch.arange(len(images), device=images.device)
    for rank in range(min(MAX_TARGETS, classes - 1)):
        for columns in pair_columns(ranked[:, rank], classes, model.fold):
            if len(open_) == 0:
                return best
            best[open_] = found = apgd(
                model,
                images[open_],
                labels[open_],
                ball,
                criterion,
                loss=loss,
                steps=steps,
                generator=generator,
                targets=columns[open_],
            )
            with frozen(model), torch.no_grad():
                open_ = open_[~criterion(model.classifier(found), labels[open_])]
    return best

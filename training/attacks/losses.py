"""What attacks maximise: losses on raw logits that know how the deployed function folds them.

Every loss maps raw logits float [N, 2C] (or [N, C] for a model without dummies), labels int64 [N] and targets
int64 [N] (columns of the raw logits; only targeted losses look at them) to [N]. A higher value is closer to a
wrong decision of the deployed function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.pairs import fold_logits, pair_weighted_logit, without_pair
from ducat_serve.spec import Fold, Switch
from ducat_serve.switch import centred, standardised
from training.attacks import tower_losses

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LossOfFold = Callable[[Fold], Loss]


def climbable_logits(raw: Tensor, fold: Fold) -> Tensor:
    """The folded logits [N, C]; of a two-tower model a soft copy of them that has a gradient everywhere."""
    return tower_losses.soft_logits(raw, fold) if isinstance(fold, Switch) else fold_logits(raw, fold)


def cross_entropy(fold: Fold) -> Loss:
    """Cross entropy of the folded logits; for the lse-fold this is ``-log P_y``."""

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        return F.cross_entropy(climbable_logits(raw, fold), labels, reduction="none")

    return loss


def lse_cross_entropy(_fold: Fold) -> Loss:
    """Cross entropy of the lse-fold, through whichever fold the model is deployed."""
    return cross_entropy("lse")


def dlr(fold: Fold) -> Loss:
    """Difference of logits ratio of the folded logits (Croce and Hein 2020, arXiv 2003.01690, equation 5).

    Invariant to shifting and scaling the logits, so it sees through overconfident models. Needs 3 classes.
    """

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        logits = climbable_logits(raw, fold)
        ordered = logits.sort(dim=1, descending=True).values
        own = _pick(logits, labels)
        other = torch.where(own == ordered[:, 0], ordered[:, 1], ordered[:, 0])
        return -(own - other) / (ordered[:, 0] - ordered[:, 2] + 1e-12)

    return loss


def margin(fold: Fold) -> Loss:
    """Best other folded logit minus the own one; positive exactly where the decision is wrong.

    Of a two-tower model it is that of the soft copy, whose sign only follows the decision.
    """

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        logits = climbable_logits(raw, fold)
        others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
        return others.amax(dim=1) - _pick(logits, labels)

    return loss


def pair_margin(fold: Fold, temperature: float) -> Loss:
    """``max_{j not in pair} z_j - [w z_y + (1-w) z_{y+C}]``, ``w = softmax(T (z_y, z_{y+C}))_y`` detached.

    In the spirit of DAWA (arXiv 2603.29182), whose exact loss is not public to us: it pushes both logits of
    the pair down, so mass cannot hide on the dummy. T = 0 weighs both alike, a large T the larger one.
    A model without dummies has only ``z_y``, and this is the plain margin. Of a two-tower model it is the margin of the
    robust tower, without which nothing is won.
    """

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        if isinstance(fold, Switch):
            return tower_losses.robust_margin(raw, labels)
        if fold == "none":
            return margin("none")(raw, labels, _targets)
        others = without_pair(raw, labels).amax(dim=1)
        return others - pair_weighted_logit(raw, labels, temperature)

    return loss


def standardised_margin(fold: Fold) -> Loss:
    """The margin of standardised logits, which no attack can raise by making all logits small."""
    if isinstance(fold, Switch):
        return lambda raw, labels, _targets: tower_losses.robust_margin(raw, labels)
    return lambda raw, labels, targets: margin("none")(standardised(fold_logits(raw, fold)), labels, targets)


def label_logit(fold: Fold) -> Loss:
    """The mean of all folded logits minus the label's: small logits leave a model unsure that is sure by their size."""

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        return -_pick(centred(climbable_logits(raw, fold)), labels)

    return loss


def mapped_margin(fold: Fold) -> Loss:
    """Of a two-tower model, the margin that its switch looks at; of others the margin."""
    if not isinstance(fold, Switch):
        return margin(fold)

    def loss(raw: Tensor, labels: Tensor, _targets: Tensor) -> Tensor:
        return tower_losses.mapped_margin(raw, labels, fold)

    return loss


def targeted_margin(fold: Fold) -> Loss:
    """One raw logit, of a class t or its dummy t + C, minus the own folded one: for fewer than 4 classes.

    Of a two-tower model both towers' margins together, or for t + C the robust tower's (`tower_losses`).
    """
    if isinstance(fold, Switch):
        return tower_losses.towards_target

    def loss(raw: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        return _pick(raw, targets) - _pick(fold_logits(raw, fold), labels)

    return loss


def targeted_dlr(fold: Fold) -> Loss:
    """Targeted DLR (Croce and Hein 2020, equation 6) towards one raw logit: a class t or its dummy t + C.

    Of a two-tower model it is `targeted_margin`.
    """
    if isinstance(fold, Switch):
        return tower_losses.towards_target

    def loss(raw: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        logits = climbable_logits(raw, fold)
        ordered = logits.sort(dim=1, descending=True).values
        scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, min(3, logits.shape[1] - 1)]) / 2
        return (_pick(raw, targets) - _pick(logits, labels)) / (scale + 1e-12)

    return loss


def _pick(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(1)).squeeze(1)

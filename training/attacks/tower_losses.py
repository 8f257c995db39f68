"""What attacks climb on a two-tower model, whose own fold has no useful gradient.

The standard tower's class enters the fold as a one-hot vector, through which nothing can be differentiated, and the
map makes the robust tower so sure that its gradient vanishes. So attacks climb a soft copy, or the margins of both
towers as they are; whether an image fools the model is judged on the real fold all the same.

Every loss maps raw logits float [N, 2C], labels int64 [N] and targets int64 [N] to [N], as in `losses`. Logits are
standardised first, so that neither tower outweighs the other by its scale alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ducat_serve.pairs import split_pairs
from ducat_serve.spec import Fold, Switch
from ducat_serve.switch import mapped_log_posterior, standardised

_SOFT_LEAD = 6.0  # how far the best of C standardised logits can lead the mean, after they are made soft
_FLIPPED = 0.1  # standard deviations by which the standard tower must say the target; more is wasted


def soft_logits(raw: Tensor, switch: Switch) -> Tensor:
    """The fold with a soft one-hot vector and an unmapped robust tower: log probabilities [N, C]."""
    original, dummy = (_soft(logits) for logits in split_pairs(raw))
    a = 1 / (1 + switch.threshold)
    return torch.logaddexp(original + math.log(1 - a), dummy + math.log(a))


def _soft(logits: Tensor) -> Tensor:
    """``log softmax`` of standardised logits, on a scale at which no probability vanishes."""
    farthest = math.sqrt(logits.shape[-1] - 1)  # that one of C standardised values can get
    return (_SOFT_LEAD / farthest * standardised(logits)).log_softmax(dim=-1)


def towards_target(raw: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Both towers towards a class t < C, or for t + C the robust tower alone.

    The standard tower has to say t and no more. The robust tower need not: it is enough that it is unsure between t and
    the label, so its margin counts to the end.
    """
    original, dummy = (standardised(logits) for logits in split_pairs(raw))
    classes = original.shape[1]
    target = (targets % classes).unsqueeze(1)
    robust = (dummy.gather(1, target) - dummy.gather(1, labels.unsqueeze(1))).squeeze(1)
    rivals = original.scatter(1, target, -torch.inf).amax(dim=1)
    standard = (original.gather(1, target).squeeze(1) - rivals).clamp(max=_FLIPPED)
    return robust + torch.where(targets < classes, standard, torch.zeros_like(standard))


def robust_margin(raw: Tensor, labels: Tensor) -> Tensor:
    """Best other class of the robust tower minus the label, of standardised logits."""
    return _margin(standardised(split_pairs(raw)[1]), labels)


def mapped_margin(raw: Tensor, labels: Tensor, switch: Switch) -> Tensor:
    """The same of the robust tower's mapped log probabilities: what the switch looks at, in the log."""
    return _margin(mapped_log_posterior(split_pairs(raw)[1], switch), labels)


def mapped_margin_of(switch: Switch) -> Callable[[Fold], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """`mapped_margin` as a loss on the C logits of a robust tower alone, whose own fold does not know the switch."""

    def mapped_margin(_fold: Fold) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda raw, labels, _targets: _margin(mapped_log_posterior(raw, switch), labels)

    return mapped_margin


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    index = labels.unsqueeze(1)
    return logits.scatter(1, index, -torch.inf).amax(dim=1) - logits.gather(1, index).squeeze(1)

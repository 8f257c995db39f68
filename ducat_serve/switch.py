"""The fold of a two-tower model: recovery by a switch. All of its mathematics is here and nowhere else.

The original logits ``o`` come from an accurate network, the standard tower, and the dummy logits ``d`` from a robust
one. After MixedNUTS (Bai et al. 2024, arXiv 2402.02263), with the robust tower's logits mapped by

    u = GELU((d - mean(d)) / divisor + shift),   M(d) = scale * |u|^power * sign(u),   q = softmax(M(d))

the answer is the standard tower's class ``k = argmax o`` where ``max q - q_k < threshold``, else ``argmax q``. The
C logits are ``log((1 - a) onehot(k) + a q)`` with ``a = 1 / (1 + threshold)``: their argmax is that answer, since
``(1 - a) / a = threshold``. MixedNUTS divides by each image's own standard deviation (``divisor`` None). Divided
by one number for all images, large logits stay large, and a network's logits are larger where it holds under attack.

Shapes: ``original`` and ``dummy`` are float [N, C], ``labels`` int64 [N] with values in [0, C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.spec import Switch

_LOWEST_AT, _LOWEST = -0.7517916, -0.1699712  # where GELU is least, and what it is there


def standardised(logits: Tensor) -> Tensor:
    """Logits [N, C] with mean 0 and variance 1 in each row (LayerNorm without weights)."""
    return F.layer_norm(logits, logits.shape[-1:])


def mapped_log_posterior(dummy: Tensor, switch: Switch) -> Tensor:
    """``log q``, [N, C]: what the robust tower's logits say after the map."""
    return _powered(F.gelu(normalised(dummy, switch.divisor) + switch.shift), switch).log_softmax(dim=-1)


def normalised(logits: Tensor, divisor: float | None) -> Tensor:
    """Logits [N, C] less the mean of their row, over ``divisor``, or over their own standard deviation for None."""
    return standardised(logits) if divisor is None else centred(logits) / divisor


def centred(logits: Tensor) -> Tensor:
    """Logits [N, C] with mean 0 in each row."""
    return logits - logits.mean(dim=-1, keepdim=True)


def _powered(u: Tensor, switch: Switch) -> Tensor:
    return switch.scale * u.abs().pow(switch.power) * u.sign()


def switch_logits(original: Tensor, dummy: Tensor, switch: Switch) -> Tensor:
    """``log((1 - a) onehot(argmax o) + a q)``, [N, C]: log probabilities whose argmax is the answer."""
    return _with_chosen(original, mapped_log_posterior(dummy, switch), switch)


def _with_chosen(original: Tensor, log_q: Tensor, switch: Switch) -> Tensor:
    a = 1 / (1 + switch.threshold)
    robust = log_q + math.log(a)
    classes = torch.arange(original.shape[-1], device=original.device)
    chosen = classes == original.argmax(dim=-1, keepdim=True)
    # In the log where the standard tower says nothing: a mapped probability may be too small for a float.
    return torch.where(chosen, (robust.exp() + (1 - a)).log(), robust)


def overruled(original: Tensor, dummy: Tensor, switch: Switch) -> Tensor:
    """Whether the robust tower's class is the answer instead of the standard tower's, bool [N]."""
    return switch_logits(original, dummy, switch).argmax(dim=-1) != original.argmax(dim=-1)


def certainty(dummy: Tensor, labels: Tensor, switch: Switch) -> Tensor:
    """The mapped margin of the label, ``q_y - max_{j != y} q_j``, [N].

    Where it is at least the threshold the answer is the label, whatever the standard tower says: if that says y, y
    leads; if it says k, then ``max q - q_k >= q_y - max_{j != y} q_j >= threshold``, and the robust tower's y wins.
    """
    q = mapped_log_posterior(dummy, switch).exp()
    index = labels.unsqueeze(-1)
    others = q.scatter(-1, index, -torch.inf).amax(dim=-1)
    return q.gather(-1, index).squeeze(-1) - others


def switch_bounds(original: Tensor, dummy: Tensor, switch: Switch, rounding: float) -> tuple[Tensor, Tensor]:
    """The least and the largest `switch_logits`, [N, C] each, where the robust tower's logits are off by ``rounding``.

    A sharp map makes much of little: what a file may differ by is not in proportion to its logits. The standard
    tower's class is taken as it is.
    """
    v = normalised(dummy, switch.divisor)
    if switch.divisor is None:
        deviation = dummy.std(dim=-1, correction=0, keepdim=True)
        # The mean moves by ``rounding`` at most, and so does the deviation. Below that, the logits are all rounding.
        moved = rounding * (2 + v.abs()) / (deviation - rounding).clamp_min(0)
        farthest = math.sqrt(dummy.shape[-1] - 1)  # that a standardised logit can get
    else:
        moved = torch.full_like(v, 2 * rounding / switch.divisor)
        farthest = math.inf
    ends = F.gelu(torch.stack([v - moved, v + moved]).clamp(-farthest, farthest) + switch.shift)
    # GELU falls on one side of that, and rises on the other.
    lowest = (v + switch.shift - _LOWEST_AT).abs() <= moved
    low = _powered(torch.where(lowest, _LOWEST, ends.amin(dim=0)), switch)
    high = _powered(ends.amax(dim=0), switch)
    return (
        _with_chosen(original, _log_posterior_of_one(low, high), switch),
        _with_chosen(original, _log_posterior_of_one(high, low), switch),
    )


def _log_posterior_of_one(own: Tensor, others: Tensor) -> Tensor:
    """The log posterior of each class, [N, C], by its own logit in ``own`` and those of all others in ``others``."""
    is_own = torch.eye(own.shape[-1], dtype=torch.bool, device=own.device)
    each = torch.where(is_own, own.unsqueeze(-2), others.unsqueeze(-2))
    return each.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)

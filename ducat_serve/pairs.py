"""The pair algebra of dummy classes. All of it is here and nowhere else.

A DUCAT network has 2C logits ``z``: column ``i < C`` is original class ``i`` and column ``i + C`` its dummy
twin. Together they are the pair of ``i``. The paper (arXiv 2410.12671, section 4) reads a prediction of
``y + C`` as ``y``; the folds below turn that rule into C logits that can be attacked, exported and served.

Shapes: ``logits`` is float [N, 2C] (any float dtype), ``labels`` int64 [N] with values in [0, C).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.spec import Fold, Switch
from ducat_serve.switch import overruled, switch_logits

NEW_DUMMY_GAP = 4.0  # a new dummy has sigmoid(-4) = 2 % of its pair's mass


def split_pairs(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Split 2C logits into originals and dummies, each [N, C]. Raises ValueError for an odd width."""
    if logits.shape[-1] % 2:
        raise ValueError(f"2C logits have an even number of columns, not {logits.shape[-1]}")
    original, dummy = logits.chunk(2, dim=-1)
    return original, dummy


def pair_columns(labels: Tensor, num_classes: int, fold: Fold) -> tuple[Tensor, ...]:
    """The raw columns that count as ``labels`` when deployed: ``y`` and ``y + C``, or ``y`` without dummies."""
    return (labels,) if fold == "none" else (labels, labels + num_classes)


def fold_logits(logits: Tensor, fold: Fold) -> Tensor:
    """Fold 2C logits to C: ``max(z_i, z_{i+C})`` or ``log(exp z_i + exp z_{i+C})``; "none" changes nothing.

    The fold of a two-tower model is in `ducat_serve.switch`. Raises ValueError for an unknown one.
    """
    if fold == "none":
        return logits
    original, dummy = split_pairs(logits)
    if isinstance(fold, Switch):
        return switch_logits(original, dummy, fold)
    larger = torch.maximum(original, dummy)
    if fold == "max":
        return larger
    if fold != "lse":
        raise ValueError(f"the fold {fold!r} is none of none, max and lse")
    # Not torch.logaddexp: it is exported as Log(Exp + Exp), which overflows beyond logits of 88.
    return larger + F.softplus(-(original - dummy).abs())


def recover(logits: Tensor) -> Tensor:
    """The paper's run-time rule: argmax over 2C, dummy ``y + C`` read as ``y``. Returns int64 [N]."""
    split_pairs(logits)
    return logits.argmax(dim=-1) % (logits.shape[-1] // 2)


def dummy_mass(logits: Tensor) -> Tensor:
    """Total softmax probability on the dummies, [N]."""
    return logits.softmax(dim=-1).chunk(2, dim=-1)[1].sum(dim=-1)


def mass_on_dummies(logits: Tensor, fold: Fold) -> Tensor:
    """How much of an answer came from the dummies, [N] in [0, 1], as it is exported: 0 where there are none.

    Of a two-tower model all of it or nothing: 1 where the robust tower overruled the other one.
    """
    if fold == "none":
        return torch.zeros_like(logits[:, 0])
    if isinstance(fold, Switch):
        return overruled(*split_pairs(logits), fold).to(logits.dtype)
    return dummy_mass(logits)


def dummy_mass_log_odds(logits: Tensor) -> Tensor:
    """``log(m / (1 - m))`` of the dummy mass m, [N]: the same order, but it does not saturate."""
    original, dummy = split_pairs(logits)
    return dummy.logsumexp(dim=-1) - original.logsumexp(dim=-1)


def dummy_share(logits: Tensor, labels: Tensor) -> Tensor:
    """``d_y = p_{y+C} / P_y``: how much of the label's pair sits on the dummy, [N]."""
    return torch.sigmoid(_split_logit(logits, labels))


def folded_log_posterior(logits: Tensor) -> Tensor:
    """``log P_i`` with ``P_i = p_i + p_{i+C}``, [N, C]: the log-softmax of the lse-fold."""
    return fold_logits(logits, "lse").log_softmax(dim=-1)


def pair_cross_entropy(
    logits: Tensor, labels: Tensor, dummy_weight: float | Tensor, split_weight: float = 1.0
) -> Tensor:
    """Folded cross entropy plus ``split_weight`` times the split's binary cross entropy, [N].

    For a pair label with weight ``a = 1 - dummy_weight`` on ``y`` and ``b = dummy_weight`` on ``y + C``:

        -log P_y  +  split_weight * ( -a log(1 - d_y) - b log d_y )

    With ``split_weight = 1`` this equals the soft-label cross entropy over 2C logits (the paper's loss);
    with 0 it is the cross entropy of the folded posterior. ``dummy_weight`` may be a tensor [N].
    """
    folded = F.nll_loss(folded_log_posterior(logits), labels, reduction="none")
    if split_weight == 0:
        return folded
    split = _split_logit(logits, labels)
    # log(1 - d) = logsigmoid(-split) and log d = logsigmoid(split); exact where d underflows.
    cross_entropy = -(1 - dummy_weight) * F.logsigmoid(-split) - dummy_weight * F.logsigmoid(split)
    return folded + split_weight * cross_entropy


def _split_logit(logits: Tensor, labels: Tensor) -> Tensor:
    original, dummy = split_pairs(logits)
    index = labels.unsqueeze(-1)
    return (dummy.gather(-1, index) - original.gather(-1, index)).squeeze(-1)


def widen_head(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Give a linear head [C, features] a dummy twin of every class, [2C, features]; its decisions stay the same.

    A twin computes its class's logit less ``NEW_DUMMY_GAP``: the max-fold gives the logits that were, the lse-fold
    the posterior that was.
    """
    return torch.cat([weight, weight]), torch.cat([bias, bias - NEW_DUMMY_GAP])


def without_pair(logits: Tensor, labels: Tensor) -> Tensor:
    """2C logits with the label's pair at minus infinity, [N, 2C]."""
    own, dummy = labels.unsqueeze(-1), labels.unsqueeze(-1) + logits.shape[-1] // 2
    return logits.scatter(-1, own, -torch.inf).scatter(-1, dummy, -torch.inf)


def pair_weighted_logit(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``w z_y + (1-w) z_{y+C}`` with ``w = softmax(T (z_y, z_{y+C}))_y``, no gradient through w, [N]."""
    original, dummy = split_pairs(logits)
    index = labels.unsqueeze(-1)
    pair = torch.cat([original.gather(-1, index), dummy.gather(-1, index)], dim=-1)
    weight = (temperature * pair.detach()).softmax(dim=-1)
    return (weight * pair).sum(dim=-1)

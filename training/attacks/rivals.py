"""Several searches for the same image: which of them go on.

Most of what APGD gains it gains early, so a search that is behind the others after a fifth of its steps rarely wins.
Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) gives the steps to those that are ahead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the steps; but for the first they are where APGD first shortens its steps.
_HALVINGS = (0.1, 0.22, 0.41, 0.57)


def halvings(steps: int) -> list[int]:
    """The steps after which the worse half of the rivals stops."""
    # Rounded first, as APGD's checkpoints are.
    return [math.ceil(round(place * steps, 9)) for place in _HALVINGS]


def beaten(success: Tensor, rivals: Tensor | None) -> Tensor:
    """Which searches are over, bool [N]: they succeeded, or one of their rivals did.

    Args:
        success: bool [N].
        rivals: int64 [N], not negative; searches of one number are rivals. None: there are no rivals.
    """
    if rivals is None or not bool(success.any()):
        return success
    over = torch.zeros(int(rivals.max()) + 1, dtype=torch.bool, device=success.device)
    over[rivals[success]] = True
    return over[rivals]


def better_half(rivals: Tensor, loss: Tensor) -> Tensor:
    """Which searches go on, bool [M]: of each number in ``rivals`` (int64 [M]) the half of the highest ``loss`` [M].

    Half of an odd number is rounded up, so that one always goes on.
    """
    order = loss.argsort(descending=True, stable=True)
    order = order[rivals[order].argsort(stable=True)]
    count = torch.unique_consecutive(rivals[order], return_counts=True)[1]
    first = (count.cumsum(0) - count).repeat_interleave(count)
    place = torch.arange(len(order), device=order.device) - first
    goes_on = torch.empty_like(place, dtype=torch.bool)
    goes_on[order] = 2 * place < count.repeat_interleave(count)
    return goes_on

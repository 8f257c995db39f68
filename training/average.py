"""Exponential moving average of the weights (as in Rebuffi et al. 2021, arXiv 2103.01946, section 4.2).

Without a warm-up an average of many steps is for long mostly the fresh weights that the run began with. With one, the
decay after t updates is ``min(decay, (1 + t) / (10 + t))``, as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ducat_serve.deployed import Classifier

_Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """An averaged copy of a classifier, BatchNorm statistics included."""

    def __init__(self, classifier: Classifier, decay: float, *, warmup: bool = False) -> None:
        average = _with_warmup(decay) if warmup else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(classifier, multi_avg_fn=average, use_buffers=True)

    @property
    def classifier(self) -> Classifier:
        module = self._averaged.module
        assert isinstance(module, Classifier)
        return module

    def update(self, classifier: Classifier) -> None:
        """After each update of the weights; the first one copies them."""
        self._averaged.update_parameters(classifier)

    def state_dict(self) -> dict[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)


def warm_decay(decay: float, updates: int) -> float:
    """The decay of an update that ``updates`` others came before."""
    return min(decay, (1 + updates) / (10 + updates))


def _with_warmup(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    # The count of updates is a buffer of AveragedModel, and so a part of the state that a run is resumed from.
    def average(averaged: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        decayed = get_ema_multi_avg_fn(warm_decay(decay, int(updates)))  # type: ignore[no-untyped-call]
        decayed(averaged, current, updates)

    return average

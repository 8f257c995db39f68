"""Exponential moving average of the weights (as in Rebuffi et al. 2021, arXiv 2103.01946, section 4.2).

Without a warm-up an average of many steps is for long mostly the fresh weights that the run began with. With one, the
decay after t updates is ``min(decay, (1 + t) / (10 + t))``, as in TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ducat_serve.deployed import Classifier

_Tensors = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """An averaged copy of a classifier, BatchNorm statistics included."""

    def __init__(self, classifier: Classifier, decay: float, *, warmup: bool = False) -> None:
        self._decay = decay
        average = self._warm_average if warmup else get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(classifier, multi_avg_fn=average, use_buffers=True)

    @property
    def classifier(self) -> Classifier:
        module = self._averaged.module
        assert isinstance(module, Classifier)
        return module

    def update(self, classifier: Classifier) -> None:
        """After each update of the weights; the first one copies them."""
        self._averaged.update_parameters(classifier)

    def _warm_average(self, averaged: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        # The count of updates is a buffer of AveragedModel, and so a part of the state that a run is resumed from. It
        # is on the CPU. ``updates`` is a copy of it beside the weights: on a GPU, reading that waits for the step.
        decay = warm_decay(self._decay, int(self._averaged.n_averaged))
        get_ema_multi_avg_fn(decay)(averaged, current, updates)  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, Any]:
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.load_state_dict(state)


def warm_decay(decay: float, updates: int) -> float:
    """The decay of an update that ``updates`` others came before."""
    return min(decay, (1 + updates) / (10 + updates))

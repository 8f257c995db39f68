"""Exponential moving average of the weights (as in Rebuffi et al. 2021, arXiv 2103.01946, section 4.2)."""

from __future__ import annotations

from typing import Any

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ducat_serve.deployed import Classifier


class WeightAverage:
    """An averaged copy of a classifier, BatchNorm statistics included."""

    def __init__(self, classifier: Classifier, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
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

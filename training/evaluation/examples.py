"""What is known of every example: right when clean, still right, and how a detector scores its images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold
from training.attacks.criteria import misclassified, right
from training.evaluation.detectors import Detector, detectors
from training.evaluation.runner import Runner


@dataclass
class Examples:
    """One row per example; scores by the name of their detector."""

    fold: Fold
    labels: Tensor
    detectors: list[Detector]
    clean: Tensor  # bool [N]: right on the clean image
    right: Tensor  # bool [N]: right so far
    clean_scores: dict[str, Tensor]
    fooling_scores: dict[str, Tensor]  # of an image that fools the model; nan while there is none
    undecided: int  # clean images with NaN logits

    @classmethod
    def of(cls, runner: Runner) -> Examples:
        """What the clean images say."""
        raw, fold = runner.clean_logits, runner.model.fold
        clean = right(fold_logits(raw, fold), runner.data.labels)
        known = detectors(fold)
        scores: dict[str, Tensor] = {detector.name: detector.score(raw) for detector in known}
        return cls(
            fold=fold,
            labels=runner.data.labels,
            detectors=known,
            clean=clean,
            right=clean.clone(),
            clean_scores=scores,
            fooling_scores={name: torch.full_like(v, torch.nan) for name, v in scores.items()},
            undecided=int(raw.isnan().any(dim=1).sum()),
        )

    def record(self, index: Tensor, raw: Tensor) -> None:
        """Take in the raw logits of the images that an attack found for the examples ``index``."""
        fooled = misclassified(self.fold)(raw, self.labels[index])
        self.right[index] &= ~fooled
        for detector in self.detectors:
            self.fooling_scores[detector.name][index[fooled]] = detector.score(raw[fooled])

"""What is known of every example: right when clean, still right, and how suspicious its images look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import fold_logits
from ducat_serve.report import DummyMass
from training.attacks.criteria import misclassified, right
from training.evaluation.detectors import Score, scores
from training.evaluation.runner import Runner

ADAPTIVE_EXAMPLES = 500


@dataclass
class Examples:
    """One row per example; suspicions by the name of their score."""

    model: Deployed
    labels: Tensor
    scores: list[Score]
    clean: Tensor  # bool [N]: right on the clean image
    right: Tensor  # bool [N]: right so far
    clean_suspicion: dict[str, Tensor]
    fooling_suspicion: dict[str, Tensor]  # of an image that fools the model; nan while there is none
    undecided: int  # clean images with NaN logits

    @classmethod
    def of(cls, runner: Runner) -> Examples:
        """Look at the clean images."""
        raw = runner.raw_logits()
        clean = right(fold_logits(raw, runner.model.fold), runner.data.labels)
        known = scores(runner.model.fold)
        suspicion: dict[str, Tensor] = {score.name: score.suspicion(raw) for score in known}
        return cls(
            model=runner.model,
            labels=runner.data.labels,
            scores=known,
            clean=clean,
            right=clean.clone(),
            clean_suspicion=suspicion,
            fooling_suspicion={name: torch.full_like(v, torch.nan) for name, v in suspicion.items()},
            undecided=int(raw.isnan().any(dim=1).sum()),
        )

    @torch.no_grad()
    def saw(self, batch: Tensor, found: Tensor) -> None:
        """Record the images that an attack made of the examples ``batch``."""
        raw = self.model.classifier(found)
        fooled = misclassified(self.model.fold)(raw, self.labels[batch])
        self.right[batch] &= ~fooled
        for score in self.scores:
            self.fooling_suspicion[score.name][batch[fooled]] = score.suspicion(raw[fooled])

    def dummy_mass(self, runner: Runner, *, adaptive: bool) -> DummyMass | None:
        """Dummy mass as a detector; None without dummies or where nothing fooled the model.

        ``adaptive`` also runs an attack that lowers dummy mass, on at most ``ADAPTIVE_EXAMPLES`` of them.
        """
        if self.model.fold == "none":
            return None
        fooling = self.fooling_suspicion["dummy_mass"]
        # An image that makes the model answer NaN fools it, but has no dummy mass to speak of.
        fooled = self.clean & ~self.right & fooling.isfinite()
        clean = self.clean_suspicion["dummy_mass"][self.clean]
        auroc = _auroc(clean, fooling[fooled])
        if auroc is None:
            return None
        auroc_adaptive = None
        if adaptive:
            auroc_adaptive = _auroc(clean, self._hidden(runner, fooled))
        return DummyMass(
            clean_mean=clean.sigmoid().mean().item(),
            adversarial_mean=fooling[fooled].sigmoid().mean().item(),
            auroc=auroc,
            auroc_adaptive=auroc_adaptive,
        )

    def _hidden(self, runner: Runner, fooled: Tensor) -> Tensor:
        """The suspicion of fooling images whose dummy mass was lowered as well, for a sample."""
        index = runner.sample("hide", fooled, ADAPTIVE_EXAMPLES)
        lowest = self.fooling_suspicion["dummy_mass"].clone()
        score = next(score for score in self.scores if score.name == "dummy_mass")

        @torch.no_grad()
        def saw(batch: Tensor, found: Tensor) -> None:
            raw = self.model.classifier(found)
            still = misclassified(self.model.fold)(raw, self.labels[batch])
            lowest[batch[still]] = torch.minimum(lowest[batch], score.suspicion(raw))[still]

        runner.attack("hide dummy mass", score.hiding, index, misclassified(self.model.fold), saw)
        return lowest[index]


def _auroc(clean: Tensor, adversarial: Tensor) -> float | None:
    clean, adversarial = clean[clean.isfinite()], adversarial[adversarial.isfinite()]
    if len(clean) == 0 or len(adversarial) == 0:
        return None
    truth = torch.cat([torch.zeros_like(clean), torch.ones_like(adversarial)])
    return float(roc_auc_score(truth.cpu().numpy(), torch.cat([clean, adversarial]).cpu().numpy()))

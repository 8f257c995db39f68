"""What is known of every example: right when clean, what broke it, and how a detector scores its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold
from training.attacks.base import Attack
from training.attacks.criteria import Criterion, misclassified, right
from training.attacks.losses import margin
from training.batches import to_pixels
from training.evaluation.detectors import Detector, detectors
from training.evaluation.runner import Onlooker, Runner

UNBROKEN = -1
BY_CHECK = -2


@dataclass
class Examples:
    """One row per example; scores by the name of their detector.

    ``clean_margin`` is the label's deployed logit less the largest other one, float [N]. ``prediction`` is what the
    model answers to the image that broke an example, to the clean one while there is none; int64 [N].
    ``broken_by`` is the number of the attack that broke it, counted from 0, `UNBROKEN` where none did, and
    `BY_CHECK` where only a sanity check or a study did.
    """

    fold: Fold
    labels: Tensor
    detectors: list[Detector]
    clean: Tensor  # bool [N]: right on the clean image
    right: Tensor  # bool [N]: right so far
    clean_margin: Tensor
    clean_prediction: Tensor
    prediction: Tensor
    broken_by: Tensor
    clean_scores: dict[str, Tensor]
    fooling_scores: dict[str, Tensor]  # of an image that fools the model; nan while there is none
    undecided: int  # clean images with NaN logits
    # float32 [N, channels, H, W] on the CPU: what broke an example, else its clean image; None unless asked for.
    images: Tensor | None = None

    @classmethod
    def of(cls, runner: Runner, *, keep_images: bool = False) -> Examples:
        """What the clean images say."""
        raw, fold = runner.clean_logits, runner.model.fold
        logits, labels = fold_logits(raw, fold), runner.data.labels
        clean, decided = right(logits, labels), logits.argmax(dim=1)
        known = detectors(fold)
        scores: dict[str, Tensor] = {detector.name: detector.score(raw) for detector in known}
        return cls(
            fold=fold,
            labels=labels,
            detectors=known,
            clean=clean,
            right=clean.clone(),
            clean_margin=-margin("none")(logits, labels, labels),
            clean_prediction=decided,
            prediction=decided.clone(),
            broken_by=torch.full_like(labels, UNBROKEN),
            clean_scores=scores,
            fooling_scores={name: torch.full_like(v, torch.nan) for name, v in scores.items()},
            undecided=int(raw.isnan().any(dim=1).sum()),
            images=to_pixels(runner.data.images.cpu()) if keep_images else None,
        )

    def record(self, index: Tensor, raw: Tensor, attack: int) -> None:
        """Take in the raw logits of the images that attack number ``attack`` found for the examples ``index``."""
        fooled = misclassified(self.fold)(raw, self.labels[index])
        broken = index[fooled]
        self.right[broken] = False
        self.broken_by[broken] = attack
        self.prediction[broken] = fold_logits(raw[fooled], self.fold).argmax(dim=1)
        for detector in self.detectors:
            # NaN would say that nothing fooled the model; an answer of NaN is wrong and nowhere flagged.
            self.fooling_scores[detector.name][broken] = detector.score(raw[fooled]).nan_to_num(
                nan=-torch.inf
            )

    def check(self, runner: Runner, name: str, attack: Attack, index: Tensor, criterion: Criterion) -> Tensor:
        """Attack the examples ``index`` as a check or a study does; what only this breaks counts as broken, too.

        The runner's ball must be that of the attacks. The arguments and what is returned are those of `Runner.attack`.
        """
        onlooker = None if self.images is None else Onlooker(self._keep_unbroken)
        raw = runner.attack(name, attack, index, criterion, onlooker)
        unbroken = self.right[index]
        self.record(index[unbroken], raw[unbroken], BY_CHECK)
        return raw

    @property
    def broken_by_checks(self) -> int:
        """How many examples the attacks left and checks or studies broke."""
        return int((self.broken_by == BY_CHECK).sum())

    def inherit(self, smaller: Examples) -> None:
        """Take over what a smaller ball has shown: an image that broke an example there is in this ball too."""
        self.take_over(smaller.state())

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Put these examples where others with that `state` were.

        Their clean images were evaluated apart, perhaps on another device, where a logit may be rounded to the other
        side of a decision: what is right under attack stays a part of what is right when clean.
        """
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.right &= self.clean

    def keep(self, index: Tensor, found: Tensor, raw: Tensor) -> None:
        """Keep the images among ``found`` whose logits ``raw`` are wrong, where images are kept."""
        if self.images is not None:
            fooled = misclassified(self.fold)(raw, self.labels[index])
            self.images[index[fooled].cpu()] = found[fooled].detach().cpu()

    def _keep_unbroken(self, index: Tensor, found: Tensor, raw: Tensor) -> None:
        unbroken = self.right[index]
        self.keep(index[unbroken], found[unbroken], raw[unbroken])

    def state(self) -> dict[str, Tensor]:
        """What changes while attacks run, to be stored and copied back; the clean images are evaluated again."""
        fooling = {f"fooling.{name}": values for name, values in self.fooling_scores.items()}
        images = {} if self.images is None else {"images": self.images}
        return {
            "right": self.right,
            "prediction": self.prediction,
            "broken_by": self.broken_by,
            **fooling,
            **images,
        }

"""PGD adversarial training (Madry et al. 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor, nn

from training.objectives.objective import Objective, forward_both, in_float


class AdversarialTraining(Objective):
    """Cross entropy on adversarial images; in the dummy phase, two-hot labels over both halves."""

    def loss(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, dummy_phase: bool
    ) -> Tensor:
        if dummy_phase and self.ducat.mode != "off":
            return self.ducat.with_dummies(*forward_both(model, images, adversarial), labels)
        attacked = in_float(model(adversarial))
        return self.ducat.cross_entropy(attacked, labels, dummy_phase=False).mean()

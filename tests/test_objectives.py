"""Adversarial training with and without dummies: what is attacked, what is minimised."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from training.objectives.adversarial_training import AdversarialTraining

C = 3


class Linear(nn.Module):
    """A model in float64 whose logits can be written down."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, outputs, dtype=torch.float64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    adversarial = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    return clean, adversarial, torch.randint(C, (8,), generator=generator)


def test_paper_dummy_phase_is_soft_label_cross_entropy_over_both_halves() -> None:
    """arXiv 2410.12671, literally: 0.75/0.25 on clean, 0/1 on adversarial, mean over 2N images."""
    model, (clean, adversarial, labels) = Linear(2 * C), batch()
    eye = torch.eye(2 * C, dtype=torch.float64)
    clean_target = 0.75 * eye[labels] + 0.25 * eye[labels + C]
    adversarial_target = eye[labels + C]
    clean_loss = -(clean_target * model(clean).log_softmax(dim=1)).sum(dim=1)
    adversarial_loss = -(adversarial_target * model(adversarial).log_softmax(dim=1)).sum(dim=1)
    literal = torch.cat([clean_loss, adversarial_loss]).mean()
    ours = AdversarialTraining("paper", 1.0).loss(model, clean, adversarial, labels, dummy_phase=True)
    torch.testing.assert_close(ours.double(), literal, rtol=1e-6, atol=1e-6)


def test_before_the_dummy_phase_paper_and_folded_are_plain_adversarial_training() -> None:
    model, (clean, adversarial, labels) = Linear(2 * C), batch()
    literal = F.cross_entropy(model(adversarial), labels)
    for ducat in ("paper", "folded"):
        ours = AdversarialTraining(ducat, 1.0).loss(model, clean, adversarial, labels, dummy_phase=False)
        torch.testing.assert_close(ours.double(), literal, rtol=1e-6, atol=1e-6)


def test_off_is_cross_entropy_on_c_logits() -> None:
    model, (clean, adversarial, labels) = Linear(C), batch()
    ours = AdversarialTraining("off", 1.0).loss(model, clean, adversarial, labels, dummy_phase=True)
    torch.testing.assert_close(
        ours.double(), F.cross_entropy(model(adversarial), labels), rtol=1e-6, atol=1e-6
    )


def test_folded_attack_ignores_where_in_the_pair_the_mass_is() -> None:
    """Moving all mass from y to its dummy is a success for the paper's attack, nothing for the folded one."""
    labels = torch.tensor([0])
    on_original = torch.tensor([[9.0, 0, 0, -9.0, -9, -9]])
    on_dummy = torch.tensor([[-9.0, 0, 0, 9.0, -9, -9]])
    paper, folded = AdversarialTraining("paper", 1.0), AdversarialTraining("folded", 0.1)
    paper_gain = paper.attack_loss(on_dummy, labels, True) - paper.attack_loss(on_original, labels, True)
    folded_gain = folded.attack_loss(on_dummy, labels, True) - folded.attack_loss(on_original, labels, True)
    assert paper_gain > 10
    assert folded_gain.abs() < 1e-5

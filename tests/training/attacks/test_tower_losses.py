"""What attacks climb on two towers: gradients for both, and losses that follow the decision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Switch
from training.attacks.losses import (
    LossOfFold,
    cross_entropy,
    dlr,
    mapped_margin,
    margin,
    pair_margin,
    standardised_margin,
    targeted_dlr,
    targeted_margin,
)
from training.attacks.tower_losses import soft_logits

SWITCH = Switch(scale=3, power=2, shift=-0.5, threshold=0.2)
CLASSES = 5


def towers(standard: list[float], robust: list[float]) -> Tensor:
    return torch.tensor([standard + robust], dtype=torch.float64, requires_grad=True)


def gradients(loss: LossOfFold, raw: Tensor, label: int, target: int = 1) -> tuple[Tensor, Tensor]:
    """Of the loss, with respect to the standard and the robust tower's logits."""
    value = loss(SWITCH)(raw, torch.tensor([label]), torch.tensor([target]))
    (gradient,) = torch.autograd.grad(value.sum(), raw)
    return gradient[0, :CLASSES], gradient[0, CLASSES:]


# The standard tower is very sure, and so is the mapped robust one: float probabilities of 1.
SURE = [30.0, 2.0, 1.0, 0.0, -1.0], [9.0, 1.0, 0.5, 0.0, -0.5]


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr, targeted_margin, targeted_dlr])
def test_both_towers_get_a_gradient_where_both_are_sure(loss: LossOfFold) -> None:
    standard, robust = gradients(loss, towers(*SURE), label=0)
    # Far above what float32 resolves beside logits of this size.
    assert standard[0] < -1e-6
    assert robust[0] < -1e-6
    assert robust[1] > 0


def test_the_fold_itself_has_no_gradient_to_climb() -> None:
    """Why there are other losses: through the one-hot vector nothing comes back at all."""
    raw, sharp = towers(*SURE), SWITCH.model_copy(update={"scale": 50})
    value = torch.nn.functional.cross_entropy(fold_logits(raw, sharp), torch.tensor([0]))
    (gradient,) = torch.autograd.grad(value, raw)
    assert gradient[0, :CLASSES].abs().max() == 0
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize(
    "loss", [lambda fold: pair_margin(fold, temperature=1), standardised_margin, mapped_margin]
)
def test_margins_of_the_robust_tower_leave_the_other_alone(loss: LossOfFold) -> None:
    standard, robust = gradients(loss, towers(*SURE), label=0)
    assert standard.abs().max() == 0
    assert robust[0] < 0 < robust[1]


def test_soft_logits_literally() -> None:
    raw = towers([3.0, 1.0, 0.0, -1.0, -3.0], [0.5, 2.0, 1.0, 0.0, -1.0])
    probabilities = []
    for logits in (raw[0, :CLASSES], raw[0, CLASSES:]):
        standardised = (logits - logits.mean()) / (logits.var(unbiased=False) + 1e-5).sqrt()
        probabilities.append((6 / 2 * standardised).softmax(dim=0))  # sqrt(5 - 1) = 2
    a = 1 / 1.2
    expected = ((1 - a) * probabilities[0] + a * probabilities[1]).log()
    torch.testing.assert_close(soft_logits(raw, SWITCH)[0], expected)


def test_a_target_is_won_by_the_standard_tower_flipping_and_no_more() -> None:
    loss = targeted_margin(SWITCH)
    label, target, dummy = torch.tensor([0]), torch.tensor([1]), torch.tensor([1 + CLASSES])
    robust = [1.0, 0.8, 0.0, -0.5, -1.0]
    values = [
        loss(towers([0.0, lead, 0.0, -1.0, -2.0], robust), label, target).item() for lead in (-1, 0.02, 1, 5)
    ]
    assert values[0] < values[1] < values[2]
    assert values[2] == values[3]  # it says the target; the rest is up to the robust tower
    # At the target's dummy only the robust tower counts.
    assert loss(towers([9.0, 0.0, 0.0, 0.0, 0.0], robust), label, dummy) == loss(
        towers([0.0, 9.0, 0.0, 0.0, 0.0], robust), label, dummy
    )
    surer = [1.0, 1.5, 0.0, -0.5, -1.0]
    assert loss(towers([0.0, 9.0, 0, 0, 0], surer), label, target) > values[3]

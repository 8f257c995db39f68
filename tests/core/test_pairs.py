"""The pair algebra against literal formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ducat_serve.pairs import (
    dummy_mass,
    dummy_share,
    fold_logits,
    folded_log_posterior,
    pair_cross_entropy,
    recover,
)

C = 5


def logits_and_labels(seed: int, scale: float = 5.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(64, 2 * C, generator=generator, dtype=torch.float64)
    return logits, torch.randint(C, (64,), generator=generator)


@pytest.mark.parametrize("dummy_weight", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 5.0, 50.0])
def test_identity_of_the_paper_loss(dummy_weight: float, scale: float) -> None:
    """CE over 2C = -log P_y - a log(1 - d_y) - b log d_y, to 1e-10 in float64."""
    logits, labels = logits_and_labels(0, scale)
    eye = torch.eye(2 * C, dtype=torch.float64)
    target = (1 - dummy_weight) * eye[labels] + dummy_weight * eye[labels + C]  # the paper's two-hot label
    literal = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    ours = pair_cross_entropy(logits, labels, dummy_weight, split_weight=1.0)
    torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("split_weight", [0.0, 0.1, 0.7])
def test_split_weight_scales_only_the_split(split_weight: float) -> None:
    logits, labels = logits_and_labels(1)
    p = logits.softmax(dim=1)
    rows = torch.arange(len(labels))
    pair = p[rows, labels] + p[rows, labels + C]
    share = p[rows, labels + C] / pair
    literal = -pair.log() + split_weight * (-0.75 * (1 - share).log() - 0.25 * share.log())
    ours = pair_cross_entropy(logits, labels, 0.25, split_weight)
    torch.testing.assert_close(ours, literal, rtol=1e-10, atol=1e-10)


def test_weights_may_differ_by_image() -> None:
    logits, labels = logits_and_labels(2)
    weights = torch.linspace(0, 1, 64, dtype=torch.float64)
    ours = pair_cross_entropy(logits, labels, weights)
    one_by_one = torch.cat(
        [
            pair_cross_entropy(logits[i : i + 1], labels[i : i + 1], float(weights[i]))
            for i in range(len(labels))
        ]
    )
    torch.testing.assert_close(ours, one_by_one)


def test_loss_and_gradient_are_finite_for_extreme_logits() -> None:
    logits = torch.tensor([[200.0, 0, 0, -200.0], [-200.0, 0, 0, 200.0]], requires_grad=True)
    loss = pair_cross_entropy(logits, torch.tensor([0, 1]), 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


@given(st.integers(0, 10_000))
def test_max_fold_is_recovery(seed: int) -> None:
    """argmax of the max-fold = argmax over 2C, dummy read as its class (no ties in random float64)."""
    logits, _ = logits_and_labels(seed)
    assert torch.equal(fold_logits(logits, "max").argmax(dim=1), recover(logits))


def test_folds_against_literal_formulas() -> None:
    logits, _ = logits_and_labels(3)
    original, dummy = logits[:, :C], logits[:, C:]
    torch.testing.assert_close(fold_logits(logits, "lse"), (original.exp() + dummy.exp()).log())
    assert torch.equal(fold_logits(logits, "max"), torch.stack([original, dummy]).amax(dim=0))
    assert fold_logits(logits, "none") is logits


def test_lse_fold_of_huge_logits_and_its_gradient() -> None:
    raw = torch.tensor([[500.0, -500.0, 1.0, -501.0]], requires_grad=True)
    folded = fold_logits(raw, "lse")
    assert torch.equal(folded, torch.tensor([[500.0, -500.0 + torch.log1p(torch.tensor(-1.0).exp())]]))
    (gradient,) = torch.autograd.grad(folded.sum(), raw)
    share = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, share, 0.0, 1 - share]]))


def test_lse_fold_gives_the_folded_posterior_and_max_fold_does_not() -> None:
    logits, _ = logits_and_labels(4)
    p = logits.softmax(dim=1)
    posterior = p[:, :C] + p[:, C:]
    torch.testing.assert_close(folded_log_posterior(logits).exp(), posterior)
    torch.testing.assert_close(fold_logits(logits, "lse").softmax(dim=1), posterior)
    assert (fold_logits(logits, "max").softmax(dim=1) - posterior).abs().max() > 0.01


def test_dummy_mass_and_share() -> None:
    logits, labels = logits_and_labels(5)
    p = logits.softmax(dim=1)
    rows = torch.arange(len(labels))
    torch.testing.assert_close(dummy_mass(logits), p[:, C:].sum(dim=1))
    share = p[rows, labels + C] / (p[rows, labels] + p[rows, labels + C])
    torch.testing.assert_close(dummy_share(logits, labels), share)


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="even number"):
        recover(torch.zeros(1, 7))


def test_an_unknown_fold_is_no_fold() -> None:
    fold: Any = "LSE"
    with pytest.raises(ValueError, match="'LSE' is none of"):
        fold_logits(torch.zeros(1, 4), fold)

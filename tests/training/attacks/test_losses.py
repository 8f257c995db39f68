"""Attack losses against literal formulas in float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ducat_serve.pairs import fold_logits
from ducat_serve.spec import Fold
from training.attacks import losses

C = 5
FOLDS: list[Fold] = ["none", "max", "lse"]


def example(seed: int, fold: Fold) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = C if fold == "none" else 2 * C
    raw = 3 * torch.randn(16, width, generator=generator, dtype=torch.float64)
    return raw, torch.randint(C, (16,), generator=generator)


@given(st.integers(0, 10_000), st.sampled_from(FOLDS))
def test_margin_is_positive_exactly_where_the_deployed_decision_is_wrong(seed: int, fold: Fold) -> None:
    raw, labels = example(seed, fold)
    wrong = fold_logits(raw, fold).argmax(dim=1) != labels
    assert torch.equal(losses.margin(fold)(raw, labels, labels) > 0, wrong)


def test_dlr_is_the_published_formula() -> None:
    """-(z_y - max_{i != y} z_i) / (z_p1 - z_p3), row by row."""
    for fold in FOLDS:
        raw, labels = example(0, fold)
        for row, label, value in zip(
            fold_logits(raw, fold), labels, losses.dlr(fold)(raw, labels, labels), strict=True
        ):
            ordered = sorted(row.tolist(), reverse=True)
            others = [z for i, z in enumerate(row.tolist()) if i != label]
            literal = -(row[label].item() - max(others)) / (ordered[0] - ordered[2])
            assert abs(value.item() - literal) < 1e-9


def test_targeted_dlr_is_the_published_formula_towards_a_class_or_its_dummy() -> None:
    raw, labels = example(1, "max")
    targets = (labels + 1) % C + C  # dummies
    values = losses.targeted_dlr("max")(raw, labels, targets)
    folded = fold_logits(raw, "max")
    for i, value in enumerate(values):
        z = sorted(folded[i].tolist(), reverse=True)
        own, goal = folded[i, labels[i]].item(), raw[i, targets[i]].item()
        assert abs(value.item() - (-(own - goal) / (z[0] - (z[2] + z[3]) / 2))) < 1e-9


def test_pair_margin_against_its_formula_for_every_temperature() -> None:
    raw, labels = example(2, "max")
    for temperature in (0.0, 1.0, 4.0):
        values = losses.pair_margin("max", temperature)(raw, labels, labels)
        for row, label, value in zip(raw, labels.tolist(), values, strict=True):
            pair = torch.stack([row[label], row[label + C]])
            weight = torch.softmax(temperature * pair, dim=0)
            others = [z for j, z in enumerate(row.tolist()) if j not in (label, label + C)]
            assert abs(value.item() - (max(others) - (weight * pair).sum().item())) < 1e-9


def test_pair_margin_pushes_both_logits_of_the_pair_down() -> None:
    """The weight is detached: T = 0 gives each half the gradient, whatever their values."""
    raw, labels = example(3, "max")
    raw.requires_grad_(True)
    (gradient,) = torch.autograd.grad(losses.pair_margin("max", 0.0)(raw, labels, labels).sum(), raw)
    rows = torch.arange(16)
    assert torch.equal(gradient[rows, labels], torch.full((16,), -0.5, dtype=torch.float64))
    assert torch.equal(gradient[rows, labels + C], torch.full((16,), -0.5, dtype=torch.float64))


def test_without_dummies_the_pair_margin_is_the_margin() -> None:
    raw, labels = example(4, "none")
    assert torch.equal(
        losses.pair_margin("none", 1.0)(raw, labels, labels), losses.margin("none")(raw, labels, labels)
    )


def test_cross_entropy_of_the_lse_fold_is_minus_log_of_the_folded_posterior() -> None:
    raw, labels = example(5, "lse")
    p = raw.softmax(dim=1)
    rows = torch.arange(16)
    literal = -(p[rows, labels] + p[rows, labels + C]).log()
    torch.testing.assert_close(losses.cross_entropy("lse")(raw, labels, labels), literal)


def test_margin_says_how_far_a_right_decision_is_from_a_wrong_one() -> None:
    """Not 0 for every right decision, which would have no gradient."""
    raw, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), torch.tensor([0, 0])
    torch.testing.assert_close(losses.margin("none")(raw, labels, labels), torch.tensor([-1.0, 4.0]))


def test_the_label_s_logit_is_counted_from_the_mean_of_all() -> None:
    raw = torch.tensor([[3.0, 1.0, -1.0], [0.0, 6.0, 0.0]])
    found = losses.label_logit("none")(raw, torch.tensor([0, 2]), torch.tensor([0, 0]))
    assert found.tolist() == [-2.0, 2.0]

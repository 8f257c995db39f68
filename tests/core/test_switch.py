"""The switch between two towers against a second, literal implementation in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ducat_serve.pairs import fold_logits, mass_on_dummies
from ducat_serve.spec import Switch
from ducat_serve.switch import certainty, mapped_log_posterior, overruled, switch_bounds, switch_logits

Array = NDArray[np.float64]
SWITCHES = [
    Switch(scale=s, power=p, shift=c, threshold=t, divisor=d)
    for s, p, c, t, d in (
        *((1, 1, 0, 0.3, None), (4, 2, -0.5, 0.05, None), (5, 4, -1, 0.4, None), (20, 3, 0.2, 0.5, None)),
        *((4, 2, -0.5, 0.05, 0.7), (5, 4, 0, 0.4, 1.3)),
    )
]


def literal_q(dummy: Array, switch: Switch) -> Array:
    """softmax(s |u|^p sign(u)), u = GELU((d - mean) / divisor + c), one row and one class at a time."""
    result = np.zeros_like(dummy)
    for row, d in enumerate(dummy):
        mean = sum(d) / len(d)
        variance = sum((x - mean) ** 2 for x in d) / len(d)
        mapped = []
        for x in d:
            v = (x - mean) / (switch.divisor or math.sqrt(variance + 1e-5)) + switch.shift
            u = v * 0.5 * (1 + math.erf(v / math.sqrt(2)))
            mapped.append(switch.scale * abs(u) ** switch.power * math.copysign(1, u))
        top = max(mapped)
        weights = [math.exp(m - top) for m in mapped]
        result[row] = [w / sum(weights) for w in weights]
    return result


def literal_answer(original: Array, dummy: Array, switch: Switch) -> list[int]:
    """The rule in words: the standard tower's class where the robust tower is not sure that it is wrong."""
    answers = []
    for o, q in zip(original, literal_q(dummy, switch), strict=True):
        k = int(np.argmax(o))
        answers.append(k if max(q) - q[k] < switch.threshold else int(np.argmax(q)))
    return answers


@pytest.fixture(scope="module")
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 400 images and 7 classes, in float64; the robust tower is often unsure."""
    generator = torch.Generator().manual_seed(0)
    original = 5 * torch.randn(400, 7, generator=generator, dtype=torch.float64)
    return original, torch.randn(400, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_against_the_literal_rule(logits: tuple[torch.Tensor, torch.Tensor], switch: Switch) -> None:
    original, dummy = logits
    q = literal_q(dummy.numpy(), switch)
    np.testing.assert_allclose(mapped_log_posterior(dummy, switch).exp().numpy(), q, rtol=1e-9, atol=1e-12)

    answer = literal_answer(original.numpy(), dummy.numpy(), switch)
    found = switch_logits(original, dummy, switch)
    assert found.argmax(dim=1).tolist() == answer
    k = original.argmax(dim=1).numpy()
    assert overruled(original, dummy, switch).tolist() == [a != b for a, b in zip(answer, k, strict=True)]
    # Both of them answer, and not always the standard tower.
    assert 0 < overruled(original, dummy, switch).sum() < 400

    a = 1 / (1 + switch.threshold)
    expected = np.log((1 - a) * (np.arange(7) == k[:, None]) + a * q)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.exp().sum(dim=1).numpy(), 1, rtol=1e-9)  # log probabilities


def test_it_is_a_fold_of_2c_logits(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    raw, switch = torch.cat(logits, dim=1), SWITCHES[0]
    torch.testing.assert_close(fold_logits(raw, switch), switch_logits(*logits, switch))
    mass = mass_on_dummies(raw, switch)
    assert mass.tolist() == overruled(*logits, switch).double().tolist()
    assert str(switch) == "switch"


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_a_certain_robust_tower_wins_against_every_standard_tower(switch: Switch) -> None:
    """The implication of the floor, against standard towers that say each of the classes."""
    dummy = torch.randn(500, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = dummy.argmax(dim=1)
    certain = certainty(dummy, labels, switch) >= switch.threshold
    assert 0 < certain.sum() < 500
    lost = torch.zeros_like(certain)
    for k in range(5):
        original = torch.nn.functional.one_hot(torch.full((500,), k), 5).double()
        answer = switch_logits(original, dummy, switch).argmax(dim=1)
        assert (answer == labels)[certain].all()
        lost |= answer != labels
    # And it says no less than it could: every other image is lost to some standard tower.
    torch.testing.assert_close(lost, ~certain)


def test_certainty_is_the_mapped_margin() -> None:
    dummy = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
    q = literal_q(dummy.numpy(), SWITCHES[0])[0]
    assert certainty(dummy, torch.tensor([0]), SWITCHES[0]).item() == pytest.approx(q[0] - q[1], rel=1e-9)
    assert certainty(dummy, torch.tensor([2]), SWITCHES[0]).item() == pytest.approx(q[2] - q[0], rel=1e-9)


def test_probabilities_that_vanish_stay_finite() -> None:
    """In float32, with a map that leaves nothing of the other classes."""
    switch = Switch(scale=1000, power=4, shift=0, threshold=0.5)
    dummy = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    found = switch_logits(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), dummy, switch)
    assert found.isfinite().all()
    assert found.argmax(dim=1).tolist() == [0]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
@pytest.mark.parametrize("rounding", [1e-4, 0.02, 1.0])
def test_bounds_hold_whatever_rounding_does(
    logits: tuple[torch.Tensor, torch.Tensor], switch: Switch, rounding: float
) -> None:
    original, dummy = logits
    low, high = switch_bounds(original, dummy, switch, rounding)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        signs = torch.randint(0, 2, dummy.shape, generator=generator) * 2 - 1
        found = switch_logits(original, dummy + rounding * signs, switch)
        assert (low - 1e-9 <= found).all()
        assert (found <= high + 1e-9).all()
    if rounding == 1e-4:  # and they are no wider than they have to be
        assert (high - low).median() < 0.2  # of log probabilities down to -200


def test_logits_that_are_all_rounding_bound_nothing() -> None:
    dummy = torch.tensor([[0.01, 0.0, -0.01], [0.0, 0.0, 0.0]])
    low, high = switch_bounds(torch.eye(3)[:2], dummy, SWITCHES[1], rounding=0.1)
    assert low.isfinite().all()
    assert high.isfinite().all()
    assert (low.amin(dim=1) < high.amax(dim=1) - 1).all()

"""Every method in every mode against the published formula, written down a second time in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from training.attacks.ball import Ball
from training.objectives import METHODS, create_objective
from training.objectives.ducat import Ducat, Mode
from training.objectives.objective import Objective
from training.randomness import stream

C = 4
BETA = 6.0
SPLIT: dict[str, float] = {"off": 1.0, "paper": 1.0, "folded": 0.3}


class Linear(nn.Module):
    """A model in float64 whose logits can be written down; it counts its passes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, outputs, dtype=torch.float64)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = 3 * self.layer(images.flatten(1))
        return logits


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    adversarial = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    return clean, adversarial, torch.randint(C, (4,), generator=generator).repeat(2)


def objective(method: str, mode: Mode) -> Objective:
    return create_objective(method, Ducat(mode, SPLIT[mode]), BETA)


# --- the literal formulas: one image at a time, plain probabilities --------------------------------------------


def softmax(row: Tensor) -> list[float]:
    weights = [math.exp(z) for z in row.tolist()]
    return [w / sum(weights) for w in weights]


def posterior(row: Tensor, mode: Mode, dummy_phase: bool) -> list[float]:
    p = softmax(row)
    if mode == "folded" and dummy_phase:
        return [p[i] + p[i + C] for i in range(C)]
    return p


def two_hot(row: Tensor, y: int, on_dummy: float, mode: Mode) -> float:
    p = softmax(row)
    pair = p[y] + p[y + C]
    split = -(1 - on_dummy) * math.log(p[y] / pair) - on_dummy * math.log(p[y + C] / pair)
    if mode == "paper":  # literally: soft-label cross entropy over 2C
        return -(1 - on_dummy) * math.log(p[y]) - on_dummy * math.log(p[y + C])
    return -math.log(pair) + SPLIT["folded"] * split


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def literal(
    method: str, mode: Mode, clean: Tensor, adv: Tensor, labels: list[int], dummy_phase: bool
) -> float:
    n = len(labels)
    p = [posterior(row, mode, dummy_phase) for row in clean]
    q = [posterior(row, mode, dummy_phase) for row in adv]
    with_dummies = dummy_phase and mode != "off"
    if with_dummies:
        classification = mean(
            [two_hot(clean[i], labels[i], 0.25, mode) for i in range(n)]
            + [two_hot(adv[i], labels[i], 1.0, mode) for i in range(n)]
        )
    else:
        source = clean if method == "trades" else adv  # plain TRADES classifies CLEAN images
        classification = mean([-math.log(softmax(source[i])[labels[i]]) for i in range(n)])
    if method == "pgd-at":
        return classification
    if method == "trades":
        return classification + BETA * mean([kl(p[i], q[i]) for i in range(n)])
    if method == "mart":
        boost = [-math.log(1.0001 - max(v for k, v in enumerate(q[i]) if k != labels[i])) for i in range(n)]
        weighted = [(1 - p[i][labels[i]]) * kl(p[i], q[i]) for i in range(n)]
        return classification + mean(boost) + BETA * mean(weighted)

    def sharpened(values: list[float]) -> list[float]:
        powers = [v**2 for v in values]  # temperature 0.5
        return [v / sum(powers) for v in powers]

    def disagreement(a: list[float], b: list[float]) -> float:
        middle = [(u + v) / 2 for u, v in zip(a, b, strict=True)]
        return (kl(a, middle) + kl(b, middle)) / 2

    half = n // 2
    return classification + mean([disagreement(sharpened(q[i]), sharpened(q[i + half])) for i in range(half)])


@pytest.mark.parametrize("dummy_phase", [False, True])
@pytest.mark.parametrize(("method", "mode"), itertools.product(METHODS, ["off", "paper", "folded"]))
def test_loss_is_the_published_formula(method: str, mode: Mode, dummy_phase: bool) -> None:
    model, (clean, adversarial, labels) = Linear(C if mode == "off" else 2 * C), batch()
    ours = objective(method, mode).loss(model, clean, adversarial, labels, dummy_phase)
    assert model.passes == 1  # one fused forward
    with torch.no_grad():
        expected = literal(method, mode, model(clean), model(adversarial), labels.tolist(), dummy_phase)
    assert ours.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("dummy_phase", [False, True])
@pytest.mark.parametrize(("method", "mode"), itertools.product(METHODS, ["off", "paper", "folded"]))
def test_inner_attack_is_the_published_one(method: str, mode: Mode, dummy_phase: bool) -> None:
    """KL from the clean posterior for TRADES, cross entropy against the ORIGINAL label for the others."""
    model, (clean, adversarial, labels) = Linear(C if mode == "off" else 2 * C), batch()
    chosen = objective(method, mode)
    reference = chosen.reference(model, clean)
    with torch.no_grad():
        raw_clean, raw = model(clean), model(adversarial)
    assert (reference is None) == (method != "trades")
    ours = chosen.attack_loss(raw, labels, reference, dummy_phase)
    for i, y in enumerate(labels.tolist()):
        q = posterior(raw[i], mode, dummy_phase)
        expected = (
            kl(posterior(raw_clean[i], mode, dummy_phase), q) if method == "trades" else -math.log(q[y])
        )
        assert ours[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("method", "far"), [("pgd-at", True), ("consistency", True), ("trades", False), ("mart", False)]
)
def test_where_the_inner_attack_starts(method: str, far: bool) -> None:
    """TRADES and MART start 0.001 from the image, never on it, where the gradient of a divergence is zero."""
    images = torch.full((4, 3, 2, 2), 0.5)
    start = objective(method, "off").start(images, Ball("linf", 0.1), stream(0, "t"))
    moved = (start - images).abs().amax(dim=(1, 2, 3))
    assert (moved > 0).all()
    assert (moved > 0.01).all() == far
    assert (moved < 0.005).all() == (not far)


def test_two_views_are_augmented_apart_and_lie_one_after_the_other() -> None:
    from training.batches import DeviceSplit, TrainingBatches

    images = torch.randint(256, (12, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batches = TrainingBatches(DeviceSplit(images, torch.arange(12)), 6, 0, crop_padding=2, flip=True)
    one, labels = batches.batch(batches.order(1), 1, 0)
    two, doubled = batches.batch(batches.order(1), 1, 0, views=2)
    assert two.shape[0] == 12
    assert torch.equal(two[:6], one)
    assert not torch.equal(two[6:], one)
    assert torch.equal(doubled, labels.repeat(2))


def test_folded_attack_ignores_where_in_the_pair_the_mass_is() -> None:
    """Moving all mass from y to its dummy is a success for the paper's attack, nothing for the folded one."""
    labels = torch.tensor([0])
    on_original = torch.tensor([[9.0, 0, 0, 0, -9.0, -9, -9, -9]])
    on_dummy = torch.tensor([[-9.0, 0, 0, 0, 9.0, -9, -9, -9]])
    gains = {}
    for mode in ("paper", "folded"):
        attack = objective("pgd-at", mode)  # type: ignore[arg-type]
        gains[mode] = attack.attack_loss(on_dummy, labels, None, True) - attack.attack_loss(
            on_original, labels, None, True
        )
    assert gains["paper"] > 10
    assert gains["folded"].abs() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_losses_of_half_precision_logits_are_float32(method: str) -> None:
    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, : 2 * C].bfloat16()

    clean, adversarial, labels = batch()
    loss = objective(method, "folded").loss(Half(), clean.float(), adversarial.float(), labels, True)
    assert loss.dtype == torch.float32


def test_float32_losses_survive_extreme_logits() -> None:
    """A hundred logits apart: log(0) and 0 * inf lie in wait."""

    class Extreme(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sign = torch.where(torch.arange(2 * C) % 2 == 0, 100.0, -100.0)
            return images.flatten(1)[:, : 2 * C].float() * sign

    clean, adversarial, labels = batch()
    for method, mode in itertools.product(METHODS, ("paper", "folded")):
        pixels = clean.clone().requires_grad_(True)
        loss = objective(method, mode).loss(Extreme(), pixels, adversarial, labels, True)  # type: ignore[arg-type]
        loss.backward()
        assert loss.isfinite(), (method, mode)
        assert pixels.grad is None or pixels.grad.isfinite().all(), (method, mode)

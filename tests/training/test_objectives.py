"""Every method in every mode against the published formula, written down a second time in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ducat_serve.cli.commands.train import command
from tests.support.training_runs import trainer
from training.attacks.ball import Ball
from training.config import TrainConfig
from training.objectives import METHODS, create_objective, methods_with, objective_class
from training.objectives.ducat import PLAIN, Ducat, Mode
from training.objectives.objective import Batch, Objective
from training.randomness import stream

C = 4
BETA = {"trades": 6.0, "mart": 6.0, "guided": 10.0, "pairing": 0.5}
# What each published method classifies without dummies: how much of it are clean images.
CLEAN_SHARE = {"pgd-at": 0.0, "trades": 1.0, "mart": 0.0, "consistency": 0.0, "guided": 1.0, "pairing": 0.5}
EPOCHS = 20
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


def a_batch(dtype: torch.dtype = torch.float64) -> tuple[Batch, Tensor]:
    """A batch and what an attack might have made of it."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    adversarial = torch.rand(8, 3, 2, 2, generator=generator, dtype=torch.float64)
    labels = torch.randint(C, (4,), generator=generator).repeat(2)
    return Batch(clean.to(dtype), labels, epoch=1, step=0), adversarial.to(dtype)


def objective(
    method: str, mode: Mode, *, clean_share: float | None = None, smoothing: float = 0.0
) -> Objective:
    settings = {"beta": BETA.get(method), "epochs": EPOCHS, "clean_share": clean_share}
    return create_objective(method, Ducat(mode, SPLIT[mode], smoothing), settings)


# The plain method on the head of a run without dummies, and on that of a run before its dummy phase.
READINGS: list[tuple[Mode, int]] = [("off", C), ("off", 2 * C), ("paper", 2 * C), ("folded", 2 * C)]
ADVERSARIAL = [method for method in METHODS if method != "standard"]
CASES = [
    (method, mode, outputs) for method in METHODS for mode, outputs in READINGS
    if method != "standard" or mode == "off"
]  # fmt: skip


# --- the literal formulas: one image at a time, plain probabilities --------------------------------------------


def softmax(row: Tensor) -> list[float]:
    weights = [math.exp(z) for z in row.tolist()]
    return [w / sum(weights) for w in weights]


def posterior(row: Tensor, mode: Mode) -> list[float]:
    p = softmax(row)
    if mode == "folded":
        return [p[i] + p[i + C] for i in range(C)]
    return p


def pair_logits(row: Tensor, mode: Mode) -> list[float]:
    z = row.tolist()
    return [math.log(math.exp(z[i]) + math.exp(z[i + C])) for i in range(C)] if mode == "folded" else z


def smoothed(hard: float, row: Tensor, mode: Mode, smoothing: float) -> float:
    """Against a label that has ``smoothing`` spread over all classes of the posterior."""
    return (1 - smoothing) * hard + smoothing * mean([-math.log(v) for v in posterior(row, mode)])


def one_hot(row: Tensor, y: int, smoothing: float) -> float:
    return smoothed(-math.log(softmax(row)[y]), row, "off", smoothing)


def two_hot(row: Tensor, y: int, on_dummy: float, mode: Mode, smoothing: float) -> float:
    p = softmax(row)
    pair = p[y] + p[y + C]
    split = -(1 - on_dummy) * math.log(p[y] / pair) - on_dummy * math.log(p[y + C] / pair)
    if mode == "paper":  # literally: soft-label cross entropy over 2C
        label = [smoothing / (2 * C)] * (2 * C)
        label[y] += (1 - smoothing) * (1 - on_dummy)
        label[y + C] += (1 - smoothing) * on_dummy
        return -sum(weight * math.log(v) for weight, v in zip(label, p, strict=True))
    return smoothed(-math.log(pair) + SPLIT["folded"] * split, row, mode, smoothing)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def classification(
    clean: Tensor, adv: Tensor, labels: list[int], mode: Mode, share: float, smoothing: float
) -> float:
    if mode == "off":
        on_clean = [one_hot(row, y, smoothing) for row, y in zip(clean, labels, strict=True)]
        on_adv = [one_hot(row, y, smoothing) for row, y in zip(adv, labels, strict=True)]
    else:
        on_clean = [two_hot(row, y, 0.25, mode, smoothing) for row, y in zip(clean, labels, strict=True)]
        on_adv = [two_hot(row, y, 1.0, mode, smoothing) for row, y in zip(adv, labels, strict=True)]
    return share * mean(on_clean) + (1 - share) * mean(on_adv)


def squared(a: list[float], b: list[float]) -> float:
    return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))


def literal(
    method: str,
    mode: Mode,
    clean: Tensor,
    adv: Tensor,
    labels: list[int],
    share: float | None = None,
    smoothing: float = 0.0,
) -> float:
    n = len(labels)
    if method == "standard":
        return mean([one_hot(row, y, smoothing) for row, y in zip(clean, labels, strict=True)])
    p = [posterior(row, mode) for row in clean]
    q = [posterior(row, mode) for row in adv]
    if share is None:
        share = CLEAN_SHARE[method] if mode == "off" else 0.5
    classified = classification(clean, adv, labels, mode, share, smoothing)
    if method == "pgd-at":
        return classified
    if method == "trades":
        return classified + BETA[method] * mean([kl(p[i], q[i]) for i in range(n)])
    if method == "guided":
        return classified + BETA[method] * mean([squared(p[i], q[i]) for i in range(n)])
    if method == "pairing":  # in `folded` between log(exp z_y + exp z_{y+C})
        z = [pair_logits(row, mode) for row in clean]
        z_adv = [pair_logits(row, mode) for row in adv]
        return 2 * classified + BETA[method] * mean(
            [squared(a, b) / len(a) for a, b in zip(z, z_adv, strict=True)]
        )
    if method == "mart":
        boost = [-math.log(1.0001 - max(v for k, v in enumerate(q[i]) if k != labels[i])) for i in range(n)]
        weighted = [(1 - p[i][labels[i]]) * kl(p[i], q[i]) for i in range(n)]
        return classified + mean(boost) + BETA[method] * mean(weighted)

    def sharpened(values: list[float]) -> list[float]:
        powers = [v**2 for v in values]  # temperature 0.5
        return [v / sum(powers) for v in powers]

    def disagreement(a: list[float], b: list[float]) -> float:
        middle = [(u + v) / 2 for u, v in zip(a, b, strict=True)]
        return (kl(a, middle) + kl(b, middle)) / 2

    half = n // 2
    return classified + mean([disagreement(sharpened(q[i]), sharpened(q[i + half])) for i in range(half)])


@pytest.mark.parametrize(("method", "mode", "outputs"), CASES)
def test_loss_is_the_published_formula(method: str, mode: Mode, outputs: int) -> None:
    model, (batch, adversarial) = Linear(outputs), a_batch()
    ours = objective(method, mode).loss(model, batch, adversarial)
    assert model.passes == 1  # one fused forward
    with torch.no_grad():
        expected = literal(method, mode, model(batch.images), model(adversarial), batch.labels.tolist())
    assert ours.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(("method", "mode", "outputs"), CASES)
def test_clean_share_and_label_smoothing_combine_with_every_method(
    method: str, mode: Mode, outputs: int, share: float, smoothing: float
) -> None:
    model, (batch, adversarial) = Linear(outputs), a_batch()
    ours = objective(method, mode, clean_share=share, smoothing=smoothing).loss(model, batch, adversarial)
    with torch.no_grad():
        clean, attacked = model(batch.images), model(adversarial)
    expected = literal(method, mode, clean, attacked, batch.labels.tolist(), share, smoothing)
    assert ours.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("epoch", "factor"), [(1, 1), (17, 1), (18, 4), (20, 4)])
def test_guidance_is_four_times_as_strong_in_the_last_epochs(epoch: int, factor: int) -> None:
    """20 epochs: 85 % are over after the seventeenth."""
    model, (batch, adversarial) = Linear(C), a_batch()
    late = replace(batch, epoch=epoch)
    first, now = (objective("guided", "off").loss(model, b, adversarial).item() for b in (batch, late))
    with torch.no_grad():
        p, q = model(batch.images).softmax(1), model(adversarial).softmax(1)
    distance = mean([squared(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)])
    assert now - first == pytest.approx((factor - 1) * BETA["guided"] * distance, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["guided", "pairing"])
def test_folded_pairs_leave_the_split_of_each_pair_free(method: str) -> None:
    """The adversarial logits have all mass of each pair moved to the dummy: published it counts, folded it does not."""

    class Moved(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            original, rest = torch.tensor([3.0, 1, 0, -1]), torch.full((C,), -20.0)
            rows = [torch.cat([original, rest]), torch.cat([rest, original])]
            return torch.stack([rows[int(image.sum() > 0)] for image in images]).double()

    batch = Batch(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]), epoch=1, step=0)
    gaps: dict[str, float] = {}
    modes: list[Mode] = ["paper", "folded"]
    for mode in modes:
        chosen = objective(method, mode)
        without = replace(chosen, beta=0.0)  # type: ignore[call-arg]
        losses = [one.loss(Moved(), batch, torch.ones(2, 3, 2, 2)).item() for one in (chosen, without)]
        gaps[mode] = losses[0] - losses[1]
    assert gaps["paper"] > 1
    assert gaps["folded"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(("method", "mode", "outputs"), [case for case in CASES if case[0] != "standard"])
def test_inner_attack_is_the_published_one(method: str, mode: Mode, outputs: int, step: int) -> None:
    """Cross entropy against the ORIGINAL label, or KL from the clean posterior; guided in every second batch."""
    model, (batch, adversarial) = Linear(outputs), a_batch()
    batch = replace(batch, step=step)
    chosen = objective(method, mode)
    reference = chosen.reference(model, batch)
    with torch.no_grad():
        raw_clean, raw = model(batch.images), model(adversarial)
    assert (reference is None) == (method != "trades" and not (method == "guided" and step == 1))
    ours = chosen.attack_loss(raw, batch, reference)
    for i, y in enumerate(batch.labels.tolist()):
        p, q = posterior(raw_clean[i], mode), posterior(raw[i], mode)
        expected = kl(p, q) if method == "trades" else -math.log(q[y])
        if method == "guided" and step == 1:
            expected += BETA[method] * squared(p, q)
        assert ours[i].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_inner_attacks_never_smooth_labels() -> None:
    batch, _ = a_batch()
    raw = torch.randn(8, 2 * C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    modes: list[Mode] = ["paper", "folded"]
    for method, mode in itertools.product(("pgd-at", "guided"), modes):
        plain, smooth = (
            objective(method, mode, smoothing=s).attack_loss(raw, batch, None) for s in (0.0, 0.3)
        )
        assert torch.equal(plain, smooth)


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_before_the_dummy_phase_every_mode_is_the_plain_method(method: str, tmp_path: Path) -> None:
    steps = {mode: trainer(tmp_path / mode, method=method, ducat=mode).step for mode in ("paper", "folded")}
    off = trainer(tmp_path / "off", method=method, ducat="off", ducat_start=None).step
    for mode, step in steps.items():
        assert [step.objective_of(epoch) == off.objective_of(epoch) for epoch in (1, 2, 3, 4)] == [
            True, True, False, False,
        ], mode  # fmt: skip
        assert step.objective_of(3).ducat.mode == mode
    assert off.objective_of(4).ducat == PLAIN


def test_a_method_is_one_file_and_one_line() -> None:
    """Each line of the registry is a method of its own, whose parameters are settings and options of `ducat train`."""
    classes = [objective_class(method) for method in METHODS]
    assert len(set(classes)) == len(METHODS)
    assert all(issubclass(found, Objective) for found in classes)
    options = {parameter.name for parameter in command.params}
    for found in classes:
        assert set(found.parameters()) <= set(TrainConfig.model_fields) & options
    assert methods_with("beta") == ["trades", "mart", "guided", "pairing"]
    assert {method: objective_class(method).default("beta") for method in methods_with("beta")} == BETA
    choice = next(parameter.type for parameter in command.params if parameter.name == "method")
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == list(METHODS)


@pytest.mark.integration
def test_the_command_line_lists_the_methods_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from ducat_serve.cli.main import run;"
        "sys.exit(run(['train', '--help']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "|".join(METHODS) in shown


@pytest.mark.parametrize(
    ("method", "far"),
    [("pgd-at", True), ("consistency", True), ("pairing", True), ("trades", False), ("mart", False)],
)
def test_where_the_inner_attack_starts(method: str, far: bool) -> None:
    """TRADES and MART start 0.001 from the image, never on it, where the gradient of a divergence is zero."""
    images = torch.full((4, 3, 2, 2), 0.5)
    attack = objective(method, "off").inner_attack(Ball("linf", 0.1), steps=10, step_size=0.025)
    start = attack.start(images, stream(0, "t"))
    moved = (start - images).abs().amax(dim=(1, 2, 3))
    assert (moved > 0).all()
    assert (moved > 0.01).all() == far
    assert (moved < 0.005).all() == (not far)


def test_the_step_of_guided_training() -> None:
    """From a corner of the half ball, one step of eps along the sign, back into the ball; both signs are drawn."""
    images = torch.full((50, 3, 4, 4), 0.5)
    images[0] = 0.0  # at the edge of the box, where half of the corners are outside
    attack = objective("guided", "off").one_step_attack(Ball("linf", 0.1))
    start = attack.start(images, stream(0, "t"))
    moved = (start - images)[1:]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.05))
    assert 0.45 < (moved > 0).float().mean() < 0.55
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    after = attack.ascend(lambda x: (x * weight).sum(dim=(1, 2, 3)), images, start)
    literal_step = (start + 0.1 * weight.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    torch.testing.assert_close(after, literal_step)
    assert not torch.equal(start, attack.start(images, stream(1, "t")))


def test_without_adversarial_images_nothing_is_crafted() -> None:
    images = torch.rand(4, 3, 2, 2)
    attack = objective("standard", "off").inner_attack(Ball("linf", 0.1), steps=10, step_size=0.025)
    start = attack.start(images, stream(0, "t"))
    assert torch.equal(attack.ascend(lambda x: x.sum(dim=(1, 2, 3)), images, start), images)


def test_two_views_are_augmented_apart_and_lie_one_after_the_other() -> None:
    from training.batches import TrainingBatches
    from training.data.cache import Split
    from training.streamed import StreamedSplit

    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    data = StreamedSplit(Split(images, np.arange(12)), torch.device("cpu"))
    batches = TrainingBatches(data, 6, 0, crop_padding=2, flip=True)
    one, labels = batches.batch(batches.order(1), 1, 0)
    two, doubled = batches.batch(batches.order(1), 1, 0, views=2)
    assert two.shape[0] == 12
    assert torch.equal(two[:6], one)
    assert not torch.equal(two[6:], one)
    assert torch.equal(doubled, labels.repeat(2))


def test_folded_attack_ignores_where_in_the_pair_the_mass_is() -> None:
    """Moving all mass from y to its dummy is a success for the paper's attack, nothing for the folded one."""
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.tensor([0]), epoch=1, step=0)
    on_original = torch.tensor([[9.0, 0, 0, 0, -9.0, -9, -9, -9]])
    on_dummy = torch.tensor([[-9.0, 0, 0, 0, 9.0, -9, -9, -9]])
    modes: list[Mode] = ["paper", "folded"]
    gains = {}
    for mode in modes:
        attack_loss = objective("pgd-at", mode).attack_loss
        gains[mode] = attack_loss(on_dummy, batch, None) - attack_loss(on_original, batch, None)
    assert gains["paper"] > 10
    assert gains["folded"].abs() < 1e-5


@pytest.mark.parametrize("method", ADVERSARIAL)
def test_losses_of_half_precision_logits_are_float32(method: str) -> None:
    class Half(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, : 2 * C].bfloat16()

    batch, adversarial = a_batch(torch.float32)
    loss = objective(method, "folded").loss(Half(), batch, adversarial)
    assert loss.dtype == torch.float32


def test_float32_losses_survive_extreme_logits() -> None:
    """A hundred logits apart: log(0) and 0 * inf lie in wait."""

    class Extreme(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sign = torch.where(torch.arange(2 * C) % 2 == 0, 100.0, -100.0)
            return images.flatten(1)[:, : 2 * C].float() * sign

    batch, adversarial = a_batch()
    modes: list[Mode] = ["paper", "folded"]
    for method, mode in itertools.product(ADVERSARIAL, modes):
        pixels = batch.images.clone().requires_grad_(True)
        loss = objective(method, mode).loss(Extreme(), replace(batch, images=pixels), adversarial)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite(), (method, mode)
        assert pixels.grad is None or pixels.grad.isfinite().all(), (method, mode)

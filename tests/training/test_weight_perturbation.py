"""Adversarial weight perturbation against the formula written down a second time, in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.training_runs import trainer
from training.weight_perturbation import WeightPerturbation

GAMMA = 0.05


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.norm(self.first(x)).tanh())
        return logits


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.arange(8) % 3


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return found


def literal(model: nn.Module) -> dict[str, Tensor]:
    """On copies: the gradient, weights moved by gamma |w| g / |g|, and the gradient there."""
    x, y = data()
    plain, moved = copy.deepcopy(model), copy.deepcopy(model)
    F.cross_entropy(plain(x), y).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for name, gradient in gradients(plain).items():
            if name in ("first.weight", "last.weight"):
                weight = moved.get_parameter(name)
                norms = weight.square().sum().sqrt(), gradient.square().sum().sqrt()
                weight.copy_(weight + GAMMA * norms[0] / norms[1] * gradient)
    F.cross_entropy(moved(x), y).backward()  # type: ignore[no-untyped-call]
    return gradients(moved)


def test_the_gradient_is_that_at_the_perturbed_weights() -> None:
    model = Tiny()
    x, y = data()
    expected = literal(model)
    before = F.cross_entropy(copy.deepcopy(model)(x), y).item()
    value = WeightPerturbation(model, GAMMA).backward([lambda: F.cross_entropy(model(x), y)])
    assert value.item() == pytest.approx(before, rel=1e-12)
    assert not value.requires_grad
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-13)


def test_weights_come_back_exactly_and_batchnorm_moves_once() -> None:
    model, once = Tiny(), Tiny()
    x, y = data()
    WeightPerturbation(model, GAMMA).backward([lambda: F.cross_entropy(model(x), y)])
    once(x)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, once.get_parameter(name)), name
    assert model.norm.num_batches_tracked == 1
    # Of the perturbed weights, so not those of the plain pass.
    assert not torch.equal(model.norm.get_buffer("running_mean"), once.norm.get_buffer("running_mean"))


def test_both_passes_drop_the_same() -> None:
    """Else the step up would be one of another loss than the one that is updated."""
    model, seen = nn.Sequential(Tiny(), nn.Dropout(0.5)), []
    model[1].register_forward_hook(lambda _module, _inputs, dropped: seen.append(dropped == 0))
    x, y = data()
    WeightPerturbation(model, GAMMA).backward([lambda: F.cross_entropy(model(x), y)] * 2)
    first, second = seen[:2], seen[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(*first)  # each portion draws its own


def test_an_interrupted_pass_leaves_the_weights_as_they_were() -> None:
    model, passes = Tiny(), iter(range(9))
    x, y = data()
    before = copy.deepcopy(model.state_dict())

    def loss() -> Tensor:
        if next(passes) == 1:
            raise KeyboardInterrupt
        return F.cross_entropy(model(x), y)

    with pytest.raises(KeyboardInterrupt):
        WeightPerturbation(model, GAMMA).backward([loss])
    assert all(
        torch.equal(value, before[name]) for name, value in model.state_dict().items() if "norm" not in name
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_of_training_takes_the_gradient_at_the_perturbed_weights(
    tmp_path: Path, precision: str
) -> None:
    """In bfloat16 as well, where autocast would go on with its copies of the weights as they were."""
    found = {}
    for gamma in (None, 0.2):
        subject = trainer(tmp_path / str(gamma), awp_gamma=gamma, precision=precision)
        subject.classifier.train()
        weight = subject.classifier.network.get_parameter("fc.weight")
        loss = subject.train_step(subject.batches.order(1), 1, 0)
        assert weight.grad is not None
        found[gamma] = loss.item(), weight.grad.clone()
    assert found[None][0] == found[0.2][0]
    difference = (found[None][1] - found[0.2][1]).norm() / found[None][1].norm()
    assert difference > 0.05

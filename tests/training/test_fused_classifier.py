"""The copy for crafting is the network itself, also where BatchNorm must not be folded into a convolution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ducat_serve.bundled import model_path
from ducat_serve.deployed import Deployed, load
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.output import Output
from tests.support.towers import SWITCH
from tests.support.training_runs import trainer
from training.distributed.processes import ProcessGroup
from training.evaluation.prepare import Request, prepare
from training.evaluation.settings import EvaluationSettings
from training.fused_classifier import FusedClassifier, fold_norms, fused_if_equal


class Net(nn.Module):
    """A convolution and a norm; ``kind`` says what is unusual about them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        conv: nn.Module = nn.Conv2d(3, 3, 3, padding=1)
        if kind == "parametrised":
            conv = nn.utils.parametrizations.spectral_norm(conv)
        if kind == "hook":
            conv = nn.utils.spectral_norm(conv)
        self.kind, self.conv = kind, conv
        self.norm, self.other = (nn.BatchNorm2d(3, affine=kind != "no weights") for _ in range(2))
        self.head = nn.Linear(3, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.conv(images)).relu()
        if self.kind == "shared convolution":
            x = self.other(self.conv(x)).relu()
        if self.kind == "weight read elsewhere":
            x = F.conv2d(x, self.conv.get_parameter("weight"))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def trained(network: nn.Module) -> nn.Module:
    """A few large steps, after which weights and statistics are no longer those of the beginning."""
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    network.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(torch.rand(16, 3, 8, 8)), torch.arange(16) % 4)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return network


@pytest.mark.parametrize(
    "kind",
    ["parametrised", "hook", "shared convolution", "no weights", "weight read elsewhere", "plain"],
)
def test_what_cannot_be_folded_is_not(kind: str) -> None:
    torch.manual_seed(0)
    network = Net(kind)
    state = torch.get_rng_state()
    fused = fused_if_equal(network, torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(state, torch.get_rng_state()), "the run's own random numbers"
    trained(network)
    fused.refresh()
    images = torch.rand(16, 3, 8, 8)
    torch.testing.assert_close(fused(images), network.eval()(images))
    is_folded = not any(isinstance(module, nn.BatchNorm2d) for module in fused.model.modules())
    assert is_folded == (kind == "plain")


@pytest.mark.parametrize("kind", ["parametrised", "hook", "shared convolution"])
def test_layers_that_no_fold_fits_are_seen_without_a_comparison(kind: str) -> None:
    torch.manual_seed(0)
    network = Net(kind)
    fused = FusedClassifier(network)
    trained(network)
    fused.refresh()
    images = torch.rand(16, 3, 8, 8)
    torch.testing.assert_close(fused(images), network.eval()(images))


def has_norms(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_model_is_attacked_without_its_norms() -> None:
    request = Request(
        model_path("digits-small", "safetensors"), EvaluationSettings(max_examples=50, device="cpu")
    )
    attacked = prepare(request, Output(), ProcessGroup(), torch.device("cpu")).subject
    model, images = load("digits-small"), attacked.data.images.float() / 255
    assert has_norms(model)
    assert not has_norms(attacked.model)
    assert attacked.model.spec == model.spec
    torch.testing.assert_close(attacked.model(images), model(images), rtol=0, atol=1e-4)


def test_training_attacks_a_model_without_its_norms(tmp_path: Path) -> None:
    """Of all of the classifier, which begins with a look at its images and with the normalisation."""
    subject = trainer(tmp_path / "run", network="resnet-small")
    assert has_norms(subject.classifier)
    assert isinstance(subject.step.fused, FusedClassifier)
    assert not has_norms(subject.step.fused.model)


def test_both_towers_lose_their_norms() -> None:
    models = [
        Deployed(TwoTowers(load("digits-small"), load("digits-small")), SWITCH).eval() for _ in range(2)
    ]
    folded, images = fold_norms(models[1]), torch.rand(16, 3, 8, 8)
    assert not has_norms(folded)
    torch.testing.assert_close(folded.classifier(images), models[0].classifier(images), rtol=0, atol=1e-4)

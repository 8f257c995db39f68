"""The arithmetic of a run: float32 as reports say, whatever the process had set, which comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter

import pytest
import torch
from torch import Tensor, nn

from ducat_serve import evaluate_model
from ducat_serve.output import Output
from ducat_serve.threat_model import ThreatModel
from training.device import exact_float32

NAMES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
EXACT = dict.fromkeys(NAMES, "ieee")


def precisions() -> dict[str, str]:
    return {name: attrgetter(name)(torch.backends).fp32_precision for name in NAMES}


def set_everywhere(precision: str) -> None:
    setattr(torch.backends, "fp32_precision", precision)  # noqa: B010 (its type stubs do not know it)


@pytest.fixture(autouse=True)
def _settings_come_back() -> Iterator[None]:
    before = precisions()
    yield
    set_everywhere("none")
    torch.set_float32_matmul_precision("highest")
    for name, precision in before.items():
        attrgetter(name)(torch.backends).fp32_precision = precision


def by_newer_settings() -> None:
    set_everywhere("tf32")


def by_older_settings() -> None:
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True


def nothing() -> None:
    pass


@pytest.mark.parametrize("set_up", [nothing, by_newer_settings, by_older_settings])
def test_float32_is_exact_and_the_settings_come_back(set_up: Callable[[], None]) -> None:
    set_up()
    before = precisions()
    with exact_float32():
        assert precisions() == EXACT
        # Torch's compiler reads these two, and torch refuses where they contradict the newer settings.
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert precisions() == before
    if set_up is by_older_settings:
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32


class Watched(nn.Module):
    """A linear model that notes the arithmetic in which it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        self.seen: list[dict[str, str]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(precisions())
        logits: Tensor = self.layers(images)
        return logits


def test_a_model_of_others_is_measured_in_exact_float32_within_a_callers_autocast() -> None:
    by_newer_settings()
    model = Watched().eval()
    images, labels = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])
    threat_model = ThreatModel(norm="linf", eps=0.1)

    def worst_case() -> float:
        output = Output(silent=True)
        return evaluate_model(
            model, images, labels, threat_model, attacks=("pgd",), output=output
        ).worst_case_accuracy

    expected = worst_case()
    with torch.autocast("cpu", torch.bfloat16):
        assert worst_case() == expected
    assert all(seen == EXACT for seen in model.seen)
    assert len(model.seen) > 10

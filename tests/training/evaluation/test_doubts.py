"""Models of others that answer, but about whose figures something is to be said, or that cannot be measured at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ducat_serve import Output, evaluate_model
from ducat_serve.cli.report_table import show_report
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.report import RobustnessReport, SanityCheck
from ducat_serve.threat_model import ThreatModel
from training.evaluation.state_digest import state_digest

THREAT = ThreatModel(norm="linf", eps=0.05)
COUNT = 40
LABELS = torch.arange(COUNT) % 2
# Class 1 is bright; the first pixel is black, where the gradient of a root is infinite.
IMAGES = (
    0.3
    + 0.4 * LABELS.view(-1, 1, 1, 1)
    + 0.1 * torch.rand(COUNT, 3, 4, 4, generator=torch.Generator().manual_seed(0))
)
IMAGES[:, :, 0, 0] = 0


class Bright(nn.Module):
    """Two classes by brightness, after ``change`` of the images."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda images: images) -> None:
        super().__init__()
        self.change = change
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, images: Tensor) -> Tensor:
        brightness = self.scale * (self.change(images).flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-brightness, brightness], dim=1)


def measured(
    model: nn.Module, images: Tensor = IMAGES, labels: Tensor = LABELS, **given: Any
) -> RobustnessReport:
    return evaluate_model(
        model.eval(), images, labels, THREAT, **{"attacks": "pgd", "output": Output(silent=True), **given}
    )


def doubts(report: RobustnessReport) -> str:
    return " ".join(report.doubts or ())


def test_of_an_honest_model_nothing_is_said() -> None:
    report = measured(Bright())
    assert not report.doubts
    assert report.clean_accuracy == 1


def test_a_defence_that_cannot_answer_where_a_gradient_is_asked_for_is_attacked_by_scores() -> None:
    """As JPEG or a purifier by numpy, of which every example on the web forgets `detach`."""
    through_numpy = Bright(lambda images: torch.from_numpy(images.cpu().numpy().copy()))
    report = measured(through_numpy, attacks=None)
    assert report.gradients == "none"
    assert [attack.name for attack in report.attacks] == ["square"]
    assert "no gradient: the model cannot answer where one is asked for (Can't call numpy()" in doubts(report)


def test_infinite_gradients_are_said() -> None:
    assert "gradients that are not finite: at 8 of 8" in doubts(measured(Bright(lambda images: images**0.5)))
    assert "not finite" not in doubts(measured(Bright(lambda images: (images + 1e-3) ** 0.5)))


@pytest.mark.parametrize(("shown", "is_said"), [(IMAGES, False), (255 * IMAGES, True)])
def test_a_model_on_another_scale_is_no_better_than_guessing(shown: Tensor, is_said: bool) -> None:
    """Of one that wants normalised pixels, or those from 0 to 255, all answers are one class."""
    wants = float(shown.max() / IMAGES.max())
    report = measured(Bright(lambda images: images / wants))
    assert ("no better than guessing: 20 of 40" in doubts(report)) == is_said


def test_of_few_images_nothing_is_said_of_guessing() -> None:
    report = measured(Bright(lambda images: images / 255), IMAGES[1:20], LABELS[1:20])
    assert report.clean_accuracy < 0.5
    assert "guessing" not in doubts(report)


class Fails(nn.Module):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, _images: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [AssertionError("Input height (4)"), KeyError("pixels"), AttributeError("size")]
)
def test_whatever_a_model_raises_is_told(error: Exception) -> None:
    with pytest.raises(
        UsageError, match=f"does not take images of 3 x 4 x 4: {type(error).__name__}"
    ) as caught:
        measured(Fails(error))
    assert "wrap it" in str(caught.value)


def test_what_a_server_says_is_not_the_models_fault() -> None:
    """A server is a module, too; its refusal has the right next step and exit code."""
    with pytest.raises(DucatError, match="429") as caught:
        measured(Fails(DucatError("The server answers 429.", "wait")))
    assert type(caught.value) is DucatError


def test_checks_that_passed_do_not_talk_a_doubt_away(capsys: pytest.CaptureFixture[str]) -> None:
    passed = SanityCheck(name="a check", expectation="holds", passed=True, figures={})
    report = measured(Bright()).model_copy(update={"sanity": (passed,)})
    show_report(report, None, Output())
    assert "All 1 sanity checks passed (no sign of gradient masking)" in capsys.readouterr().out
    show_report(report.model_copy(update={"doubts": ("random answers: each time",)}), None, Output())
    assert "All 1 sanity checks passed (but the doubts above stay)" in capsys.readouterr().out


def test_better_than_guessing_is_not_guessing() -> None:
    """14 of 20 right could be chance, but is not what guessing gives."""
    wrong = LABELS[:20].clone()
    wrong[:6] = 1 - wrong[:6]
    report = measured(Bright(), IMAGES[:20], wrong)
    assert report.clean_accuracy == pytest.approx(0.7)
    assert "guessing" not in doubts(report)


def test_memory_that_runs_out_is_not_the_models_fault() -> None:
    with pytest.raises(MemoryError):
        measured(Fails(MemoryError()))


def test_weights_of_another_arithmetic_are_told_what_to_do() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    with pytest.raises(UsageError, match=r"call model\.float\(\)"):
        measured(flat)


def test_weights_that_are_not_there_yet() -> None:
    with pytest.raises(UsageError, match="has no values yet"):
        measured(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)))


class Holding(Bright):
    """With more in its state_dict than dense tensors of float32."""

    def __init__(self, extra: object = None, buffer: Tensor | None = None) -> None:
        super().__init__()
        self.extra = extra
        self.register_buffer("held", buffer)

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    "holding",
    [
        lambda value: Holding({"a": [1, None, str(value)]}),
        lambda value: Holding((torch.tensor([value]),)),
        lambda value: Holding(buffer=torch.tensor([0, value]).to_sparse()),
        lambda value: Holding(buffer=torch.tensor([value]).to(torch.float8_e4m3fn)),
        lambda value: Holding(buffer=torch.quantize_per_tensor(torch.tensor([value]), 0.1, 0, torch.qint8)),
    ],
    ids=["extra state", "tensors in it", "sparse", "float8", "quantised"],
)
def test_all_that_a_state_dict_may_hold_is_in_the_digest(holding: Callable[[float], Holding]) -> None:
    assert measured(holding(1.0)).weights_digest == state_digest(holding(1.0)) != state_digest(holding(2.0))


def test_what_has_no_bytes_of_its_own_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="_extra_state, a object"):
        measured(Holding(object()))
    with pytest.raises(UsageError, match=r"held, a tensor of torch\.float32 on meta"):
        measured(Holding(buffer=torch.zeros(2, device="meta")))

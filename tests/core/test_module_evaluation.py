"""`ducat_serve.evaluate_model` from Python: what it refuses, and in which modes and arithmetic it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_overloads

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ducat_serve import Output, evaluate, evaluate_model
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.library.file_evaluation import evaluate_file
from ducat_serve.report import RobustnessReport
from ducat_serve.threat_model import ThreatModel
from training.evaluation.doubts import gradient_doubt

THREAT = ThreatModel(norm="linf", eps=0.02)
IMAGES = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1] * 6)


class Answering(nn.Module):
    """Two classes by the brightness of an image, or four columns where there are dummies, in some arithmetic."""

    def __init__(self, columns: int = 2, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.columns, self.dtype = columns, dtype
        self.layer = nn.Linear(12, columns)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 12 * columns).view(columns, 12))
            self.layer.bias.copy_(-self.layer(torch.full((1, 12), 0.5))[0])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits.to(self.dtype)


def measured(model: nn.Module, images: Tensor = IMAGES, **arguments: Any) -> RobustnessReport:
    """Under PGD alone; the labels are the model's own answers, so that clean accuracy is 1."""
    with torch.no_grad():
        labels = model(images.float()).unflatten(1, (-1, 2)).sum(1).argmax(1)
    given = {"attacks": "pgd", "output": Output(silent=True), **arguments}
    return evaluate_model(model, images, labels, THREAT, **given)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("model", len, "no torch.nn.Module"),
        ("images", IMAGES.numpy(), "images: ndarray is no tensor"),
        ("labels", [0, 1], "labels: list is no tensor"),
        ("labels", LABELS.unsqueeze(1), r"Labels must be int64 \[N\], not torch.int64 \[12, 1\]"),
        ("labels", LABELS.float(), "not torch.float32"),
        ("labels", LABELS.int(), "not torch.int32"),
        ("labels", LABELS.bool(), "not torch.bool"),
        ("labels", LABELS.to("meta"), "labels on meta"),
        ("threat_model", ("linf", 0.1), "no ThreatModel"),
        ("suite", None, "Unknown suite 'None'"),
        ("attacks", [], "names no attack"),
        ("attacks", "pdg", "Unknown attack 'pdg'"),
        ("fold", "LSE", "fold: 'LSE' is unknown"),
        ("lattice", "8 bit", "lattice: '8 bit' is unknown"),
        ("class_names", ["a", "a"], "the same name"),
        ("batch_size", -5, "batch_size: "),
        ("batch_size", 0, "batch_size: "),
        ("batch_size", 2.5, "batch_size: "),
        ("batch_size", True, "batch_size: "),
        ("batch_size", None, "batch_size: "),
        ("seed", 1.5, "seed: "),
        ("seed", None, "seed: "),
    ],
)
def test_arguments_that_make_no_sense_are_refused(argument: str, value: object, message: str) -> None:
    fitting = {"model": Answering().eval(), "images": IMAGES, "labels": LABELS, "threat_model": THREAT}
    given: dict[str, Any] = {**fitting, "output": Output(silent=True), argument: value}
    with pytest.raises(UsageError, match=message) as caught:
        evaluate_model(**given)
    assert caught.value.next_step


def test_evaluate_takes_a_module_as_the_command_does() -> None:
    model = Answering().eval()
    direct = evaluate_model(model, IMAGES, LABELS, THREAT, attacks="pgd", output=Output(silent=True))
    found = evaluate(model, IMAGES, LABELS, THREAT, attacks="pgd", output=Output(silent=True))
    assert found.model_copy(update={"seconds": 0, "attacks": (), "created": None}) == direct.model_copy(
        update={"seconds": 0, "attacks": (), "created": None}
    )
    assert [a.accuracy for a in found.attacks] == [a.accuracy for a in direct.attacks]
    with pytest.raises(UsageError, match="list is neither the path of a file nor a torch"):
        evaluate([model])  # type: ignore[call-overload]


def test_the_two_forms_of_evaluate_are_those_of_the_two_functions() -> None:
    forms = [inspect.signature(form) for form in get_overloads(evaluate)]
    assert forms == [inspect.signature(evaluate_model), inspect.signature(evaluate_file)]


def test_what_was_found_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    model, levels = Answering().eval(), (255 * IMAGES).round() / 255
    with pytest.raises(UsageError, match="not of 8 bits themselves"):
        measured(model, lattice="8bit")
    report = measured(
        model,
        levels,
        lattice="8bit",
        save_adversarial=tmp_path / "broken",
        per_image=str(tmp_path / "rows.csv"),
    )
    assert report.lattice == "8bit"
    kept = load_file(tmp_path / "broken" / "adversarial.safetensors")
    assert (kept["images"] - levels).abs().max() <= THREAT.eps + 1e-6
    assert torch.allclose(255 * kept["images"], (255 * kept["images"]).round(), atol=1e-3)
    fooled = model(kept["images"]).argmax(dim=1) != kept["labels"]
    assert fooled.tolist() == kept["fools"].tolist()
    assert fooled.float().mean() == pytest.approx(1 - report.worst_case_accuracy)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + len(IMAGES)
    with pytest.raises(DucatError, match="broken"):  # before an attack runs, not after
        measured(model, save_adversarial=tmp_path / "broken")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_in_other_arithmetic_are_measured_in_float32(
    dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    report = measured(Answering(dtype=dtype).eval(), output=Output())
    assert report.clean_accuracy == 1
    assert report.worst_case_accuracy < 1
    coarse = f"logits in {str(dtype).removeprefix('torch.')}"
    assert (coarse in capsys.readouterr().err) == (dtype != torch.float64)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_have_gradients_in_whatever_mode_it_is_called(
    mode: Callable[[], AbstractContextManager[object]],
) -> None:
    model = Answering().eval()
    expected = measured(model)
    with mode():
        found = measured(model, IMAGES.clone())
    assert [attack.name for attack in found.attacks] == ["pgd"]
    assert found.attacks[0].gradient_steps == expected.attacks[0].gradient_steps > 0
    assert found.worst_case_accuracy == expected.worst_case_accuracy < 1


def test_a_gradient_is_found_under_no_grad() -> None:
    with torch.no_grad():
        assert gradient_doubt(Answering().eval(), IMAGES) is None


def test_a_model_that_can_have_no_gradient_is_refused() -> None:
    with torch.inference_mode():
        model = Answering().eval()
    with pytest.raises(UsageError, match=r"made under torch\.inference_mode"):
        measured(model)


def test_the_report_says_how_dummies_were_folded() -> None:
    assert measured(Answering(4).eval(), fold="max").fold == "max"
    without = measured(Answering().eval())
    assert without.fold is None
    assert "fold" not in without.model_dump(mode="json")


def test_repeated_images_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    levels = torch.from_numpy(np.arange(144, dtype=np.uint8).reshape(12, 3, 2, 2))
    measured(Answering().eval(), levels, output=Output())
    assert "repeated images" not in capsys.readouterr().err
    measured(Answering().eval(), torch.cat([levels, levels[:5]]), output=Output())
    assert "repeated images: 5 of 17 are the same as another one" in capsys.readouterr().err

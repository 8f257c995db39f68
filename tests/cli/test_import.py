"""`ducat import`: a network that others have trained becomes a checkpoint like every other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import shufflenet_v2_x0_5

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec
from ducat_serve.cli.main import run
from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec
from tests.support.image_folders import write_colours
from training.data import load_dataset

NETS = """
import torch
from ducat_serve import load

def make():
    return load("digits-small")  # pixels in [0, 1] to ten logits, as anybody's network would be

class Rolled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = make()

    def forward(self, images):
        return self.model(images).roll(1, dims=1)

def fresh():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of somebody's own."""
    folder = tmp_path_factory.mktemp("nets")
    (folder / "imported_nets.py").write_text(NETS)
    return folder


def of(nets: Path, factory: str = "make") -> list[str]:
    return ["import", f"imported_nets:{factory}", "--import-from", str(nets), "--dataset", "digits"]


def test_it_is_measured_exported_and_asked_like_our_own(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "model.safetensors"
    assert run([*of(nets), "--eps", "0.2", "--out", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    spec = read_spec(target)
    assert spec.is_imported
    assert document["weights_digest"] == spec.weights_digest
    assert document["val_images"] == 145
    assert document["val_accuracy"] > 0.9
    assert (spec.num_logits, spec.image_size, str(spec.threat_model)) == (10, (8, 8), "linf 0.2")
    assert spec.data_digest is None
    assert spec.command is None
    assert str(nets) not in spec.to_json()

    own = ["--network", "imported_nets:make", "--import-from", str(nets)]
    assert run(["evaluate", str(target), *own, "--attack", "pgd", "--max-examples", "19"]) == 0
    assert "seed that chose its val images" in capsys.readouterr().err.replace("\n", " ")
    assert run(["export", str(target), *own]) == 0
    images = load_dataset("digits").test.images[:100]
    original = Predictor(model_path("digits-small", "onnx"), "cpu", 1)(images)
    answer = Predictor(target.with_name("model.onnx"), "cpu", 1)(images)
    np.testing.assert_allclose(answer.logits, original.logits, atol=1e-4)

    card = target.with_name("model.md").read_text()
    assert "Trained by others, and imported" in card
    assert "pgd-at" not in card
    capsys.readouterr()
    assert run(["inspect", str(target)]) == 0
    said = capsys.readouterr().out
    assert "imported: trained by others" in said
    assert "trained on" not in said


def test_a_file_as_robustbench_publishes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(tmp_path / "photos", size=40)
    torch.manual_seed(5)
    weights = shufflenet_v2_x0_5(num_classes=3).state_dict()
    file = {f"module.model.{name}": tensor for name, tensor in weights.items()}
    file |= {"module.normalize.mean": torch.full((1, 3, 1, 1), 0.5)}
    file |= {"module.normalize.std": torch.full((1, 3, 1, 1), 0.25)}
    torch.save({"state_dict": file}, tmp_path / "robust.pth")
    target = tmp_path / "model.safetensors"
    arguments = ["import", "torchvision:shufflenet_v2_x0_5", "--dataset", f"folder:{tmp_path / 'photos'}"]
    arguments += [
        "--image-size",
        "32",
        "--pretrained",
        str(tmp_path / "robust.pth"),
        "--pretrained-licence",
        "MIT",
    ]
    assert run([*arguments, "--out", str(target)]) == 0
    assert f"--dataset folder:{tmp_path / 'photos'}" in capsys.readouterr().err.replace("\n", " ")
    spec, tensors = read_checkpoint(target)
    assert spec.normalisation.mean == (0.5, 0.5, 0.5)
    assert set(tensors) == set(weights)
    assert all(torch.equal(torch.from_numpy(tensors[name]), tensor) for name, tensor in weights.items())
    assert spec.recipe["pretrained"] == "robust.pth"
    assert spec.recipe["pretrained_licence"] == "MIT"
    assert str(tmp_path) not in spec.to_json()

    torch.save(shufflenet_v2_x0_5(num_classes=4).state_dict(), tmp_path / "robust.pth")
    other = tmp_path / "other.safetensors"
    assert run([*arguments, "--out", str(other)]) == 2
    assert "does not fit the 3 classes" in capsys.readouterr().err.replace("\n", " ")
    assert not other.exists()


def test_classes_in_another_order_are_noticed(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*of(nets, "Rolled"), "--out", str(tmp_path / "m.safetensors")]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "hardly more than chance" in said
    assert "in another order than 0, 1, 2" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "imported_nets:fresh"], "brings no weights for '1.weight'"),
        (["import", "torchvision:resnet18"], "has no weights yet"),
        (["import", "resnet-small"], "is a network of ours"),
        (
            ["import", "torchvision:resnet81"],
            "Unknown network of torchvision 'resnet81'. Did you mean 'resnet1",
        ),
    ],
)
def test_what_cannot_be_imported(
    nets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    target = tmp_path / "m.safetensors"
    more = ["--dataset", "digits", "--import-from", str(nets), "--out", str(target)]
    assert run([*arguments, *more]) == 2
    assert words in capsys.readouterr().err.replace("\n", " ")
    assert not target.exists()


def test_a_checkpoint_that_is_there_stays(
    nets: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.read_bytes()
    assert run([*of(nets), "--out", str(checkpoint)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


def test_only_what_says_so_is_imported(checkpoint: Path) -> None:
    spec = read_spec(checkpoint)
    assert not spec.is_imported
    again = ModelSpec.from_json(
        spec.model_copy(update={"training": {"recipe": {"method": "imported"}}}).to_json(), "x"
    )
    assert again.is_imported

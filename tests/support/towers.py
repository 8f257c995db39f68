"""Two-tower models without a training: towers of a few lines, and checkpoints of untrained networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.deployed import Deployed, build_classifier, load, numpy_weights
from ducat_serve.networks.allowed import allow
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.spec import ModelSpec, Normalisation, Switch
from ducat_serve.threat_model import ThreatModel
from export.onnx_writer import export_onnx
from tests.support import tiny_network
from training.mixture.build import Fitted, write_mixture
from training.mixture.dial import Setting

SWITCH = Switch(scale=4, power=1, shift=0, threshold=0.2)


class Patches(nn.Module):
    """One logit for each class: the mean of one row of pixels, times ``gain``.

    A large gain answers by tiny differences, as accurate and fragile networks do.
    """

    def __init__(self, classes: int, gain: float) -> None:
        super().__init__()
        self.classes, self.gain = classes, gain

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, channels, H, W] with H at least the number of classes, to logits [N, classes]."""
        return self.gain * images.mean(dim=(1, 3))[:, : self.classes]


def two_patches(classes: int = 4, switch: Switch = SWITCH) -> Deployed:
    """A fragile tower and the same one with a small gain, behind a switch."""
    towers = TwoTowers(Patches(classes, 50.0), Patches(classes, 5.0))
    return Deployed(towers, switch).eval()


def rows_of(labels: Tensor, contrast: Tensor, classes: int = 4) -> Tensor:
    """Grey images [N, 1, classes, 4] whose row ``label`` is brighter by ``contrast`` [N]."""
    images = torch.full((len(labels), 1, classes, 4), 0.5)
    images[torch.arange(len(labels)), :, labels] += contrast.view(-1, 1, 1)
    return images


def exported_towers(folder: Path) -> None:
    """`model.safetensors` and `model.onnx`: the bundled robust model for digits behind a tower that knows nothing.

    So the robust tower overrules it often.
    """
    standard = load(tower_checkpoint(folder / "standard.safetensors"))
    switch = Switch(scale=3, power=1, shift=0, threshold=0.3)
    fitted = Fitted(Setting(switch, 0.5, 0.5), "--give-up 2", 100, 0.9, 0.5, 0.1, None)
    write_mixture(standard, load("digits-small"), fitted, folder / "model.safetensors")
    export_onnx(folder / "model.safetensors", folder / "model.onnx")


def tower_checkpoint(path: Path, *, seed: int = 0, **changes: object) -> Path:
    """A checkpoint with fresh weights for digits, as `ducat train` would have written it."""
    allow(tiny_network.NAME)
    spec = ModelSpec(
        network=tiny_network.NAME,
        num_classes=10,
        labels=tuple("0123456789"),
        channels=3,
        image_size=(8, 8),
        normalisation=Normalisation(mean=(0.3,) * 3, std=(0.4,) * 3),
        fold="none",
        threat_model=ThreatModel(norm="linf", eps=0.1),
        training={"recipe": {"dataset": "digits", "seed": 0}, "data": "digits"},
        weights_digest="",
    ).model_copy(update=changes)
    torch.manual_seed(seed)
    tensors = numpy_weights(build_classifier(spec))
    write_checkpoint(path, tensors, spec.model_copy(update={"weights_digest": weights_digest(tensors)}))
    return path

"""The models that the serving benchmark serves: random weights, 10 classes, 32x32 pixels. Nothing is trained.

Speed does not depend on what a network has learnt. BatchNorm's statistics are set from the benchmark's own images, so
that answers differ from image to image and a mixed-up answer shows.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.networks import create_network
from ducat_serve.spec import ModelSpec, Normalisation
from ducat_serve.threat_model import ThreatModel
from export.onnx_writer import export_onnx
from serving.uploads import pictures

CLASSES, SIZE = 10, (32, 32)


def make_model(network: str, folder: Path) -> Path:
    """Export ``network`` with random weights to FOLDER/NETWORK.onnx, by the code that `ducat export` runs."""
    target = folder / f"{network}.onnx"
    if target.exists():
        return target
    torch.manual_seed(0)
    module = create_network(network, channels=3, image_size=SIZE, outputs=2 * CLASSES)
    images = torch.from_numpy(pictures(256, SIZE)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None  # the mean over all batches seen
        module.train()(images)
        module.eval()
        outputs = module(images)
        # Every class is the answer to some image: the head's outputs have mean 0 and deviation 1 over the images.
        head = next(layer for layer in reversed(list(module.modules())) if isinstance(layer, torch.nn.Linear))
        deviation = outputs.std(dim=0)
        head.weight /= deviation[:, None]
        head.bias.copy_((head.bias - outputs.mean(dim=0)) / deviation)
    tensors = {name: tensor.contiguous().numpy() for name, tensor in module.state_dict().items()}
    spec = ModelSpec(
        network=network,
        num_classes=CLASSES,
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        channels=3,
        image_size=SIZE,
        normalisation=Normalisation(mean=(0.0,) * 3, std=(1.0,) * 3),
        fold="max",
        threat_model=ThreatModel(norm="linf", eps=8 / 255),
        training={},
        weights_digest=weights_digest(tensors),
    )
    checkpoint = folder / f"{network}.safetensors"
    write_checkpoint(checkpoint, tensors, spec)
    export_onnx(checkpoint, target)
    return target

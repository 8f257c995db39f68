"""Checkpoints without a training: untrained weights, and whatever a ModelSpec can say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ducat_serve.checkpoint import weights_digest
from ducat_serve.deployed import build_classifier, numpy_weights
from ducat_serve.spec import METADATA_KEY, ModelSpec, Normalisation
from ducat_serve.threat_model import ThreatModel

Weights = dict[str, NDArray[Any]]

SPEC = ModelSpec(
    network="resnet-small",
    num_classes=2,
    labels=("cat", "dog"),
    channels=3,
    image_size=(8, 8),
    normalisation=Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3),
    fold="none",
    threat_model=ThreatModel(norm="linf", eps=0.1),
    training={},
    weights_digest="",
)


def untrained(spec: ModelSpec = SPEC) -> Weights:
    """Fresh weights of the network of ``spec``."""
    return numpy_weights(build_classifier(spec))


def forged(path: Path, weights: Weights, **changes: object) -> Path:
    """Write a file of `SPEC` with ``changes`` whose digests are right, as those of a forger are."""
    spec = SPEC.model_copy(update={"weights_digest": weights_digest(weights), **changes})
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in weights.items()}
    path.write_bytes(save(contiguous, metadata={METADATA_KEY: spec.to_json()}))
    return path

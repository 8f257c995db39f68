"""An int8 model without a training: the bundled digits model, given dummies, so that its file has a fold."""

from __future__ import annotations

from pathlib import Path

import torch

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, weights_digest, write_checkpoint
from ducat_serve.pairs import widen_head


def digits_with_dummies(path: Path) -> Path:
    """A checkpoint that decides as digits-small does, by the max-fold of 20 logits; with that model's report."""
    spec, tensors = read_checkpoint(model_path("digits-small", "safetensors"))
    weight, bias = (torch.from_numpy(tensors[f"fc.{name}"].copy()) for name in ("weight", "bias"))
    wide = widen_head(weight, bias)
    tensors = {**tensors, "fc.weight": wide[0].numpy(), "fc.bias": wide[1].numpy()}
    digest = weights_digest(tensors)
    assert spec.robustness is not None
    report = spec.robustness.model_copy(update={"weights_digest": digest})
    changed = spec.model_copy(update={"fold": "max", "robustness": report, "weights_digest": digest})
    write_checkpoint(path, tensors, changed)
    return path

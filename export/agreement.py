"""The gate of int8 files: another function than the checkpoint's, so it states how often the two agree.

Equality cannot be asked for, as `export.parity` asks it of float32. What is asked: the file does not contradict itself,
this CPU computes what the file says, and on real images its classes are mostly those of the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ducat_serve.deployed import Classifier
from ducat_serve.errors import VerificationError
from ducat_serve.pairs import fold_logits
from ducat_serve.predictor import Predictions, Predictor
from export.parity import Images, in_batches, to_pixels

# cifar10-small agrees on 99.0 % (docs/performance/int8.md); below this something is broken.
LEAST_AGREEMENT = 0.9
# The graph as it is written, in float32 with every rounding, and the integer kernels: they differ in a few roundings.
LEAST_SELF_AGREEMENT = 0.98
_BATCH = 100


@dataclass(frozen=True)
class Agreement:
    """How an int8 file compares with its float32 checkpoint on ``images`` images of the model's data set.

    ``same_class`` is the share of them that both give the same class, ``same_here`` the share on which this CPU's
    integer kernels give the class that the graph says in float32. ``logit_difference`` is the mean absolute difference
    from the checkpoint's logits.
    """

    images: int
    same_class: float
    same_here: float
    logit_difference: float


def check_agreement(onnx_file: Path, raw: Classifier, real: Images) -> Agreement:
    """Compare an int8 file with its checkpoint.

    Args:
        onnx_file: the file to check, on the CPU.
        raw: the float32 model as ``load(..., folded=False)``.
        real: at least one image of the model's data set, uint8 [N, H, W, channels].

    Raises:
        VerificationError: an answer is not a number, or ``label`` is not the argmax of ``logits`` on some image; less
            than `LEAST_SELF_AGREEMENT` of the classes are those of the same graph in float32 (sums overflow on this
            CPU), or less than `LEAST_AGREEMENT` are the checkpoint's.
    """
    found = all_answers(Predictor(onnx_file, device="cpu"), real)
    written = all_answers(Predictor(onnx_file, device="cpu", optimised=False), real)
    expected = _torch_logits(raw, real)
    if not (np.isfinite(found.logits).all() and np.isfinite(found.dummy_mass).all()):
        raise VerificationError(
            "The int8 model answers NaN or infinity. No file was written.",
            "export it with --precision float32",
        )
    contradictions = int((found.label != found.logits.argmax(axis=1)).sum())
    if contradictions:
        raise VerificationError(
            f"On {contradictions} of {len(real)} images the int8 model's label is not the best of its logits. No file "
            "was written.",
            "run `ducat doctor`, and report this with the checkpoint's digest",
        )
    same_here = float((found.label == written.label).mean())
    if same_here < LEAST_SELF_AGREEMENT:
        raise VerificationError(
            f"This CPU gives only {same_here:.1%} of {len(real)} images the class that the int8 graph says: its sums "
            "overflow. No file was written.",
            "export it with --precision float32",
        )
    same_class = float((found.label == expected.argmax(axis=1)).mean())
    if same_class < LEAST_AGREEMENT:
        raise VerificationError(
            f"The int8 model agrees with its checkpoint on only {same_class:.1%} of {len(real)} images; "
            f"{LEAST_AGREEMENT:.0%} are asked for. No file was written.",
            "export it with --precision float32 or float16",
        )
    difference = float(np.abs(found.logits - expected).mean())
    return Agreement(len(real), same_class, same_here, difference)


def all_answers(predictor: Predictor, images: Images) -> Predictions:
    """What a file answers to any number of images, at least one."""
    parts = [predictor(batch) for batch in in_batches(images, _BATCH)]
    return Predictions(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@torch.no_grad()
def _torch_logits(raw: Classifier, images: Images) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The checkpoint's folded logits, [N, C]."""
    parts = [fold_logits(raw(to_pixels(batch)), raw.spec.fold) for batch in in_batches(images, _BATCH)]
    return torch.cat(parts).numpy()

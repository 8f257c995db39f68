"""The parity gate: the exported file must compute what torch computes, or it is not kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ducat_serve.deployed import Classifier
from ducat_serve.errors import VerificationError
from ducat_serve.pairs import fold_logits, mass_on_dummies, recover, split_pairs
from ducat_serve.predictor import Predictor
from ducat_serve.spec import Switch
from ducat_serve.switch import switch_bounds

BATCH_SIZES = (1, 2, 7)
# Two correct implementations differ by rounding in the order of sums, in proportion to the logits. float16 is
# compared with float32: it rounds at 2^-11 in every layer.
RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
# Logits that cancel out to less than this still carry the rounding of the features that they were summed from.
LEAST_LOGIT = 1.0

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class ParityReport:
    """Largest differences between torch and ONNX Runtime over ``images`` images.

    ``undecided`` of them are so close to a decision that rounding may turn it: where two classes are equally good, or a
    two-tower model's switch or its standard tower is about to change. Their labels are not compared; where the standard
    tower may answer either of two classes, the logits are not either.
    """

    images: int
    real_images: int
    max_logit_difference: float
    max_mass_difference: float
    labels_compared: int
    undecided: int = 0


def check_parity(onnx_file: Path, raw: Classifier, real: Images | None = None) -> ParityReport:
    """Compare an exported file with torch on black, white, random, smooth, real and adversarial images.

    Args:
        onnx_file: the file to check, on the CPU.
        raw: the same model as ``load(..., folded=False)``.
        real: uint8 images [N, H, W, channels] of the model's data set, checked too where given.

    Raises:
        VerificationError: a logit or dummy mass differs by more than the tolerance (1e-4 of the largest logit,
            at least 1e-4; in float16 200 times that), or a label differs where the margin between the two best
            logits exceeds twice that. Or it exceeds that nowhere, so that no label could be compared. Of a two-tower
            model the tolerance is that of its towers' logits, and what the switch makes of it.
    """
    predictor = Predictor(onnx_file, device="cpu", threads=1)
    relative = RELATIVE_TOLERANCE[predictor.spec.precision]
    logit_difference = mass_difference = 0.0
    images_checked = real_images = labels_compared = 0
    for name, images in _probes(raw, real):
        expected = _torch_answer(raw, images, relative)
        logits, mass = expected.logits, expected.mass
        answer = predictor(images)
        if not all(np.isfinite(part).all() for part in (logits, mass, answer.logits, answer.dummy_mass)):
            raise VerificationError(
                f"Parity check failed on {name} images: NaN or infinite outputs. No file was written.",
                "train the model again; its weights are of no use",
            )
        standing, decided = expected.standing, expected.decided
        logits_off = _largest(np.abs(answer.logits - logits)[standing])
        beyond = _largest(np.maximum(expected.low - answer.logits, answer.logits - expected.high)[standing])
        # Which tower answers turns with the label.
        compared = decided if isinstance(raw.spec.fold, Switch) else standing
        mass_off = _largest(np.abs(answer.dummy_mass - mass)[compared])
        wrong = int((answer.label != expected.labels)[decided].sum())
        consistent = bool((answer.label == answer.logits.argmax(axis=1)).all())
        if not (beyond == 0 and mass_off <= expected.tolerance and wrong == 0 and consistent):
            raise VerificationError(
                f"Parity check failed on {name} images (batch {len(images)}): logits differ by up to "
                f"{logits_off:.2g}, {beyond:.2g} more than rounding explains, dummy mass by {mass_off:.2g} "
                f"(tolerance {expected.tolerance:.0e}), {wrong} labels differ. No file was written.",
                "run `ducat doctor`, and report this with the checkpoint's digest",
            )
        logit_difference = max(logit_difference, logits_off)
        mass_difference = max(mass_difference, mass_off)
        images_checked += len(images)
        real_images += len(images) if name == "real" else 0
        labels_compared += int(decided.sum())
    if labels_compared == 0:
        raise VerificationError(
            f"Parity check failed: on none of {images_checked} images does the model prefer a class by more than "
            "rounding may turn, so no label could be compared. No file was written.",
            "train the model again; its logits tell no class from another",
        )
    undecided = images_checked - labels_compared
    return ParityReport(
        images_checked, real_images, logit_difference, mass_difference, labels_compared, undecided
    )


def _largest(differences: NDArray[np.float32]) -> float:
    return float(differences.max(initial=0.0))


def _probes(raw: Classifier, real: Images | None) -> Iterator[tuple[str, Images]]:
    height, width = raw.spec.image_size
    generator = np.random.default_rng(0)
    for size in BATCH_SIZES:
        shape = (size, height, width, raw.spec.channels)
        yield "all-0", np.zeros(shape, np.uint8)
        yield "all-255", np.full(shape, 255, np.uint8)
        noise = generator.integers(0, 256, shape, dtype=np.uint8)
        yield "random", noise
        smooth = _smooth(generator, shape)
        yield "smooth", smooth
        some = None if real is None else real[generator.choice(len(real), size, replace=len(real) < size)]
        yield "adversarial", _adversarial(raw, smooth if some is None else some)
    for batch in [] if real is None else in_batches(real, max(BATCH_SIZES)):
        yield "real", batch


def in_batches(images: Images, size: int) -> Iterator[Images]:
    """All of ``images``, ``size`` at a time; the last batch may be smaller."""
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _smooth(generator: np.random.Generator, shape: tuple[int, ...]) -> Images:
    """Images with the spectrum of natural ones: coarse noise, enlarged."""
    count, height, width, channels = shape
    coarse = torch.from_numpy(generator.random((count, channels, 4, 4), dtype=np.float32))
    large = F.interpolate(coarse, size=(height, width), mode="bilinear")
    result: Images = (large * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return result


def _adversarial(raw: Classifier, images: Images) -> Images:
    """One large gradient-sign step away from the predicted label: images near decision boundaries."""
    pixels = to_pixels(images).requires_grad_(True)
    logits = fold_logits(raw(pixels), raw.spec.fold)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(dim=1)), pixels)
    moved = (pixels.detach() + raw.spec.threat_model.eps * gradient.sign()).clamp(0, 1)
    result: Images = (moved * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return result


class _Expected(NamedTuple):
    """What torch answers to N images, and how far rounding may take a file from it.

    Logits, and the least and largest that rounding makes of them, are [N, C], the others [N]. An image is ``standing``
    unless rounding may turn its standard tower's class, and ``decided`` unless it may turn its own. ``tolerance`` is
    for the mass on dummies.
    """

    logits: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    labels: NDArray[np.int64]
    mass: NDArray[np.float32]
    standing: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    tolerance: float


@torch.no_grad()
def _torch_answer(raw: Classifier, images: Images, relative: float) -> _Expected:
    unfolded, fold = raw(to_pixels(images)), raw.spec.fold
    logits, mass = fold_logits(unfolded, fold), mass_on_dummies(unfolded, fold)
    # The paper's rule, computed without the fold: an independent check of what the graph calls `label`.
    labels = recover(unfolded) if fold == "max" else logits.argmax(dim=1)
    if isinstance(fold, Switch):
        # The towers round in proportion to their own logits; those of the switch are log probabilities of another size.
        standard, robust = split_pairs(unfolded)
        low, high = switch_bounds(standard, robust, fold, _tolerance(robust, relative))
        slack = RELATIVE_TOLERANCE["float32"] * logits.abs().clamp_min(LEAST_LOGIT)  # of the switch itself
        low, high = low - slack, high + slack
        # A standard tower that is torn between two classes may pass either of them to the switch.
        standing = _margin(standard) > 2 * _tolerance(standard, relative)
        tolerance = relative
    else:
        tolerance = _tolerance(logits, relative)
        low, high = logits - tolerance, logits + tolerance
        standing = torch.ones(len(logits), dtype=torch.bool)
    label = logits.argmax(dim=1, keepdim=True)
    others = high.scatter(1, label, -torch.inf).amax(dim=1)
    decided = standing & (low.gather(1, label).squeeze(1) > others)
    return _Expected(
        logits.numpy(),
        low.numpy(),
        high.numpy(),
        labels.numpy(),
        mass.numpy(),
        standing.numpy(),
        decided.numpy(),
        tolerance,
    )


def _tolerance(logits: torch.Tensor, relative: float) -> float:
    return relative * max(LEAST_LOGIT, logits.abs().max().item())


def _margin(logits: torch.Tensor) -> torch.Tensor:
    best = logits.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def to_pixels(images: Images) -> torch.Tensor:
    """Images as a network takes them: float [N, channels, H, W] in [0, 1]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255

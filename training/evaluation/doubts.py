"""What about a model of others, or its images, makes its figures doubtful; each has a name that is said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ducat_serve.errors import DucatError, UsageError
from training.evaluation.state_digest import state_digest
from training.memory import is_out_of_memory

_ENOUGH = 20  # images to tell a model from guessing
_AT_A_TIME = 8  # images, so that none is too many for the memory
_SAME = 1e-4  # relative: what float32 arithmetic in another order may change


@dataclass(frozen=True)
class Doubt:
    """Something about a model or its images that makes its figures doubtful."""

    name: str
    explanation: str

    def __str__(self) -> str:
        return f"{self.name}: {self.explanation}"


def repeated_images(images: Tensor) -> list[Doubt]:
    """Whether some of the images [N, channels, H, W] are the same as others."""
    different = {hashlib.sha256(image.tobytes()).digest() for image in images.detach().cpu().numpy()}
    repeated = len(images) - len(different)
    if repeated == 0:
        return []
    return [
        Doubt(
            "repeated images",
            f"{repeated} of {len(images)} are the same as another one. Intervals take images for independent, and so "
            "are too narrow",
        )
    ]


def gradient_doubt(model: nn.Module, images: Tensor) -> Doubt | None:
    """Why attacks cannot follow the gradient of the logits for ``images`` (float [N, channels, H, W]); None: they can.

    A gradient of 0 is one. The model has answered these images before, without a gradient.
    """
    images = images.detach().requires_grad_(True)
    try:
        with torch.enable_grad():
            answers: Tensor = model(images)
            if (
                answers.requires_grad
                and torch.autograd.grad(answers.sum(), images, allow_unused=True)[0] is not None
            ):
                return None
    except DucatError:
        raise
    except Exception as error:  # it is somebody else's code, and may raise anything
        if is_out_of_memory(error):
            raise
        return _no_gradient(f"the model cannot answer where one is asked for ({_first_line(error)})")
    return _no_gradient("the model's answers do not depend differentiably on its images")


def _no_gradient(why: str) -> Doubt:
    return Doubt(
        "no gradient",
        f"{why}. Only attacks by scores are run, which find less than attacks on a differentiable copy would",
    )


def infinite_gradients(model: nn.Module, images: Tensor) -> list[Doubt]:
    """Whether the gradient for some of ``images`` [N, channels, H, W] is not finite, as that of a root is at 0."""
    infinite = 0
    for image in torch.split(images.detach(), 1):  # one at a time, so that none is too many for the memory
        image.requires_grad_(True)
        with torch.enable_grad():
            gradient = torch.autograd.grad(model(image).sum(), image)[0]
        infinite += not bool(gradient.isfinite().all())
    if infinite == 0:
        return []
    return [
        Doubt(
            "gradients that are not finite",
            f"at {infinite} of {len(images)} clean images. Attacks take 0 in their place, and so miss what these "
            "pixels would do",
        )
    ]


def guessing(model: nn.Module, images: Tensor, labels: Tensor, classes: int) -> list[Doubt]:
    """Whether no more of ``images`` [N, channels, H, W] are right than guessing gives; nothing is said of few."""
    if len(images) < _ENOUGH:
        return []
    answers = torch.cat([model(part).argmax(dim=1) for part in torch.split(images, _AT_A_TIME)])
    right = int((answers == labels).sum())
    if right > len(images) / classes:
        return []
    return [
        Doubt(
            "no better than guessing",
            f"{right} of {len(images)} clean images are right, of {classes} classes. See that it is trained, has its "
            "classes in this order and takes pixels in [0, 1]",
        )
    ]


@torch.no_grad()
def doubts(model: nn.Module, images: Tensor) -> list[Doubt]:
    """What about the model's answers to ``images`` (float [N, channels, H, W]) makes figures doubtful.

    Raises UsageError where its state_dict changes while it answers: what is measured would be another model each time.
    """
    before = state_digest(model)
    answers = model(images).nan_to_num()  # NaN equals nothing, not even itself; it is refused later
    found = []
    again = model(images).nan_to_num()
    if state_digest(model) != before:
        raise UsageError(
            "The model changes its own state_dict while it answers, even in eval mode.",
            "stop what is updated there (running statistics, counters), or measure a frozen copy",
        )
    if not torch.equal(answers, again):
        found.append(
            Doubt(
                "random answers",
                "the same images get other logits each time. Attacks here take one answer for the truth; an attack on "
                "the expectation would find more",
            )
        )
    elif not _close(torch.cat([model(image.unsqueeze(0)) for image in images]).nan_to_num(), answers):
        found.append(
            Doubt(
                "answers that depend on the batch", "an image alone gets other logits than among other images"
            )
        )
    sums = answers.sum(dim=1)
    if answers.min() >= 0 and answers.max() <= 1 and _close(sums, torch.ones_like(sums)):
        found.append(
            Doubt(
                "probabilities in the place of logits",
                "they saturate, and gradients vanish where the model is sure; return what goes into its softmax",
            )
        )
    return found


def _close(a: Tensor, b: Tensor) -> bool:
    scale = b.abs().max().clamp_min(1e-12)
    return bool(((a - b).abs().max() / scale) <= _SAME)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

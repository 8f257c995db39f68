"""What about a model of others, or its images, makes its figures doubtful; each has a name that is said."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ducat_serve.checkpoint import weights_digest
from ducat_serve.errors import UsageError

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


def has_gradient(model: nn.Module, images: Tensor) -> bool:
    """Whether logits have a gradient for ``images`` (float [N, channels, H, W]), be it 0."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        answers: Tensor = model(images)
        if not answers.requires_grad:
            return False
        return torch.autograd.grad(answers.sum(), images, allow_unused=True)[0] is not None


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


def state_digest(model: nn.Module) -> str:
    """SHA-256 of the state_dict, in hexadecimal; bfloat16 counts as float32."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        tensors[name] = (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
    return weights_digest(tensors)


def _close(a: Tensor, b: Tensor) -> bool:
    scale = b.abs().max().clamp_min(1e-12)
    return bool(((a - b).abs().max() / scale) <= _SAME)

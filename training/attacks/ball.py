"""Perturbation balls: where an attack may go, and which way is steepest.

Images are float32 [N, channels, H, W] in [0, 1]; eps and step sizes are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ducat_serve.errors import UsageError
from ducat_serve.threat_model import Norm, ThreatModel

# Share of coordinates that one l1 step moves; steepest l1 ascent moves one pixel and is far too slow
# (sparse l1 descent: Tramer and Boneh 2019, "Adversarial training and robustness for multiple perturbations").
_L1_SPARSITY = 0.01
# Largest rounding error of one float32 pixel in [0, 1].
_PIXEL_ROUNDING = 2.0**-24
_BISECTIONS = 40
_LEVEL_ROUNDING = 1e-4  # of a grey level: how far a whole number of levels may be off in float32
_TINY = torch.finfo(torch.float32).tiny


def largest_eps(norm: Norm, pixels: int) -> float:
    """The radius around any image that holds every other image of ``pixels`` values in [0, 1]."""
    return {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]


def require_size(what: str, size: float, norm: Norm, pixels: int) -> None:
    """Raise UsageError where ``size`` is larger than the difference of any two images: it was meant in grey levels.

    Args:
        what: what is of this size, for the message: "eps".
        pixels: values of an image, over all channels.
    """
    largest = largest_eps(norm, pixels)
    if size > largest:
        raise UsageError(
            f"{what} {size:g} in {norm} is larger than any difference of two images ({largest:g}); it is in pixels "
            "of [0, 1].",
            "write 8/255 for eight grey levels",
        )


def require_linf_size(what: str, size: float, norm: Norm) -> None:
    """The same where no image is known yet; only in linf no image need be."""
    if norm == "linf":
        require_size(what, size, norm, 1)


@dataclass(frozen=True)
class Ball:
    """All images within ``eps`` of an image in ``norm``, and inside [0, 1].

    ``eight_bit`` leaves only those whose every value is a multiple of 1/255 (as the image's own must be): what
    can be sent to an exported model.
    """

    norm: Norm
    eps: float
    eight_bit: bool = False

    @classmethod
    def of(cls, threat_model: ThreatModel, *, eight_bit: bool = False) -> Ball:
        """The ball of a threat model."""
        return cls(threat_model.norm, threat_model.eps, eight_bit)

    def random_start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random point of the ball around each image (uniform for linf and l2), clamped to [0, 1]."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=images.device, dtype=images.dtype)

        if self.norm == "linf":
            return self.project(images, images + (2 * uniform(*images.shape) - 1) * self.eps)
        dimensions = images[0].numel()
        radius = self.eps * uniform(len(images), 1, 1, 1) ** (1 / dimensions)
        if self.norm == "l2":
            direction = torch.randn(
                images.shape, generator=generator, device=images.device, dtype=images.dtype
            )
            direction = direction / _norm(direction, 2)
        else:
            signs = uniform(*images.shape) - 0.5
            direction = signs.sign() * -uniform(*images.shape).clamp_min(1e-12).log()
            direction = direction / _norm(direction, 1)
        return self.project(images, images + radius * direction)

    def ascend(
        self,
        images: Tensor,
        gradient: Tensor,
        step_size: float | Tensor,
        sparsity: float | Tensor = _L1_SPARSITY,
    ) -> Tensor:
        """Move ``images`` by ``step_size`` (in this norm; a number or [N, 1, 1, 1]) in the steepest direction.

        ``sparsity`` (a number or [N]) is the share of pixels that an l1 step moves.
        """
        if self.norm == "linf":
            size = torch.as_tensor(step_size, device=images.device, dtype=images.dtype)
            # Less than half a level would be rounded back to where it began.
            return images + (size.clamp_min(1 / 255) if self.eight_bit else size) * gradient.sign()
        if self.norm == "l2":
            # Largest value first: a saturated loss has gradients so small that their squares vanish.
            scaled = gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(_TINY)
            return images + step_size * scaled / _norm(scaled, 2).clamp_min(_TINY)
        # A pixel already at its bound cannot move further that way; spend the step where it counts.
        blocked = ((images >= 1) & (gradient > 0)) | ((images <= 0) & (gradient < 0))
        size = gradient.abs().masked_fill(blocked, 0).flatten(1)
        count = (torch.as_tensor(sparsity, device=size.device) * size.shape[1]).round().long().clamp_min(1)
        ranked = size.sort(dim=1, descending=True).values
        smallest = ranked.gather(1, (count - 1).expand(len(size)).unsqueeze(1))
        chosen = (size >= smallest) & (size > 0)
        step = gradient.flatten(1).sign() * chosen / chosen.sum(dim=1, keepdim=True).clamp_min(1)
        return images + step_size * step.view_as(images)

    def project(self, images: Tensor, candidates: Tensor) -> Tensor:
        """The nearest point of the ball around ``images`` (for l1 and l2: projected, then clamped to [0, 1])."""
        inside = self._project(images, candidates)
        if not self.eight_bit:
            return inside
        levels = 255 * (inside - images)
        if self.norm == "linf":
            most = math.floor(255 * self.eps + _LEVEL_ROUNDING)  # 8/255 less rounding is still 8 levels
            return (images + levels.round().clamp(-most, most) / 255).clamp(0, 1)
        largest = 255 * self.eps + _LEVEL_ROUNDING
        return (images + _whole_levels(levels, 2 if self.norm == "l2" else 1, largest) / 255).clamp(0, 1)

    def levels(self, images: Tensor, candidates: Tensor) -> Tensor:
        """The nearest images of 8 bits in the ball around ``images``, uint8 [N, channels, H, W]."""
        nearest = replace(self, eight_bit=True).project(images, candidates)
        return (255 * nearest).round().byte()

    def _project(self, images: Tensor, candidates: Tensor) -> Tensor:
        eps = self._inner_radius(images)
        if self.norm == "linf":
            return candidates.clamp(min=images - eps, max=images + eps).clamp(0, 1)
        delta = candidates - images
        if self.norm == "l2":
            delta = delta * (eps / _norm(delta, 2).clamp_min(1e-12)).clamp_max(1)
        else:
            delta = _project_l1_box(delta, images, eps)
        # Clamping only moves pixels towards the original ones, so the result stays inside the ball.
        return (images + delta).clamp(0, 1)

    def _inner_radius(self, images: Tensor) -> float:
        """A radius so much smaller than eps that rounding each pixel cannot leave the ball."""
        if self.eight_bit:  # what comes out are whole levels, which are counted
            return self.eps
        rounding = largest_eps(self.norm, images[0].numel()) * _PIXEL_ROUNDING
        return max(0.0, self.eps * (1 - 1e-6) - rounding)


def distance(images: Tensor, candidates: Tensor, norm: Norm) -> Tensor:
    """Distance between image pairs in ``norm``, float [N]."""
    delta = (candidates - images).flatten(1)
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}[norm]
    result: Tensor = torch.linalg.vector_norm(delta, order, dim=1)
    return result


def _norm(values: Tensor, order: int) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(values, order, dim=(1, 2, 3), keepdim=True)
    return result


def _whole_levels(levels: Tensor, order: int, largest: float) -> Tensor:
    """Changes in grey levels [N, ...] as whole numbers, no longer in the norm of ``order`` than they were.

    Values are rounded up from one remainder on, the smallest for each image with which its norm does not grow. Rounding
    each to the nearest would lose a step of less than half a level in every pixel, and with it the whole attack.
    """
    nearest = levels.round()
    size = torch.where((levels - nearest).abs() < _LEVEL_ROUNDING, nearest, levels).abs()
    most = (_norm(size, order) + _LEVEL_ROUNDING).clamp_max(largest)
    low = torch.zeros_like(most)
    high = torch.full_like(most, 1 - _LEVEL_ROUNDING)
    for _ in range(_BISECTIONS // 2):
        middle = (low + high) / 2
        fits = _norm((size + middle).floor(), order) <= most
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return levels.sign() * (size + low).floor()


def _project_l1_box(delta: Tensor, images: Tensor, eps: float) -> Tensor:
    """Euclidean projection onto the l1 ball and the pixel box at once (Croce and Hein 2021, arXiv 2103.01208, eq. 4).

    The nearest point is ``clip(sign(u) max(|u| - t, 0))`` for one t per image. The l1 norm falls with t, so t is found
    by bisection; the end that is inside is taken. Projecting onto one set after the other would waste budget.
    """
    low = torch.zeros(len(delta), 1, 1, 1, device=delta.device, dtype=delta.dtype)
    high = delta.abs().amax(dim=(1, 2, 3), keepdim=True)

    def at(threshold: Tensor) -> Tensor:
        shrunk = delta.sign() * (delta.abs() - threshold).clamp_min(0)
        return torch.minimum(torch.maximum(shrunk, -images), 1 - images)

    inside = _norm(at(low), 1) <= eps
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        too_far = _norm(at(middle), 1) > eps
        low, high = torch.where(too_far, middle, low), torch.where(too_far, high, middle)
    return at(torch.where(inside, torch.zeros_like(high), high))

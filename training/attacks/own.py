"""An attack of the user's own: a function, as those of other libraries are easily made to be."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ducat_serve.errors import DucatError, UsageError
from ducat_serve.threat_model import ThreatModel
from training.attacks.ball import distance, largest_eps
from training.attacks.base import Attack, Settings, Task
from training.attacks.frozen import frozen
from training.memory import is_out_of_memory

# The deployed function, images float32 [N, channels, H, W], labels int64 [N] and the threat model, to images in the
# ball around them.
AttackFunction = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]

# How far float32 arithmetic may leave the ball: relative to eps, and of every pixel. What lies there is projected.
_ROUNDING = 1e-5
_PIXEL_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class OwnAttack(Attack):
    """What a function finds. It may follow gradients of the model or of a stand-in, or ask for scores only.

    An image that it cannot break it may leave as it is. Global random numbers of torch are seeded for each batch.
    """

    needs_gradient: ClassVar[bool] = False  # it may bring its own
    function: AttackFunction

    @property
    def name(self) -> str:
        """With a beginning that no attack of ours has, so that nobody takes it for one."""
        function = _bare(self.function)
        return f"own:{getattr(function, '__qualname__', type(function).__qualname__).split('<locals>.')[-1]}"

    def settings(self) -> Settings:
        return {}

    def __call__(self, task: Task) -> Tensor:
        """Raises UsageError where the function fails or returns anything but images in the ball."""
        ball, images = task.ball, task.images
        before = _versions(task.model)
        found = self._found(task)
        if _versions(task.model) != before:
            raise UsageError(
                f"{self.name} changed the model, so that it is another one now.", "have it work on a copy"
            )
        if not isinstance(found, Tensor) or found.shape != images.shape:
            kind = f"a tensor of {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{self.name} returned {kind}, not images {list(images.shape)}.")
        found = found.detach().to(images)
        if not bool(((found >= 0) & (found <= 1)).all()):
            raise UsageError(
                f"{self.name} returned pixels outside of [0, 1], or NaN.",
                "have it clamp its images to [0, 1]",
            )
        furthest = float(distance(images, found, ball.norm).max())
        rounding = _PIXEL_ROUNDING * largest_eps(ball.norm, images[0].numel())
        if furthest > ball.eps * (1 + _ROUNDING) + rounding:
            raise UsageError(
                f"{self.name} returned an image at a distance of {furthest:.6g} in {ball.norm}; eps is {ball.eps:.6g}.",
                "have it project its images onto the ball",
            )
        return ball.project(images, found)

    def _found(self, task: Task) -> Any:
        threat_model = ThreatModel(norm=task.ball.norm, eps=task.ball.eps)
        try:
            with frozen(task.model), torch.enable_grad():
                return self.function(task.model, task.images.clone(), task.labels.clone(), threat_model)
        except DucatError:
            raise
        except Exception as error:  # it is somebody else's code, and may raise anything
            if is_out_of_memory(error):  # which a smaller batch may mend
                raise
            place = _place(error, self.function)
            raise UsageError(f"{self.name} failed{place}: {type(error).__name__}: {error}.") from error


def _place(error: Exception, function: AttackFunction) -> str:
    """Where in the file of the function, since those of torch are no help; nothing where that cannot be told."""
    bare = _bare(function)
    code = getattr(bare, "__code__", None) or getattr(type(bare).__call__, "__code__", None)
    file = getattr(code, "co_filename", None)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {frames[-1].lineno})" if frames else ""


def _bare(function: AttackFunction) -> Any:
    return function.func if isinstance(function, partial) else function


def _versions(model: nn.Module) -> list[int]:
    """How often each weight was written to."""
    return [tensor._version for tensor in (*model.parameters(), *model.buffers())]

"""The reference AutoAttack (Croce and Hein 2020; PyPI `pyautoattack`, MIT) on the deployed function."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ducat_serve.errors import missing_extra
from training.attacks.base import Attack, TargetModel, Task
from training.attacks.frozen import frozen

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack standard: APGD-CE, targeted APGD, targeted FAB, Square with 5,000 queries.

    It knows one criterion only, a wrong decision, and only what the model returns: C logits. Targets are the 9 best
    classes, or all where there are fewer.

    Args:
        version: "standard", or the names of its attacks.
    """

    name: ClassVar[str] = "autoattack"
    version: str = "standard"

    def fitted(self, target: TargetModel) -> Self:
        """Below 4 classes targeted DLR is not defined: FAB is untargeted, and there is no targeted APGD."""
        return self if target.num_classes >= 4 else replace(self, version="apgd-ce, fab, square")

    def __call__(self, task: Task) -> Tensor:
        """Raises DucatError where `pyautoattack` is not installed."""
        model, images, ball = task.model, task.images, task.ball
        try:
            import pyautoattack
        except ImportError as error:
            raise missing_extra("pyautoattack", "train") from error

        standard = self.version == "standard"
        chosen = {} if standard else {"version": "custom", "attacks": self.version.split(", ")}
        # It seeds the global generators, and takes away the trace function of debuggers and coverage.
        with frozen(model), torch.random.fork_rng(), _trace_function_kept():
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            seed = task.generator.initial_seed() % 2**31
            attack = pyautoattack.AutoAttack(
                model, norm=_NORMS[ball.norm], eps=ball.eps, seed=seed, device=images.device, **chosen
            )
            attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, classes - 1)
            attack.fab.n_target_classes = min(attack.fab.n_target_classes, classes - 1)
            # Its `view` calls need contiguous images.
            found, _ = attack.run_standard_evaluation(
                images.contiguous(), task.labels, batch_size=len(images)
            )
        return ball.project(images, found.detach())


@contextlib.contextmanager
def _trace_function_kept() -> Iterator[None]:
    before = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(before)

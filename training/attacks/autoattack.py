"""The reference AutoAttack (Croce and Hein 2020; PyPI `pyautoattack`, MIT) on the deployed function."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.errors import missing_extra
from training.attacks.ball import Ball
from training.attacks.criteria import Criterion
from training.attacks.frozen import frozen

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def autoattack(
    model: Deployed,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    criterion: Criterion,  # noqa: ARG001 (it knows one only)
    *,
    generator: torch.Generator,
) -> Tensor:
    """AutoAttack standard: APGD-CE, targeted APGD, targeted FAB, Square with 5,000 queries.

    It knows one criterion only, a wrong decision, and only what the model returns: C logits. Below 4 classes,
    where targeted DLR is not defined, FAB is untargeted and there is no targeted APGD. Targets are the 9 best
    classes, or all where there are fewer.

    Raises:
        DucatError: `pyautoattack` is not installed.
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise missing_extra("pyautoattack", "train") from error

    # It seeds the global generators, and takes away the trace function of debuggers and coverage.
    with frozen(model), torch.random.fork_rng(), _trace_function_kept():
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        few = {"version": "custom", "attacks": ["apgd-ce", "fab", "square"]} if classes < 4 else {}
        seed = generator.initial_seed() % 2**31
        attack = AutoAttack(
            model, norm=_NORMS[ball.norm], eps=ball.eps, seed=seed, device=images.device, **few
        )
        attack.apgd_targeted.n_target_classes = min(attack.apgd_targeted.n_target_classes, classes - 1)
        attack.fab.n_target_classes = min(attack.fab.n_target_classes, classes - 1)
        # Its `view` calls need contiguous images.
        found, _ = attack.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
    return ball.project(images, found.detach())


@contextlib.contextmanager
def _trace_function_kept() -> Iterator[None]:
    before = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(before)

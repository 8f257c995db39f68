"""Adversarial weight perturbation (Wu, Xia and Wang 2020, arXiv 2004.05884, algorithm 1).

The update takes its gradient not at the weights but a step up the loss from them: each weight tensor w moves by
``gamma * |w| * g / |g|``, with its gradient g and Euclidean norms. Then the weights are put back and updated.
Tensors of one dimension (biases, BatchNorm) stay, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.randomness import generators_kept

_TINY = 1e-20


def backward(losses: Sequence[Callable[[], Tensor]]) -> Tensor:
    """Add the gradient of a sum of losses to ``.grad``, holding one graph at a time; returns the sum."""
    total: Tensor | None = None
    for loss in losses:
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        total = value.detach() if total is None else total + value.detach()
    assert total is not None
    return total


class WeightPerturbation:
    """Perturbs the weights of ``module`` by ``gamma`` of the norm of each tensor."""

    def __init__(self, module: nn.Module, gamma: float) -> None:
        self.module, self.gamma = module, gamma

    def backward(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Leave the gradient at the perturbed weights in ``.grad``; returns the loss at the weights as they are.

        Args:
            losses: whose sum is the objective's loss. Each computes a scalar, is called twice, and must read the
                weights anew each time: autocast keeps copies of them in bfloat16 until its context ends.

        The weights come back bit for bit. BatchNorm statistics move once, in the second pass, as by a plain update.
        Both passes draw the same random numbers: with other masks of dropout, the step up would be of another loss.
        """
        self.module.zero_grad(set_to_none=True)
        device = next(self.module.parameters()).device
        with self._buffers_kept(), generators_kept(device):
            value = backward(losses)
        with self._perturbed():
            self.module.zero_grad(set_to_none=True)
            backward(losses)
        return value

    @contextmanager
    @torch.no_grad()
    def _buffers_kept(self) -> Iterator[None]:
        kept = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        with torch.enable_grad():
            yield
        for buffer, before in kept:
            buffer.copy_(before)

    @contextmanager
    @torch.no_grad()
    def _perturbed(self) -> Iterator[None]:
        weights = [w for w in self.module.parameters() if w.ndim > 1 and w.grad is not None]
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            assert weight.grad is not None
            length = self.gamma * weight.norm() / (weight.grad.norm() + _TINY)
            weight.add_(length * weight.grad)
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)

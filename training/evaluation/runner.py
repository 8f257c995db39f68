"""Runs an attack over examples: batches, progress, one random stream per batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.attacks.ball import Ball
from training.attacks.base import Attack
from training.attacks.criteria import Criterion
from training.batches import DeviceSplit, to_pixels
from training.evaluation.effort import Batches
from training.randomness import stream

Saw = Callable[[Tensor, Tensor], None]  # examples int64 [B] and the images that an attack made of them


@dataclass(frozen=True)
class Runner:
    """A model and the images that it is attacked on."""

    model: Deployed
    data: DeviceSplit
    ball: Ball
    seed: int
    batches: Batches
    output: Output

    def attack(
        self,
        name: str,
        attack: Attack,
        index: Tensor,
        criterion: Criterion,
        saw: Saw,
        *,
        model: Deployed | None = None,
        ball: Ball | None = None,
    ) -> None:
        """Attack the examples ``index`` and show every batch of results to ``saw``.

        Args:
            name: names the random stream, so an attack's result does not depend on those before it.
            model, ball: in place of the runner's own.
        """
        with self.output.progress(name, len(index)) as advance:

            def work(start: int, batch: Tensor) -> None:
                images, labels = to_pixels(self.data.images[batch]), self.data.labels[batch]
                generator = stream(self.seed, name, start, device=labels.device)
                found = attack(
                    model or self.model, images, labels, ball or self.ball, criterion, generator=generator
                )
                saw(batch, found)
                advance(len(batch))

            self.batches.over(index, work)

    def everything(self) -> Tensor:
        """The indices of all examples, int64 [N]."""
        return torch.arange(len(self.data), device=self.data.labels.device)

    @torch.no_grad()
    def raw_logits(self, data: DeviceSplit | None = None) -> Tensor:
        """Raw logits of the clean images, [N, 2C] or [N, C]."""
        data = data or self.data
        parts: list[Tensor] = []
        index = torch.arange(len(data), device=data.labels.device)
        self.batches.over(
            index, lambda _, batch: parts.append(self.model.classifier(to_pixels(data.images[batch])))
        )
        return torch.cat(parts)

    def sample(self, purpose: str, among: Tensor, count: int) -> Tensor:
        """At most ``count`` of the examples ``among`` (bool [N]), drawn with the runner's seed, in order."""
        index = among.nonzero().squeeze(1)
        order = torch.randperm(len(index), generator=stream(self.seed, "sample", purpose))[:count]
        return index[order.sort().values.to(index.device)]

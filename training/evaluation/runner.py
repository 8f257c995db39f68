"""Runs an attack over examples: in batches that shrink when memory runs out, with its work counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.attacks.ball import Ball
from training.attacks.base import Attack, Task
from training.attacks.criteria import Criterion
from training.batches import DeviceSplit, to_pixels
from training.distributed.processes import ProcessGroup
from training.memory import is_out_of_memory
from training.randomness import stream, torch_seeded

T = TypeVar("T")


BATCH = 256  # images at a time where nobody says otherwise and they are small


@dataclass
class Batches:
    """Runs work over examples in batches of ``size``; out of memory halves it, for good.

    Several processes deal out whole batches. So a batch holds the same examples, and draws the same random numbers,
    however many they are.
    """

    size: int
    output: Output
    processes: ProcessGroup = field(default_factory=ProcessGroup)
    # The size of the batches that are dealt out, whatever fits into memory here.
    _dealt: int = field(init=False)

    def __post_init__(self) -> None:
        self._dealt = self.size

    def over(self, index: Tensor, work: Callable[[int, Tensor], T]) -> list[T]:
        """The results of ``work(start, batch)`` for consecutive batches of ``index``, in every process.

        After ``work`` ran out of memory it is called again, with fewer examples. With several processes, results have
        their tensors on the CPU.

        Raises:
            torch.OutOfMemoryError or what the runtime raises: not even one example fits.
        """
        rank, size = self.processes.rank, self.processes.size
        if size == 1:
            return self._own(index, work, 0)
        dealt = range(0, len(index), self._dealt)
        mine = {
            start: self._own(index[start : start + self._dealt], work, start) for start in dealt[rank::size]
        }
        self.processes.meet()  # the last batch of a slow attack may take one process hours
        results = {start: found for part in self.processes.gather(mine) for start, found in part.items()}
        return [result for start in dealt for result in results[start]]

    def _own(self, index: Tensor, work: Callable[[int, Tensor], T], offset: int) -> list[T]:
        results: list[T] = []
        start = 0
        while start < len(index):
            batch = index[start : start + self.size]
            try:
                results.append(work(offset + start, batch))
            except Exception as error:  # ONNX Runtime's are no RuntimeErrors
                if not is_out_of_memory(error) or self.size == 1:
                    raise
                self._halve(len(batch))
            else:
                start += len(batch)
        return results

    def _halve(self, tried: int) -> None:
        self.size = max(1, min(self.size, tried) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.output.warn(f"out of memory with {tried} images at once; going on with --batch-size {self.size}")


class _Found(NamedTuple):
    """What an attack made of a batch; ``shown`` only where there are other processes whose onlookers are to see it."""

    raw: Tensor
    shown: tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Onlooker:
    """Who is told of each batch that was attacked.

    Args:
        see: takes the examples, the images that were found, and their raw logits.
        most: of how many images of a batch it is told, those that meet the criterion first; None: of all.
    """

    see: Callable[[Tensor, Tensor, Tensor], None]
    most: int | None = None


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
        onlooker: Onlooker | None = None,
    ) -> Tensor:
        """Attack the examples ``index`` (int64 [M]).

        Args:
            name: names the random stream. What was drawn for an example also depends on which others are attacked.
            onlooker: told of the images in this process; they come to it from all others.

        Returns the raw logits, [M, 2C] or [M, C], of the images that the attack found, in the order of ``index``.
        """
        with self.output.progress(name, len(index)) as advance:

            def work(start: int, batch: Tensor) -> _Found:
                images, labels = to_pixels(self.data.images[batch]), self.data.labels[batch]
                generator = stream(self.seed, name, start, device=labels.device)
                with torch_seeded(labels.device, self.seed, name, "model", start):  # for models that draw
                    found = attack(Task(self.model, images, labels, self.ball, criterion, generator))
                    with torch.no_grad():
                        raw: Tensor = self.model.classifier(found)
                advance(len(batch))
                if onlooker is None:
                    return _Found(self._portable(raw), None)
                met = criterion(raw, labels).to(torch.int8)
                rows = met.argsort(descending=True, stable=True)[: onlooker.most]
                shown = (batch[rows], found.detach()[rows], raw[rows])
                if self._is_alone:
                    onlooker.see(*shown)
                    return _Found(raw, None)
                return _Found(raw.cpu(), tuple(part.cpu() for part in shown))

            parts = self.batches.over(index, work)
        device = self.data.labels.device
        for part in parts:
            if onlooker is not None and part.shown is not None:
                onlooker.see(*(tensor.to(device) for tensor in part.shown))
        return torch.cat([part.raw for part in parts]).to(device) if parts else self.clean_logits[:0]

    @property
    def _is_alone(self) -> bool:
        return self.batches.processes.size == 1

    def _portable(self, tensor: Tensor) -> Tensor:
        """As other processes can read it."""
        return tensor if self._is_alone else tensor.cpu()

    @cached_property
    def clean_logits(self) -> Tensor:
        """Raw logits of the clean images, [N, 2C] or [N, C]."""
        return self.raw_logits(self.data)

    @torch.no_grad()
    def raw_logits(self, data: DeviceSplit) -> Tensor:
        """Raw logits of images as they are, [N, 2C] or [N, C]."""

        def work(start: int, batch: Tensor) -> Tensor:
            with torch_seeded(data.labels.device, self.seed, "model", start):
                return self._portable(self.model.classifier(to_pixels(data.images[batch])))

        index = torch.arange(len(data), device=data.labels.device)
        return torch.cat(self.batches.over(index, work)).to(data.labels.device)

    def sample(self, purpose: str, among: Tensor, count: int) -> Tensor:
        """At most ``count`` of the examples ``among`` (bool [N]), drawn with the runner's seed, in order."""
        index = among.nonzero().squeeze(1)
        order = torch.randperm(len(index), generator=stream(self.seed, "sample", purpose))[:count]
        return index[order.sort().values.to(index.device)]


@dataclass
class Cost:
    """What attacks asked of a model, counted in images."""

    gradient_steps: int = 0
    forward_passes: int = 0  # without a gradient

    def of_all(self, processes: ProcessGroup) -> Cost:
        """What all processes asked together."""
        costs = processes.gather(self)
        return Cost(sum(c.gradient_steps for c in costs), sum(c.forward_passes for c in costs))


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[Cost]:
    """Count the images that go through ``model`` inside, with a gradient and without."""
    cost = Cost()

    def count(_module: nn.Module, inputs: tuple[Any, ...], _outputs: Any) -> None:
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            cost.gradient_steps += len(inputs[0])
        else:
            cost.forward_passes += len(inputs[0])

    handle = model.register_forward_hook(count)
    try:
        yield cost
    finally:
        handle.remove()

"""The processes that train or evaluate one model together, one per device; a run on its own is a group of one.

Every process draws the randomness of the whole batch and then takes its part, so the number of processes changes
the speed of a run and not what it computes (BatchNorm apart: its batch statistics are those of a process's part
on CPUs, and of the whole batch on GPUs).
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import Store
from torch.nn.parallel import DistributedDataParallel

from ducat_serve.errors import DucatError
from training.distributed.environment import launched

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=30)  # the longest that one process waits for the others in a step
_POLL_SECONDS = 0.1
# A thread of gloo drops the tensors of the last operation a moment after we have its result, and needs the interpreter
# for that. Where this has ended meanwhile, the thread aborts the process (seen with torch 2.14).
_LAST_MOMENT = 0.5  # seconds
_ARRIVED = "arrived"  # in the store: how many processes have come to a meeting, all meetings together


@dataclass(frozen=True)
class ProcessGroup:
    """Process ``rank`` of ``size``, and process ``local_rank`` of its machine. Only rank 0 writes files and prints."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: torch.device) -> ProcessGroup:
        """Meet the other processes if torchrun or `--devices` started this one.

        Raises:
            DucatError: they cannot be reached.
        """
        if not launched():
            return cls()
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if size == 1:
            return cls()
        try:
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise DucatError(
                f"Process {rank} of {size} cannot reach the others: {error}.",
                "check MASTER_ADDR and MASTER_PORT, or start it with torchrun (docs/scaling.md)",
            ) from error
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", rank)))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's part of ``count`` things; parts differ by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def portions(self, count: int, number: int) -> list[slice]:
        """This process's part in ``number`` portions, which differ by one at most."""
        part = self.part(count)
        mine = part.stop - part.start
        ends = [part.start + mine * place // number for place in range(number + 1)]
        return [slice(*both) for both in itertools.pairwise(ends)]

    def weight(self, portion: slice, count: int) -> float:
        """What a mean over a portion is multiplied by, so that their sum, averaged over processes, is that of all."""
        share: float = (portion.stop - portion.start) * self.size / count
        return share

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """``module`` with gradients averaged over all processes in its backward pass; buffers are left to `average`."""
        if self.size == 1:
            return module
        devices = [device.index] if device.type == "cuda" else None
        # Else each forward pass would begin with the first one's buffers, and its statistics alone would count.
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)

    @staticmethod
    def exchanging(module: nn.Module, *, now: bool) -> AbstractContextManager[None]:
        """Around a forward pass of what `wrap` returned: unless ``now``, its gradients stay in this process.

        They are added up there, and averaged with those of the next pass whose gradients are exchanged.
        """
        if now or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        alone: AbstractContextManager[None] = module.no_sync()
        return alone

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device of ``values``."""
        if self.size == 1:
            return values
        summed = values.to(self._device())
        distributed.all_reduce(summed)
        return summed.to(values.device)

    def agree(self, flag: int) -> int:
        """The largest flag of any process; all get the same answer."""
        if self.size == 1:
            return flag
        value = torch.tensor([flag], device=self._device())
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return int(value.item())

    @staticmethod
    def _device() -> torch.device:
        """Where tensors must be that processes exchange: NCCL knows GPUs alone."""
        return torch.device("cuda" if distributed.get_backend() == "nccl" else "cpu")

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their mean over all processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            if tensor.is_floating_point():
                distributed.all_reduce(tensor)
                tensor /= self.size

    def gather(self, mine: T) -> list[T]:
        """What every process has, by rank; all get the same list. Tensors must be on the CPU."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, mine)
        return found

    def shared(self, value: T) -> T:
        """What the first process has, in every process. Tensors must be on the CPU."""
        if self.size == 1:
            return value
        holder: list[Any] = [value]
        distributed.broadcast_object_list(holder, src=0)
        shared: T = holder[0]
        return shared

    def first_alone(self, work: Callable[[], T]) -> T:
        """Do the work in the first process of each machine, then in the others, who find what it left on disk.

        They wait as long as it takes: decoding a large data set takes hours.
        """
        if self.local_rank == 0:
            result = work()
            self.meet()
            return result
        self.meet()
        return work()

    def meet(self) -> None:
        """Until every process is here; unlike `wait` without a limit, since no collective operation waits."""
        if self.size == 1:
            return
        store = _store()
        arrived = store.add(_ARRIVED, 1)
        all_of_this_time = -(-arrived // self.size) * self.size
        while store.add(_ARRIVED, 0) < all_of_this_time:
            time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Until every process is here."""
        self.agree(0)

    def was_lost(self, error: Exception) -> bool:
        """Whether an error says that another process is gone."""
        backend = any(word in str(error).lower() for word in ("gloo", "nccl"))
        return self.size > 1 and (backend or isinstance(error, distributed.DistError))

    def leave(self) -> None:
        """Close the connections; the group is of no further use."""
        if self.size > 1:
            distributed.destroy_process_group()
            time.sleep(_LAST_MOMENT)


def _store() -> Store:
    """Where the processes tell each other how far they are. Kept by nobody: at its end a process must let it go."""
    group = distributed.group.WORLD
    assert group is not None
    store: Store = group.get_group_store()
    return store


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """The group of this process, which is left at the end. Raises what `ProcessGroup.join` does."""
    processes = ProcessGroup.join(device)
    try:
        yield processes
    finally:
        processes.leave()


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process, where it shares a machine with others."""
    if device.type == "cuda" and launched():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device

"""What processes of one group share without a collective operation, or on which device they do."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from ducat_serve.output import Output
from training.distributed.processes import ProcessGroup
from training.evaluation.runner import Batches

T = TypeVar("T")


def test_others_wait_for_the_first_of_their_machine_without_a_collective_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which would give up after half an hour, while a first decoding may take hours. Two machines, of two processes."""
    store, order = HashStore(), SimpleQueue[str]()
    monkeypatch.setattr("training.distributed.processes._store", lambda: store)

    def process(rank: int) -> str:
        group = ProcessGroup(rank, 4, local_rank=rank % 2)

        def work() -> str:
            if group.local_rank == 0:
                time.sleep(0.3 * (1 + rank))
            order.put("first" if group.local_rank == 0 else "other")
            return f"by {rank}"

        return group.first_alone(work)

    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(process, range(4))) == ["by 0", "by 1", "by 2", "by 3"]
        assert [order.get() for _ in range(4)] == ["first", "first", "other", "other"]
    assert ProcessGroup().first_alone(lambda: 1) == 1


def test_the_last_batch_of_a_slow_attack_is_waited_for_without_a_collective_operation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of which has a limit, and an attack may take one process hours longer than the others."""
    store, ended = HashStore(), SimpleQueue[str]()
    monkeypatch.setattr("training.distributed.processes._store", lambda: store)

    class Gathers(ProcessGroup):
        def gather(self, mine: T) -> list[T]:
            ended.put("gathers")
            return [mine]

    def process(rank: int) -> None:
        def work(_start: int, _batch: torch.Tensor) -> None:
            time.sleep(0.5 * rank)
            ended.put("attacked")

        with suppress(KeyError):  # what the other process found is not there
            Batches(1, Output(), Gathers(rank, 2)).over(torch.arange(2), work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(process, range(2)))
    assert [ended.get() for _ in range(4)] == ["attacked", "attacked", "gathers", "gathers"]


def test_sums_are_made_where_the_backend_can_make_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL knows no tensor on the CPU, where validation counts."""
    seen: list[torch.device] = []

    def all_reduce(tensor: torch.Tensor) -> None:
        seen.append(tensor.device)
        raise InterruptedError

    monkeypatch.setattr("training.distributed.processes.distributed.all_reduce", all_reduce)
    monkeypatch.setattr(ProcessGroup, "_device", staticmethod(lambda: torch.device("meta")))
    with pytest.raises(InterruptedError):
        ProcessGroup(0, 2).total(torch.ones(3))
    assert seen == [torch.device("meta")]

"""What one process of a machine does before the others."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest
from torch._C._distributed_c10d import HashStore

from training.distributed.processes import ProcessGroup


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

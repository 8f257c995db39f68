"""Random streams that depend only on (seed, purpose, epoch, step), so that a resumed run repeats exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stream(seed: int, *where: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose at one place of a run, e.g. ``stream(seed, "attack", epoch, step)``."""
    return torch.Generator(device=device).manual_seed(_number(seed, *where))


def seed_torch(seed: int, *where: int | str) -> None:
    """Seed torch's own generators for one place of a run: dropout and its kind draw from no other."""
    torch.manual_seed(_number(seed, *where))


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Give torch's own generators, of the CPU and of ``device``, back as they were: they belong to the caller."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def torch_seeded(device: torch.device, seed: int, *where: int | str) -> Iterator[None]:
    """What torch's own generators give inside depends on the place alone, and outside nothing changes."""
    with generators_kept(device):
        seed_torch(seed, *where)
        yield


def _number(seed: int, *where: int | str) -> int:
    text = "/".join(str(part) for part in (seed, *where))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def subset(total: int, count: int, seed: int) -> Tensor:
    """The places, int64 in order, of ``count`` images that a seeded shuffle of ``total`` puts first; all at most."""
    return torch.randperm(total, generator=stream(seed, "subset"))[:count].sort().values

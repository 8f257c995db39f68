"""Less memory for more arithmetic: a block keeps what goes into it, and is computed again in the backward pass.

Chen et al. 2016 (arXiv 1604.06174), by `torch.utils.checkpoint`. Values and gradients are the same as without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ducat_serve.errors import UsageError


def checkpoint_blocks(network: nn.Module, name: str) -> None:
    """Have every block of ``network``, called ``name``, computed again in the backward pass.

    Blocks are the members of its `nn.Sequential` and `nn.ModuleList` that are made of several layers. A copy of the
    network has them too.

    Raises:
        UsageError: it has no such blocks.
    """
    blocks = list(_blocks(network))
    if not blocks:
        raise UsageError(
            f"{name} has no blocks to compute again: no nn.Sequential or nn.ModuleList of modules with several layers.",
            "leave out --checkpoint-activations",
        )
    for block in blocks:
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) is nn.Sequential or isinstance(child, nn.ModuleList) or not _is_list(module):
            yield from _blocks(child)
        elif any(True for _ in child.children()):
            yield child


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first computation and of the second."""
    return nullcontext(), _statistics_stay(block)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """BatchNorm has counted these images in the first computation, and would count them twice."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        # A copy counts in its place: SyncBatchNorm does not take None.
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count

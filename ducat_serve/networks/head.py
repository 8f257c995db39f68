"""The head of a network: its last linear layer, found, replaced and given dummies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ducat_serve.errors import UsageError

Head = nn.Linear | nn.Conv2d  # a few networks (SqueezeNet) classify by a 1x1 convolution
_FOUND = "ducat_head"  # the attribute of a network whose head was found by running it


def head_name(network: nn.Module, source: str = "The network") -> str:
    """The name of the last linear layer or 1x1 convolution: the last that was run, where `find_head` ran the network.

    Else it is the last in the order in which modules were registered. Raises UsageError where there is none.
    """
    found = getattr(network, _FOUND, None)
    if isinstance(found, str):
        return found
    names = list(_candidates(network))
    if not names:
        raise UsageError(f"{source} has no linear layer that could be its head.")
    return names[-1]


@torch.no_grad()
def find_head(network: nn.Module, images: Tensor) -> int | None:
    """Run a network and remember its head; returns how many logits it answers, None where that is no such network."""
    run: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: run.append(name))
        for name, module in _candidates(network).items()
    ]
    was_training = network.training
    try:
        with torch.random.fork_rng(devices=[]):
            answers = network.eval()(images)
    except Exception:  # of code of others; `require_logits` says it, once the head has its width
        return None
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    if run:
        setattr(network, _FOUND, run[-1])
    return answers.shape[1] if isinstance(answers, Tensor) and answers.dim() == 2 else None


def head_of(network: nn.Module) -> Head:
    """The layer of that name."""
    head = network.get_submodule(head_name(network))
    assert isinstance(head, Head)
    return head


def output_width(network: nn.Module) -> int:
    """How many outputs the head has. Raises UsageError where there is no head."""
    head = head_of(network)
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def replace_head(network: nn.Module, outputs: int, source: str = "The network") -> None:
    """Put a fresh head of ``outputs`` where the old one was."""
    name = head_name(network, source)
    old = network.get_submodule(name)
    new: Head
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, outputs)
    else:
        assert isinstance(old, nn.Conv2d)
        new = nn.Conv2d(old.in_channels, outputs, 1)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)


def _candidates(network: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules() if _can_be_head(module)}


def _can_be_head(module: nn.Module) -> bool:
    # Attention keeps a linear layer for its output projection, which is never the last layer of a classifier; it is a
    # subclass of Linear that torch names by itself.
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return False
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))

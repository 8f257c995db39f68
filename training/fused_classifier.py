"""A copy of a classifier to be attacked, its BatchNorm folded into the convolutions before it.

In eval mode BatchNorm is an affine map of each channel, and costs as much memory traffic as the convolution beside it
costs arithmetic. Folded, an attack on resnet18 takes 0.83 of the time, on resnet-small 0.73
(docs/performance/training.md). The copy is the same function up to rounding, as an exported file is, where these layers
are folded too. Networks of others whose code cannot be traced, or that would be another function if folded, are copied
unfolded.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ducat_serve.deployed import Classifier, Deployed
from ducat_serve.networks.two_towers import TwoTowers
from training.attacks.frozen import frozen

# Of the largest logit: rounding of float32 stays far below, and a fold that is another function is far above.
_TOLERANCE = 0.02
_PROBES = 8  # images that the folded copy is compared with the network on


class FusedClassifier:
    """``model`` computes what ``original`` does in eval mode, as of the last `refresh`, without weight gradients.

    With ``fold`` False it is an unfolded copy, whose blocks remain modules of their own.
    """

    def __init__(self, original: nn.Module, *, fold: bool = True) -> None:
        traced = _traced(original) if fold else copy.deepcopy(original)
        self._pairs = _fold(traced, original) if isinstance(traced, fx.GraphModule) else []
        traced.eval().requires_grad_(False)
        # All but the folded convolutions share their tensors with the original, and so change with it.
        folded = {name for name, _ in self._pairs}
        for name, module in traced.named_modules():
            if name not in folded:
                _share(module, original.get_submodule(name))
        self.model: nn.Module = traced
        self._original = original
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the original's weights and statistics as they are now."""
        for conv_name, norm_name in self._pairs:
            conv, norm = self._original.get_submodule(conv_name), self._original.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, _BatchNorm)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            fused = self.model.get_submodule(conv_name)
            assert isinstance(fused, nn.Conv2d)
            assert fused.bias is not None
            fused.weight.copy_(weight)
            fused.bias.copy_(bias)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def fused_if_equal(original: nn.Module, probe: Tensor) -> FusedClassifier:
    """A folded copy of ``original``; an unfolded one where folding would change what it answers to ``probe``.

    A network of others may read a convolution's weight elsewhere too, or run code that its graph does not have. Fresh
    statistics of BatchNorm would hide that, so both are compared with other ones.
    """
    other = _with_other_statistics(original, probe)
    folded = FusedClassifier(other)
    with frozen(other), torch.no_grad():
        expected, found = (_answer(model, probe) for model in (other, folded.model))
    equal = torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * expected.abs().max().item())
    return FusedClassifier(original, fold=equal)


def fold_norms(model: Deployed) -> Deployed:
    """Fold BatchNorm of a model of ours in place, of both towers where it has two; returns the model.

    The model is in eval mode, and so it stays: its weights are no longer those of its checkpoint.
    """
    for part in list(model.modules()):
        if isinstance(part, Classifier) and not isinstance(part.network, TwoTowers):
            part.network = fused_if_equal(part.network, probe_of(part)).model
    return model


def probe_of(classifier: Classifier) -> Tensor:
    """A few random images that fit a classifier, on its device."""
    shape = (_PROBES, classifier.spec.channels, *classifier.spec.image_size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=classifier.pixel_mean.dtype)
    return pixels.to(classifier.pixel_mean.device)


def _answer(model: nn.Module, probe: Tensor) -> Tensor:
    """With the same random numbers for every model that draws some, and none of the run's own."""
    with torch.random.fork_rng(devices=[probe.device] if probe.is_cuda else []):
        torch.manual_seed(0)
        logits: Tensor = model(probe)
    return logits


@torch.no_grad()
def _with_other_statistics(original: nn.Module, probe: Tensor) -> nn.Module:
    """A copy whose BatchNorm layers all change what goes through them: by its statistics, and by some scale."""
    other = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(0)
    for module in other.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0
            if module.affine:
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
    _answer(other.train(), probe)
    return other


def _traced(original: nn.Module) -> nn.Module:
    """A copy of the original as a graph; as it is where its code cannot be traced, and then nothing is folded.

    In eval mode: some networks of others ask for their mode while they are traced, and the answer stays in the graph.
    """
    untraced = copy.deepcopy(original).eval()
    try:
        return fx.symbolic_trace(untraced)
    except Exception:  # what is traced is other people's code, which raises anything
        return untraced


def _fold(traced: fx.GraphModule, original: nn.Module) -> list[tuple[str, str]]:
    """Take every BatchNorm out that follows a convolution; returns the names of both."""
    pairs = []
    uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        if uses[before.target] > 1 or uses[node.target] > 1:
            continue  # a layer that is used twice would need two folds
        conv, norm = (original.get_submodule(str(n.target)) for n in (before, node))
        if not _is_plain_convolution(conv) or not _is_affine_in_eval_mode(norm):
            continue
        fused = traced.get_submodule(str(before.target))
        fused.bias = nn.Parameter(torch.zeros_like(norm.bias))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        pairs.append((str(before.target), str(node.target)))
    traced.delete_all_unused_submodules()
    traced.recompile()
    return pairs


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether its weight is a parameter: one that is computed, as spectral_norm does, would be computed again."""
    return type(module) is nn.Conv2d and not _has_hooks(module)


def _is_affine_in_eval_mode(module: nn.Module) -> TypeGuard[_BatchNorm]:
    is_affine = isinstance(module, _BatchNorm) and module.affine and module.track_running_stats
    return is_affine and not _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _share(module: nn.Module, original: nn.Module) -> None:
    for name, parameter in original.named_parameters(recurse=False):
        setattr(module, name, nn.Parameter(parameter.detach(), requires_grad=False))
    for name, buffer in original.named_buffers(recurse=False):
        setattr(module, name, buffer)

"""What updates the weights: SGD or AdamW, with a rate of its own for all layers but the head."""

from __future__ import annotations

import torch
from torch import nn

from ducat_serve.deployed import Classifier
from ducat_serve.networks.head import head_of
from training.config import TrainConfig

_SCALE = "lr_scale"  # of a group of parameters: what the learning rate of a step is multiplied by


def create_optimizer(config: TrainConfig, classifier: Classifier) -> torch.optim.Optimizer:
    """The optimizer of a run; `set_rate` is called before each of its steps."""
    groups = _groups(config, classifier)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters its rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_SCALE, 1.0)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters in the order in which the optimizer counts them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def freeze_below_head(config: TrainConfig, classifier: Classifier) -> None:
    """Where the head alone is trained, switch off the gradients below it.

    To be called before several processes agree on which gradients they wait for in every step.
    """
    if config.backbone_lr == 0:
        for parameter in _below_head(classifier):
            parameter.requires_grad_(False)


def _below_head(classifier: Classifier) -> list[nn.Parameter]:
    head = {id(parameter) for parameter in head_of(classifier.network).parameters()}
    return [parameter for parameter in classifier.parameters() if id(parameter) not in head]


def _groups(config: TrainConfig, classifier: Classifier) -> list[dict[str, object]]:
    if config.backbone_lr is None:
        return [{"params": list(classifier.parameters())}]
    head = list(head_of(classifier.network).parameters())
    return [{"params": _below_head(classifier), _SCALE: config.backbone_lr}, {"params": head}]

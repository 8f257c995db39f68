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


def _groups(config: TrainConfig, classifier: Classifier) -> list[dict[str, object]]:
    parameters = list(classifier.parameters())
    if config.backbone_lr is None:
        return [{"params": parameters}]
    head = list(head_of(classifier.network).parameters())
    below = [p for p in parameters if all(p is not other for other in head)]
    return [{"params": below, _SCALE: config.backbone_lr}, {"params": head}]

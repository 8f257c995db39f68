"""Fresh weights."""

from __future__ import annotations

from torch import nn


def draw_convolutions(network: nn.Module) -> None:
    """Draw the weights of all convolutions as He et al. 2015 do (arXiv 1502.01852, equation 14: by fan out)."""
    for module in network.modules():
        # A weight on the meta device holds nothing to draw, and torch would load its compiler to say so.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

"""The graph that is exported: uint8 images in, C logits, label and dummy mass out."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ducat_serve.deployed import Classifier, Deployed
from ducat_serve.networks.head import head_name
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.pairs import fold_logits, mass_on_dummies
from ducat_serve.report import ExportPrecision
from ducat_serve.spec import Fold


class _Float32Head(nn.Module):
    """The last layer in float32: in half precision logits tie, and ties decide differently before the fold."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features.float())
        return logits


class _HalfBody(nn.Module):
    """A network in float16 up to its head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        name = head_name(network)
        self.network = copy.deepcopy(network).half()
        parent, _, last = name.rpartition(".")
        head = copy.deepcopy(network.get_submodule(name))
        setattr(self.network.get_submodule(parent), last, _Float32Head(head))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.half())
        return logits


def in_precision(classifier: Classifier, precision: ExportPrecision) -> Classifier:
    """The classifier with its network's body in ``precision``; the original is left as it is."""
    if precision == "float32":
        return classifier
    changed = copy.deepcopy(classifier)
    if isinstance(towers := changed.network, TwoTowers):
        for tower in (towers.standard, towers.robust):
            assert isinstance(tower, Deployed)
            assert isinstance(tower.classifier, Classifier)
            tower.classifier = in_precision(tower.classifier, precision)
    else:
        changed.network = _HalfBody(changed.network)
    return changed


class DeployGraph(nn.Module):
    """The deployed function with everything around it that a server would otherwise repeat."""

    def __init__(self, classifier: Classifier, fold: Fold) -> None:
        super().__init__()
        self.classifier = classifier
        self.fold: Fold = fold

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [batch, H, W, channels] to logits float32 [batch, C], label int64 [batch], dummy mass [batch]."""
        # contiguous: otherwise pooling is exported as a chain of reshapes.
        pixels = images.permute(0, 3, 1, 2).contiguous().float() / 255
        raw = self.classifier(pixels)
        logits = fold_logits(raw, self.fold)
        return logits, logits.argmax(dim=1), mass_on_dummies(raw, self.fold)

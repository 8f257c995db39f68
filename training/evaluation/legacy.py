"""The paper's own measure: attacks on raw 2C logits that know nothing of the pairs, recovery afterwards.

Not a robustness claim. Such an attack takes a win of the label's own dummy for a success and stops there; recovery
reads it as correct. It is measured so that papers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import recover
from training.attacks.criteria import misclassified
from training.evaluation.runner import Runner
from training.evaluation.stages import Target, stage


def legacy_2c_accuracy(runner: Runner, attacks: Sequence[str]) -> float:
    """Accuracy after recovery, under attacks on the raw logits with the original label.

    For a model without dummies there is nothing to recover, and this is its accuracy under those attacks.
    """
    unaware = Deployed(runner.model.classifier, "none")
    won = misclassified("none")
    labels = runner.data.labels
    recovered = torch.zeros_like(labels, dtype=torch.bool)
    fooled = torch.zeros_like(recovered)

    @torch.no_grad()
    def saw(batch: Tensor, found: Tensor) -> None:
        raw = unaware(found)
        fooled[batch] = won(raw, labels[batch])
        recovered[batch] = _recovered(runner.model, raw) == labels[batch]

    raw = runner.raw_logits()
    fooled[:] = won(raw, labels)
    recovered[:] = _recovered(runner.model, raw) == labels
    for name in attacks:
        unaware_stage = stage(name, Target("none", raw.shape[1]))
        index = (~fooled).nonzero().squeeze(1)
        runner.attack(f"legacy {name} (non-adaptive)", unaware_stage.attack, index, won, saw, model=unaware)
    return int(recovered.sum()) / len(labels)


def _recovered(model: Deployed, raw: Tensor) -> Tensor:
    return raw.argmax(dim=1) if model.fold == "none" else recover(raw)

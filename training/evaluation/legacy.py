"""The paper's own measure: attacks on raw 2C logits that know nothing of the pairs, recovery afterwards.

Not a robustness claim. Such an attack takes a win of the label's own dummy for a success and stops there; recovery
reads it as correct. It is measured so that papers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ducat_serve.deployed import Deployed
from ducat_serve.pairs import recover
from training.attacks.base import TargetModel
from training.attacks.criteria import misclassified, right
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner
from training.evaluation.stages import attack_named


def legacy_2c_accuracy(runner: Runner, examples: Examples, attacks: Sequence[str]) -> float:
    """Accuracy after recovery, under attacks on the raw logits with the original label.

    For a model without dummies there is nothing to recover, and this is its accuracy under those attacks.
    """
    unaware = replace(runner, model=Deployed(runner.model.classifier, "none"))
    won = misclassified("none")
    raw, labels = runner.clean_logits, runner.data.labels
    fooled = won(raw, labels)
    recovered = _recovered(runner.model, raw, labels)
    for name in attacks:
        attack = attack_named(name, TargetModel("none", raw.shape[1]))
        index = (~fooled).nonzero().squeeze(1)
        found = examples.check(unaware, f"legacy {name} (non-adaptive)", attack, index, won)
        fooled[index] = won(found, labels[index])
        recovered[index] = _recovered(runner.model, found, labels[index])
    return int(recovered.sum()) / len(labels)


def _recovered(model: Deployed, raw: Tensor, labels: Tensor) -> Tensor:
    """Whether the label comes back, bool [N]; from NaN it does not."""
    if model.fold == "none":
        return right(raw, labels)
    return (recover(raw) == labels) & ~raw.isnan().any(dim=1)

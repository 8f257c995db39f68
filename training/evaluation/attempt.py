"""One attack on some of the examples: what it found, what it asked of the model, and how a report tells of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from ducat_serve.report import AttackResult
from training.attacks.base import Attack
from training.attacks.criteria import Criterion
from training.evaluation.runner import Cost, Onlooker, Runner, counted


@dataclass(frozen=True)
class Attempt:
    """What ``attack`` found for ``examples`` images: their raw logits, [examples, 2C] or [examples, C]."""

    attack: Attack
    examples: int
    raw: Tensor
    cost: Cost  # of all processes together
    seconds: float

    @classmethod
    def of(
        cls,
        runner: Runner,
        name: str,
        attack: Attack,
        index: Tensor,
        criterion: Criterion,
        onlooker: Onlooker | None = None,
    ) -> Attempt:
        """Attack the examples ``index``; the arguments are those of `Runner.attack`."""
        started = time.monotonic()
        with counted(runner.model.classifier) as cost:
            raw = runner.attack(name, attack, index, criterion, onlooker)
        cost = cost.of_all(runner.batches.processes)
        return cls(attack, len(index), raw, cost, time.monotonic() - started)

    def result(self, left: int, total: int) -> AttackResult:
        """The row of a report, where ``left`` of ``total`` examples are left after this attack."""
        return AttackResult(
            name=self.attack.name,
            settings=self.attack.settings(),
            knows_pairs=self.attack.knows_pairs,
            examples=self.examples,
            accuracy=left / self.examples if self.examples else 0.0,
            worst_case_accuracy=left / total,
            gradient_steps=self.cost.gradient_steps,
            forward_passes=self.cost.forward_passes,
            seconds=round(self.seconds, 2),
        )

"""The worst case so far: one attack after the other, each on what is still right, kept on disk after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ducat_serve.report import AttackResult
from training.attacks.base import Attack
from training.attacks.criteria import misclassified
from training.evaluation.attempt import Attempt
from training.evaluation.examples import Examples
from training.evaluation.kept import CANDIDATES, ExampleKeeper
from training.evaluation.runner import Onlooker, Runner
from training.evaluation.state import EvaluationState


@dataclass
class AttackRun:
    """What attacks have left of ``examples``, and the results of those that ran.

    Args:
        state: where to keep what is known after every attack; None keeps nothing.
        keeper: keeps a few of the images that the attacks make.
    """

    runner: Runner
    examples: Examples
    state: EvaluationState | None = None
    keeper: ExampleKeeper | None = None
    results: list[AttackResult] = field(default_factory=list)

    def resume(self) -> None:
        """Go on with what the first process finds on its disk, if anything, in every process.

        Raises what `EvaluationState.restore` does.
        """
        state, processes = self.state, self.runner.batches.processes
        if state is None or not processes.shared(state.exists()):
            return
        keeper = self.keeper or ExampleKeeper()
        results = state.restore(self.examples, keeper) if processes.is_first else []
        known = processes.shared({name: tensor.cpu() for name, tensor in self.examples.state().items()})
        self.examples.take_over(known)
        self.results = processes.shared(results)
        self.runner.output.say(f"Resumed after {', '.join(result.name for result in self.results)}.")

    def run(self, attacks: Sequence[Attack]) -> None:
        """Run ``attacks``, which begin with those that ran already: these are not run again."""
        for attack in attacks[len(self.results) :]:
            self.results.append(self._run(attack))
            if self.state is not None and self.runner.batches.processes.is_first:
                self.state.save(self.examples, self.results, self.keeper or ExampleKeeper())

    def _run(self, attack: Attack) -> AttackResult:
        """Run one attack on what is still right, and mark what no longer is."""
        runner, examples = self.runner, self.examples
        index = examples.right.nonzero().squeeze(1)
        criterion = misclassified(runner.model.fold)
        attempt = Attempt.of(runner, attack.name, attack, index, criterion, self._onlooker())
        examples.record(index, attempt.raw, len(self.results))
        if self.keeper is not None:
            self.keeper.judge(runner, attack.name)
        left, total = int(examples.right.sum()), len(runner.data)
        runner.output.say(
            f"{attack.name:<14} on {len(index):>5} images, {left / total:.1%} of all still right  "
            f"({attempt.seconds:.0f} s)"
        )
        return attempt.result(left, total)

    def _onlooker(self) -> Onlooker | None:
        """Who is told of the images that an attack finds, and of how many; nobody where none is kept."""
        if self.examples.images is not None:
            return Onlooker(self._seen)
        return None if self.keeper is None else Onlooker(self._seen, CANDIDATES)

    def _seen(self, batch: Tensor, found: Tensor, raw: Tensor) -> None:
        self.examples.keep(batch, found, raw)
        if self.keeper is not None:
            fooled = misclassified(self.runner.model.fold)(raw, self.examples.labels[batch])
            self.keeper.see(batch, found, fooled)

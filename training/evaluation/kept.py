"""Keeps a few of the images that attacks made, as 8-bit images that are still in the ball."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ducat_serve.attacked_examples import (
    MOST_BYTES,
    MOST_EXAMPLES,
    AttackedExample,
    AttackedExamples,
    encode_pixels,
)
from ducat_serve.threat_model import ThreatModel
from training.attacks.criteria import right
from training.batches import to_pixels
from training.evaluation.runner import Runner

CANDIDATES = 16  # of one attack
_WITHSTOOD = 2  # of the examples, if there are so many
_JSON_BYTES = 300  # around the pixels of one example


class ExampleKeeper:
    """Told of what each attack found; afterwards it has some that fooled the model, and some that did not.

    Whether an image fools the model is found out again after rounding, outside the attack, whose cost is being counted.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Tensor, Tensor]] = []
        self._kept: dict[int, AttackedExample] = {}  # by the example's index; what fooled the model stays

    def see(self, index: Tensor, found: Tensor, fooled: Tensor) -> None:
        """Images ``found`` [M, channels, H, W] of the examples ``index``, and which of them fool the model."""
        room = CANDIDATES - sum(len(one) for one, _ in self._found)
        order = fooled.to(torch.int8).argsort(descending=True, stable=True)[:room]
        self._found.append((index[order], found[order].detach().clone()))

    @torch.no_grad()
    def judge(self, runner: Runner, attack: str) -> None:
        """The attack is over: keep what is worth it."""
        for index, found in self._found:
            if not len(index):
                continue
            original = runner.data.images[index]
            attacked = runner.ball.levels(to_pixels(original), found)
            withstood = right(runner.model(to_pixels(attacked)), runner.data.labels[index])
            for row, number in enumerate(index.tolist()):
                class_id = int(runner.data.labels[number])
                before = self._kept.get(number)
                if before is None or not before.fooled:
                    self._kept[number] = AttackedExample(
                        class_id=class_id,
                        attack=attack,
                        fooled=not withstood[row],
                        original=_encoded(original[row]),
                        attacked=_encoded(attacked[row]),
                    )
        self._found = []

    def state(self) -> dict[str, Any]:
        """What is kept so far, for JSON."""
        return {str(number): one.model_dump(mode="json") for number, one in self._kept.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what an interrupted evaluation had kept. Raises ValueError where it is no such thing."""
        for number, one in state.items():
            self._kept[int(number)] = AttackedExample.model_validate(one)

    def examples(self, weights_digest: str, threat_model: ThreatModel) -> AttackedExamples:
        """As many as there is room for: fooled ones first, each of another class where there are such."""
        fooled = _by_turns([one for _, one in sorted(self._kept.items()) if one.fooled])
        withstood = _by_turns([one for _, one in sorted(self._kept.items()) if not one.fooled])
        some = withstood[: max(_WITHSTOOD, MOST_EXAMPLES - len(fooled))]
        chosen, size = [], 1000
        for one in [*fooled[: MOST_EXAMPLES - min(len(some), _WITHSTOOD)], *some][:MOST_EXAMPLES]:
            size += len(one.original) + len(one.attacked) + _JSON_BYTES
            if size <= MOST_BYTES:
                chosen.append(one)
        return AttackedExamples(
            weights_digest=weights_digest,
            norm=threat_model.norm,
            eps=threat_model.eps,
            examples=tuple(chosen),
        )


def _encoded(image: Tensor) -> str:
    return encode_pixels(image.permute(1, 2, 0).cpu().numpy())


def _by_turns(examples: list[AttackedExample]) -> list[AttackedExample]:
    """In order, but no class twice before every other was taken once."""
    turns: dict[int, int] = {}
    numbered = []
    for position, one in enumerate(examples):
        turn = turns[one.class_id] = turns.get(one.class_id, 0) + 1
        numbered.append((turn, position, one))
    return [one for _, _, one in sorted(numbered, key=lambda item: item[:2])]

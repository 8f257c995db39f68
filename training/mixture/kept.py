"""What two towers said of val images, on disk: another setting of the switch then takes no attack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ducat_serve import atomic
from ducat_serve.output import Output

FILE_NAME = "answers.safetensors"
_KEY = "ducat_answers"


@dataclass(frozen=True)
class KeptAnswers:
    """The file of answers, and the question that they answer.

    ``question`` holds everything that decides the answers: towers, images, threat model, attacks and seed. Answers to
    another question are asked again, and replaced.
    """

    path: Path
    question: dict[str, JsonValue]

    def read(self, output: Output) -> dict[str, Tensor]:
        """Return the logits that are there, by what was asked; says whether they are used. Empty without a file."""
        if not self.path.exists():
            return {}
        try:
            with safe_open(self.path, framework="pt") as file:
                asked = json.loads((file.metadata() or {})[_KEY])
                answers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError, OSError):
            output.warn(f"{self.path} holds no answers, or is damaged; the towers are asked again.")
            return {}
        if asked != self.question:
            changed = ", ".join(key for key in self.question if asked.get(key) != self.question[key])
            output.say(
                f"{self.path} answers another question ({changed} changed); the towers are asked again."
            )
            return {}
        output.say(f"Going on with what the towers answered before: {self.path}")
        return answers

    def write(self, answers: dict[str, Tensor]) -> None:
        """Replace the file atomically. Raises DucatError where that cannot be done."""
        metadata = {_KEY: json.dumps(self.question, sort_keys=True)}
        atomic.write_bytes(self.path, serialise(answers, metadata=metadata))

"""An interrupted evaluation on disk: kept after every attack, so that `--resume` goes on with the next one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from ducat_serve import atomic
from ducat_serve.errors import DataError, UsageError, command_line
from ducat_serve.output import Output
from ducat_serve.report import AttackResult
from ducat_serve.threat_model import ThreatModel
from training.evaluation.examples import Examples
from training.evaluation.kept import ExampleKeeper

_KEY = "ducat_evaluation"
_MARK, _ENDING, _DIGITS = ".evaluation-", ".partial", 8  # of the file's name


@dataclass(frozen=True)
class EvaluationState:
    """The file of an evaluation that has not ended, and what that evaluation was asked to do.

    ``request`` holds everything that decides the result: a resumed evaluation must have been asked the same. The name
    of the file follows from it, so that several evaluations of one model at a time do not take each other's.
    """

    path: Path
    request: dict[str, Any]

    @classmethod
    def beside(cls, model: Path, request: dict[str, Any]) -> EvaluationState:
        """The state of an evaluation whose report goes to the file ``model``."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return cls(model.with_name(f"{model.name}{_MARK}{digest[:_DIGITS]}{_ENDING}"), request)

    def at(self, threat_model: ThreatModel) -> EvaluationState:
        """The state of one radius of several; each has a file of its own, beside this one."""
        name = f"{self.path.name}-{threat_model.norm}-{threat_model.eps!r}"
        return EvaluationState(self.path.with_name(name), {**self.request, "threat model": str(threat_model)})

    def begin(self, *, resume: bool, output: Output) -> None:
        """Look at what an interrupted evaluation left, before anything is measured.

        Raises UsageError where that would be lost, and DucatError where nothing can be kept.
        """
        atomic.require_writable(self.path)
        interrupted = sorted(self._files())
        if resume and not interrupted:
            self._refuse_others()
            output.warn("there is nothing to resume; starting from the beginning.")
        if interrupted and not resume:
            raise UsageError(
                "This evaluation was interrupted before, and what its finished attacks found is kept in "
                f"{', '.join(map(str, interrupted))}.",
                f"go on with it by --resume (in Python resume=True), or drop it: {command_line('rm', *interrupted)}",
            )

    def save(self, examples: Examples, results: list[AttackResult], keeper: ExampleKeeper) -> None:
        """Write down what is known after an attack, atomically."""
        document = {
            "request": self.request,
            "results": [result.model_dump() for result in results],
            "kept": keeper.state(),
        }
        metadata = {_KEY: json.dumps(document, sort_keys=True)}
        atomic.write_bytes(self.path, serialise(examples.state(), metadata=metadata))

    def restore(self, examples: Examples, keeper: ExampleKeeper) -> list[AttackResult]:
        """Put ``examples`` and ``keeper`` where the interrupted evaluation was; returns the results of its attacks.

        Raises:
            DataError: the file is damaged. UsageError: it belongs to another request; it is left alone.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                document = json.loads((file.metadata() or {})[_KEY])
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            asked = dict(document["request"])
            results = [AttackResult.model_validate(result) for result in document["results"]]
            kept = dict(document["kept"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise self._damaged() from error
        self._require_same(asked)
        tensors = examples.state()
        if {name: (t.shape, t.dtype) for name, t in stored.items()} != {
            name: (t.shape, t.dtype) for name, t in tensors.items()
        }:
            raise self._damaged()
        try:
            keeper.restore(kept)
        except ValueError as error:
            raise self._damaged() from error
        examples.take_over(stored)
        return results

    def _damaged(self) -> DataError:
        return DataError(
            f"{self.path} is not an interrupted evaluation, or it is damaged.",
            f"{command_line('rm', *sorted(self._files()))}, then run it again without --resume",
        )

    def exists(self) -> bool:
        """Whether there is something to resume."""
        return self.path.is_file()

    def remove(self) -> None:
        """The evaluation has ended, at every radius."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Of this evaluation: its own, and those of several radii."""
        return self._beginning_with(self.path.name)

    def _beginning_with(self, start: str) -> list[Path]:
        if not self.path.parent.is_dir():
            return []
        return [file for file in self.path.parent.iterdir() if file.name.startswith(start)]

    def _refuse_others(self) -> None:
        """Raise UsageError where another evaluation of this model was interrupted: it may be the one that is meant."""
        model = self.path.name[: -len(_MARK + _ENDING) - _DIGITS]
        for file in sorted(self._beginning_with(model + _MARK)):
            try:
                with safe_open(file, framework="pt") as opened:
                    asked = dict(json.loads((opened.metadata() or {})[_KEY])["request"])
            except (SafetensorError, KeyError, TypeError, ValueError, OSError):
                continue  # a damaged one is nobody's to go on with
            # A file of one radius of several has the threat model of that radius; that it has other ones is said too.
            self._require_same(
                asked
                if file.name.endswith(_ENDING)
                else {**asked, "threat model": self.request["threat model"]}
            )

    def _require_same(self, asked: dict[str, Any]) -> None:
        """Raise UsageError for an evaluation that was asked something else."""
        wanted = json.loads(json.dumps(self.request))
        if asked != wanted:
            changed = {name for name in wanted if asked.get(name) != wanted[name]}
            if "data" in changed:
                changed.discard("function")  # known by its answers to images, which were others
            raise UsageError(
                f"The interrupted evaluation was another one: {', '.join(sorted(changed))} changed.",
                "give the same options, or run it without --resume to start again",
            )

"""What was typed after `ducat evaluate`, as one object that refuses what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ducat_serve.atomic import require_writable
from ducat_serve.cli.corruptions_suite import SUITE as CORRUPTIONS
from ducat_serve.cli.corruptions_suite import refuse_options_of_attacks
from ducat_serve.cli.evaluated_model import ForeignModel
from ducat_serve.cli.foreign_options import ForeignGiven
from ducat_serve.cli.own_attacks import attacks_of
from ducat_serve.cli.release_gate import require_worst_case_attacks
from ducat_serve.errors import UsageError, unknown_name
from training.evaluation.robustbench import require_leaderboard

if TYPE_CHECKING:
    from ducat_serve.library.foreign import ForeignRequest
    from ducat_serve.library.foreign_sources import Source
    from ducat_serve.predictor import Device
    from ducat_serve.threat_model import Norm
    from training.evaluation.outputs import Outputs
    from training.evaluation.prepare import Request
    from training.evaluation.settings import EvaluationSettings


@dataclass(frozen=True)
class EvaluateArguments:
    """MODEL and the options that decide what is measured; the options' help says what each field means."""

    model: Path | ForeignModel | None
    foreign: ForeignGiven
    split: Literal["val", "test"]
    norm: Norm | None
    eps: tuple[float, ...]
    lattice: str | None
    suite: str
    attack: tuple[str, ...]
    max_examples: int | None
    batch_size: int | None
    seed: int
    resume: bool
    replace: bool
    save_adversarial: Path | None
    per_image: Path | None
    export: str | None
    bar: dict[str, float] | None
    checkpoint: Path | None
    dataset: str | None
    out: Path | None
    data_dir: Path | None
    offline: bool
    device: Device

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EvaluateArguments:
        """These of click, by the names of their parameters."""
        of_others = {field.name for field in fields(ForeignGiven)}
        foreign = ForeignGiven(**{name: given[name] for name in of_others})
        return cls(foreign=foreign, **{name: given[name] for name in given.keys() - of_others})

    @property
    def runs_no_attack(self) -> bool:
        """Whether corruptions are measured, and no attack."""
        return self.suite == CORRUPTIONS

    def refuse_contradictions(self) -> None:
        """Raise DucatError, before anything is loaded, for options that contradict others or cannot be written to."""
        self._require_suite()
        if self.runs_no_attack:
            refuse_options_of_attacks(
                {
                    "--attack": self.attack,
                    "--norm": self.norm,
                    "--eps": self.eps,
                    "--lattice": self.lattice,
                    "--bar": self.bar,
                    "--export": self.export,
                    "--save-adversarial": self.save_adversarial,
                    "--per-image": self.per_image,
                    "--checkpoint": self.checkpoint,
                    "--resume": self.resume,
                }
            )
        if self._has_a_bar_for_attacks:
            require_worst_case_attacks("--bar worst_case", self.suite, self.attack)
        if self.export is not None:
            require_worst_case_attacks("--export robustbench", self.suite, self.attack)
            require_leaderboard(self.norm or "linf")
        if self.out is not None:
            require_writable(self.out)
        self._refuse_to_replace_models()

    def source(self) -> Source | None:
        """Where the model of others is found; None where MODEL is ours. Raises DucatError where it cannot be judged."""
        source = self.foreign.source(self.model, self.device)
        if self.export is not None or self._has_a_bar_for_attacks:
            self._require_gradients(source)
        return source

    def request(self) -> Request:
        """What is asked of a model of ours. Raises UsageError for an attack that cannot be imported."""
        from training.evaluation.prepare import Request

        assert isinstance(self.model, Path)
        return Request(self.model, self._settings(), self.checkpoint, self.dataset)

    def foreign_request(self, source: Source) -> ForeignRequest:
        """What is asked of a model of others. Raises UsageError where it is not said of which data."""
        from ducat_serve.library.foreign import ForeignRequest

        if self.checkpoint is not None:
            raise UsageError(
                "--checkpoint is for a .onnx MODEL of ours.", "leave it out; --twin is for others"
            )
        if self.dataset is None:
            raise UsageError(f"{source.name} says nothing of its data.", "name them: --dataset cifar10")
        return ForeignRequest(source, self._settings(), self.dataset, self.foreign.image_size)

    def outputs(self) -> Outputs:
        """What is kept beside the report."""
        from training.evaluation.outputs import Outputs

        return Outputs(self.save_adversarial, self.per_image)

    @property
    def _has_a_bar_for_attacks(self) -> bool:
        return self.bar is not None and "worst_case" in self.bar

    def _settings(self) -> EvaluationSettings:
        from training.evaluation.settings import EvaluationSettings

        return EvaluationSettings(
            split=self.split,
            norm=self.norm,
            eps=self.eps,
            eight_bit=self.lattice is not None,
            suite=self.suite,
            attacks=attacks_of(self.attack),
            max_examples=self.max_examples,
            batch_size=self.batch_size,
            seed=self.seed,
            data_dir=self.data_dir,
            offline=self.offline,
            device=self.device,
        )

    def _require_suite(self) -> None:
        from training.evaluation.stages import SUITES

        names = (*SUITES, CORRUPTIONS)
        if self.suite not in names:
            raise unknown_name("suite", self.suite, names)

    def _refuse_to_replace_models(self) -> None:
        """Raise UsageError for a report that would be written over the very model, as by `--out` of export it is."""
        from ducat_serve.model_file import model_in

        models = [model_in(file) for file in (self.model, self.checkpoint) if isinstance(file, Path)]
        for option, place in {"--out": self.out, "--per-image": self.per_image}.items():
            if place is None or not place.exists():
                continue
            if any(file.exists() and place.samefile(file) for file in models):
                raise UsageError(
                    f"{option}: {place} is the model, which would be replaced.",
                    "the report is stored in it anyway; leave the option out, or name another file",
                )

    def _require_gradients(self, source: Source | None) -> None:
        """Raise UsageError where attacks would see only scores, which flatters a worst case."""
        from ducat_serve.model_file import model_in, read_verified_spec

        if source is None:
            assert isinstance(self.model, Path)
            file = model_in(self.model)
            scores_only = file.suffix == ".onnx" and read_verified_spec(file).spec.quantisation is None
        else:
            scores_only = source.scores_only
        if scores_only:
            raise UsageError(
                "--bar worst_case and --export are for attacks that follow gradients: by scores alone a model looks "
                "more robust than it is.",
                "measure the checkpoint that the file came from",
            )

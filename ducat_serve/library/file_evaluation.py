"""Measure the deployed function of a file of ours, and keep the report in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from ducat_serve.atomic import write_bytes, write_text
from ducat_serve.attacked_examples import AttackedExamples, examples_file
from ducat_serve.bundled import bundled_name, model_path
from ducat_serve.checkpoint import read_spec
from ducat_serve.errors import Terminated, UsageError, command_line, signal_of
from ducat_serve.library.arguments import (
    Attacks,
    attacks_asked_for,
    require_device,
    require_one_of,
    require_whole,
    sizes,
)
from ducat_serve.library.resuming import interrupted, require_resumable
from ducat_serve.library.storing import require_export, store_in_checkpoint, store_in_export
from ducat_serve.model_file import model_in, read_verified_spec
from ducat_serve.networks.allowed import options_for
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import Norm
from training.distributed.environment import is_first_process
from training.distributed.processes import ProcessGroup, joined
from training.evaluation.comparison import losses
from training.evaluation.curve import measure_curve
from training.evaluation.evaluate import measure as run_evaluation
from training.evaluation.kept import ExampleKeeper
from training.evaluation.outputs import Outputs
from training.evaluation.prepare import Prepared, Request, evaluation_device, prepare, require_possible
from training.evaluation.settings import EvaluationSettings
from training.evaluation.stages import require_suite
from training.evaluation.state import EvaluationState

_Store = Callable[[RobustnessReport, Output], None]


def evaluate_file(
    model: str | Path,
    *,
    suite: str = "quick",
    attacks: Attacks = None,
    split: Literal["val", "test"] = "test",
    norm: Norm | None = None,
    eps: float | str | Sequence[float | str] | None = None,
    lattice: Literal["8bit"] | None = None,
    max_examples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    offline: bool = False,
    checkpoint: str | Path | None = None,
    save_adversarial: str | Path | None = None,
    per_image: str | Path | None = None,
    device: Device = "auto",
    store: bool = True,
    replace: bool = False,
    resume: bool = False,
    output: Output | None = None,
) -> RobustnessReport:
    """What `ducat_serve.evaluate` does with a file."""
    output = output or Output()
    require_suite(suite)
    names = attacks_asked_for(attacks)
    require_whole("max_examples", max_examples, 1)
    require_whole("batch_size", batch_size, 1)
    require_whole("seed", seed, 0, optional=False)
    require_one_of("split", split, ("val", "test"))
    require_one_of("norm", norm, (None, *get_args(Norm)))
    require_one_of("lattice", lattice, (None, "8bit"))
    require_device(device)
    settings = EvaluationSettings(
        split=split,
        norm=norm,
        eps=sizes("eps", eps),
        eight_bit=lattice == "8bit",
        suite=suite,
        attacks=names,
        max_examples=max_examples,
        batch_size=batch_size,
        seed=seed,
        data_dir=None if data_dir is None else Path(data_dir),
        offline=offline,
        device=device,
    )
    request = Request(
        model_path(model, "safetensors"), settings, None if checkpoint is None else Path(checkpoint), dataset
    )
    outputs = Outputs(
        None if save_adversarial is None else Path(save_adversarial),
        None if per_image is None else Path(per_image),
    )
    measured = measure(request, output, outputs, resume=resume)
    if is_first_process():
        if store:
            measured.store(output, replace=replace)
        measured.state.remove()
    return measured.report


@dataclass(frozen=True)
class Measured:
    """A finished evaluation. Its state is removed when the report is where it belongs."""

    path: Path
    spec: ModelSpec
    report: RobustnessReport
    state: EvaluationState
    kept: AttackedExamples | None  # some of the attacked images, for `export`; None of an exported file
    _store: _Store

    def store(self, output: Output, *, replace: bool = False) -> bool:
        """Keep the report in the model file, attacked images beside it; a white-box report in an exported file stays.

        Returns whether it did: a report that says more than this one also stays, unless it is to be replaced.
        """
        if not replace and self._says_less(output):
            return False
        self._store(self.report, output)
        if self.kept is not None and self.kept.examples:
            write_text(examples_file(self.path), self.kept.model_dump_json() + "\n")
        return True

    def _says_less(self, output: Output) -> bool:
        """Whether the report that the file holds by now, of the same kind, says more than this one; then that is said.

        One of other weights does not count: `_store` refuses that file.
        """
        new, old = self.report, read_verified_spec(self.path).spec.robustness
        if old is None or (old.artefact, old.weights_digest) != (new.artefact, new.weights_digest):
            return False
        if not (found := losses(old, new)):
            return False
        output.warn(
            f"not stored, since it says less ({', '.join(found)}) than what {self.path} holds: {old.summary()}. "
            "--replace stores it all the same."
        )
        return True


def keeping_corruptions(report: RobustnessReport, old: RobustnessReport | None) -> RobustnessReport:
    """A new report of attacks, with what was measured under corruptions on the same weights."""
    if old is None or old.corruptions is None or not old.is_of(report.weights_digest, report.takes):
        return report
    return report.model_copy(update={"corruptions": old.corruptions})


def measure(
    request: Request, output: Output, outputs: Outputs | None = None, *, resume: bool = False
) -> Measured:
    """Run the evaluation that is asked for. ``request.path`` may be a run folder or a bundled model.

    Of several processes, which torchrun or `--devices` started, each returns it; only the first may store it.
    """
    if resume:
        require_resumable(request.settings)
    device = evaluation_device(request, output)
    with joined(device) as processes:
        if not processes.is_first:
            output = Output(silent=True)
        return _measure_together(request, output, outputs or Outputs(), processes, device, resume)


def _measure_together(
    request: Request,
    output: Output,
    outputs: Outputs,
    processes: ProcessGroup,
    device: torch.device,
    resume: bool,
) -> Measured:
    path = model_in(request.path)
    if bundled_name(path) is not None:
        bundled = path
        require_possible(request, read_verified_spec(bundled).spec)  # refused before anything is written
        path = processes.first_alone(lambda: copy_here(bundled, output))
    prepared = prepare(replace(request, path=path), output, processes, device)
    store = (_stored_in_export if path.suffix == ".onnx" else _stored_in_checkpoint)(path, prepared)
    keeper = None if path.suffix == ".onnx" else ExampleKeeper()
    plan = replace(prepared.plan, keep_images=outputs.adversarial is not None)
    state = prepared.state(plan)
    if processes.is_first:
        state.begin(resume=resume, output=output)
    else:
        outputs = Outputs()  # the first process writes them
    kept_in = None if request.settings.has_own_attacks else state
    try:
        with outputs.opened(output) as write:
            if len(prepared.sizes) > 1:
                found = measure_curve(prepared.subject, plan, prepared.sizes, output, kept_in, keeper)
            else:
                found = run_evaluation(prepared.subject, plan, output, kept_in, keeper=keeper)
            write(prepared.subject, plan, found, prepared.index)
    except (KeyboardInterrupt, Terminated) as stopped:
        raise interrupted(signal_of(stopped), request.settings) from None
    kept = keeper.examples(found.report.weights_digest, plan.threat_model) if keeper else None
    return Measured(path, prepared.spec, found.report, state, kept, store)


def copy_here(bundled: Path, output: Output) -> Path:
    """A copy of a bundled model to evaluate: reports are stored in the model, and the package is not written to."""
    copy = Path(bundled.name)
    if not copy.exists():
        write_bytes(copy, bundled.read_bytes())
        output.say(f"Evaluating a copy of the bundled model, {copy}; the package is not written to.")
    elif bundled_name(copy) or read_spec(copy).weights_digest != read_spec(bundled).weights_digest:
        raise UsageError(
            f"A copy of the bundled model is evaluated, but there is another {copy} here.",
            "evaluate it in another folder",
        )
    return copy


def _stored_in_checkpoint(path: Path, prepared: Prepared) -> _Store:
    """How a report of a checkpoint is kept."""

    def store(report: RobustnessReport, output: Output) -> None:
        store_in_checkpoint(path, prepared.function, partial(keeping_corruptions, report))
        output.say(f"Stored in {path}.")
        output.next(command_line("ducat", "export", path, *options_for(prepared.spec.network)))

    return store


def _stored_in_export(path: Path, prepared: Prepared) -> _Store:
    """How a report of an exported file is kept: a white-box report that is there already stays."""
    white_box = prepared.spec.robustness
    if white_box is not None and white_box.artefact == "checkpoint":
        stays = f"stays: {white_box.summary()}."
        return lambda _report, output: output.say(f"The white-box report inside {path} {stays}")
    require_export()

    def store(report: RobustnessReport, output: Output) -> None:
        store_in_export(path, prepared.function, partial(keeping_corruptions, report))
        limit = ": attacks by scores are all that can be said of it" if report.scores_only else ""
        output.say(f"Stored in {path}{limit}.")

    return store

"""Somebody else's model: measured on a data set, its report and card written beside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ducat_serve import atomic
from ducat_serve.errors import InterruptedRun, Terminated, UsageError, signal_of
from ducat_serve.library.file_evaluation import keeping_corruptions
from ducat_serve.library.foreign_sources import Opened, Source
from ducat_serve.library.resuming import interrupted, require_resumable
from ducat_serve.output import Output
from ducat_serve.report import HELD_OUT, RobustnessReport
from ducat_serve.report_file import read_report
from ducat_serve.threat_model import ThreatModel
from export.model_card import report_card
from training.attacks.ball import require_linf_size
from training.batches import DeviceSplit, to_pixels
from training.data import Dataset, held_out_splits, load_dataset
from training.data.cache import Split, content_digest
from training.data.selection import Selection
from training.device import choose_device
from training.distributed.processes import ProcessGroup, joined, local_device
from training.evaluation.asked import state_beside
from training.evaluation.curve import measure_curve
from training.evaluation.doubts import Doubt
from training.evaluation.evaluate import Subject, measure
from training.evaluation.foreign import prepare_model
from training.evaluation.outputs import Outputs
from training.evaluation.settings import EvaluationSettings
from training.evaluation.stages import require_attacks, require_suite
from training.evaluation.state import EvaluationState
from training.evaluation.state_digest import state_digest

_FIRST = 32  # images whose answers tell whether another model is measured, or each process has another one


@dataclass(frozen=True)
class ForeignRequest:
    """What `ducat evaluate` was asked of a model of others; its options say what each field means."""

    source: Source
    settings: EvaluationSettings
    dataset: str
    image_size: int | None = None  # of a folder's images; None: what the model says, or what all of them have


@dataclass(frozen=True)
class MeasuredForeign:
    """A finished evaluation of a model of others. Its state is removed when the report is where it belongs."""

    report: RobustnessReport
    state: EvaluationState | None  # None of a server

    def forget(self) -> None:
        """The report is written: nothing is left to go on with."""
        if self.state is not None:
            self.state.remove()


def measure_foreign(
    request: ForeignRequest, out: Path, outputs: Outputs, output: Output, *, resume: bool = False
) -> MeasuredForeign:
    """Measure a model of others; the report is at the largest eps, with a curve where there are several.

    Args:
        out: where the report will be, beside which the evaluation is kept while it runs.
        resume: go on after the last attack of an interrupted one.

    Raises:
        UsageError: it cannot be imported or is no classifier, the data set has another number of classes or images
            of another size, an eps of 0 or in grey levels, or ``resume`` of a server. DataError, VerificationError: of
            a file.
        InterruptedRun: Ctrl-C or SIGTERM.
    """
    settings = request.settings
    if not settings.eps or 0 in settings.eps:
        raise UsageError("A model of others needs --eps, above 0, in pixels of [0, 1].", "give --eps 8/255")
    require_linf_size("eps", max(settings.eps), settings.norm or "linf")
    if resume and not request.source.resumable:
        raise UsageError(
            "--resume: a server may answer otherwise by now, and what it was asked is spent.", "leave it out"
        )
    if resume:
        require_resumable(settings)
    require_suite(settings.suite)  # before a model is made, which may take a while
    require_attacks(settings.attacks)
    device = local_device(choose_device("cpu" if request.source.on_cpu else settings.device, output))
    with joined(device) as processes:
        try:
            return _measure_together(request, out, outputs, output, processes, device, resume)
        except (KeyboardInterrupt, Terminated) as stopped:
            raise _interrupted(signal_of(stopped), request) from None


_HELD_OUT = Doubt(
    HELD_OUT,
    "the data set names none of its own, so some were drawn, and the model may have been trained on them. Put images "
    "that it was not trained on into test/",
)


def _doubted(subject: Subject, doubt: Doubt, output: Output) -> Subject:
    output.warn(f"{doubt}.")
    return replace(subject, doubts=(*(subject.doubts or ()), str(doubt)))


def _interrupted(signal: int, request: ForeignRequest) -> InterruptedRun:
    if not request.source.resumable:
        return InterruptedRun(signal, "interrupted; nothing was kept.", "run it again")
    return interrupted(signal, request.settings)


def _measure_together(
    request: ForeignRequest,
    out: Path,
    outputs: Outputs,
    output: Output,
    processes: ProcessGroup,
    device: torch.device,
    resume: bool,
) -> MeasuredForeign:
    settings, keep_images = request.settings, outputs.adversarial is not None
    if not processes.is_first:  # the first process prints and writes
        output, outputs = Output(silent=True), Outputs()
    with outputs.opened(output) as write, request.source.opened(device, output) as opened:
        data = processes.first_alone(partial(dataset_for, request, opened, output))
        chosen, index = settings.choose(data)
        subject, plan = prepare_model(
            opened.model,
            DeviceSplit.of(chosen, device),
            ThreatModel(norm=settings.norm or "linf", eps=max(settings.eps)),
            suite=settings.suite,
            attacks=settings.attacks,
            fold=opened.fold,
            class_names=data.class_names,
            dataset=data.title,
            batch_size=settings.at_a_time(chosen),
            seed=settings.seed,
            output=output,
            origin=opened.origin,
            split=settings.split,
        )
        subject = replace(
            subject, takes=request.source.takes, data_digest=content_digest(data.class_names, [chosen])
        )
        if settings.split == "test" and "test" in held_out_splits(request.dataset, Selection()):
            subject = _doubted(subject, _HELD_OUT, output)
        eight_bit = settings.eight_bit or opened.bytes_only
        plan = replace(plan, eight_bit=eight_bit, keep_images=keep_images, processes=processes)
        plan = opened.planned(plan, len(chosen), len(set(settings.eps)))
        state = None
        if request.source.resumable:  # a server is asked by one process, and nothing beyond its budget
            answers = _answers(opened.model, chosen, device)
            is_random = answers != _answers(opened.model, chosen, device)
            _require_one_model(processes.gather((opened.origin.digest, "" if is_random else answers)))
            state = state_beside(
                out,
                subject,
                plan,
                sizes=settings.eps,
                function=f"fold {opened.fold}, {request.source.takes}, {answers}",
                surrogate=None if opened.origin.twin is None else state_digest(opened.origin.twin),
            )
            if processes.is_first:
                state.begin(resume=resume, output=output)
            state = None if settings.has_own_attacks else state
        found = (
            measure_curve(subject, plan, settings.eps, output, state)
            if len(settings.eps) > 1
            else measure(subject, plan, output, state)
        )
        write(subject, plan, found, index)  # which may ask the model again
        found = replace(found, report=opened.reported(found.report))
    return MeasuredForeign(found.report, state)


@torch.no_grad()
def _answers(model: nn.Module, images: Split, device: torch.device) -> str:
    """The classes of the first images, and how sure of them the model is: code changes without its state_dict.

    The one figure is rounded so far that another device's arithmetic does not change it.
    """
    logits = model(to_pixels(DeviceSplit.of(images, device).images[:_FIRST])).double()
    spread = (logits.amax(dim=1) - logits.mean(dim=1)).mean().item()
    return " ".join(str(k) for k in logits.argmax(dim=1).tolist()) + f", {spread:.2g}"


def _require_one_model(told: list[tuple[str, str]]) -> None:
    """Raise UsageError where processes do not have the same model."""
    if len(set(told)) > 1:
        raise UsageError(
            "The callable returns another model in each process, and one figure cannot be of several.",
            "have it load its weights, or seed what it draws; or leave out --devices",
        )


def dataset_for(request: ForeignRequest, opened: Opened, output: Output) -> Dataset:
    """The data set to measure on; images of a folder have the size that was asked for, or that the model says."""
    size_of_model = opened.image_size if request.dataset.startswith("folder:") else None
    data = load_dataset(
        request.dataset,
        data_dir=request.settings.data_dir,
        offline=request.settings.offline,
        image_size=request.image_size or size_of_model,
        seed=request.settings.seed,
        output=output,
    )
    opened.fit(data, output)
    return data


def card_beside(file: Path) -> Path:
    """Where the card of a report goes: the same name with .md. Raises UsageError where that is the report itself."""
    card = file.with_suffix(".md")
    if card == file:
        raise UsageError(
            f"--out {file} is for the report, which is JSON; the card would be written to the same file.",
            f"--out {file.with_suffix('.json')}, beside which the card is {file}",
        )
    return card


def write_report(name: str, report: RobustnessReport, file: Path, output: Output) -> None:
    """Write the report of the model ``name`` to ``file``, and its card beside it.

    What an earlier report there says of corruptions, of the same weights, stays. Raises DataError where it is damaged.
    """
    report = keeping_corruptions(report, None if report.corruptions else read_report(file))
    atomic.write_text(file, report.model_dump_json(indent=2) + "\n")
    card = card_beside(file)
    atomic.write_text(card, report_card(name, report))
    output.say(f"Report: {file}, for people: {card}")

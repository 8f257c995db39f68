"""Evaluate the deployed function: clean images first, then each attack on what is still right."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ducat_serve import __version__
from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.output import Output
from ducat_serve.report import (
    Artefact,
    AttackResult,
    ClassResult,
    DummyMass,
    ExportPrecision,
    Floor,
    Rejection,
    RobustnessReport,
    SanityCheck,
)
from ducat_serve.spec import Fold, Switch
from ducat_serve.threat_model import ThreatModel
from training.attacks.ball import Ball, require_size
from training.attacks.base import Attack
from training.attacks.frozen import frozen
from training.batches import DeviceSplit, to_pixels
from training.device import exact_float32
from training.distributed.processes import ProcessGroup
from training.evaluation.attack_run import AttackRun
from training.evaluation.detection import dummy_mass, rejection
from training.evaluation.examples import Examples
from training.evaluation.floor import floor
from training.evaluation.kept import ExampleKeeper
from training.evaluation.legacy import legacy_2c_accuracy
from training.evaluation.runner import BATCH, Batches, Runner
from training.evaluation.sanity import ENOUGH, check_sanity
from training.evaluation.state import EvaluationState
from training.evaluation.wilson import wilson


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        model: the deployed function, float images in [0, 1] to C logits, in eval mode; run in float32.
        data: the images to measure on.
        labels: names of the C classes.
        weights_digest, dataset, split, artefact, precision: what the report says of them.
        gradients: "copy" where they are those of a differentiable copy of an exported file, "none" of a torch module
            that has none.
        doubts: what about a model of others, and its images, makes figures doubtful; None of a model of ours.
        takes: what images a model of others was said to take.
        data_digest: SHA-256 of the images and labels; None where nobody made one.
    """

    model: Deployed = field(repr=False)
    data: DeviceSplit = field(repr=False)
    labels: tuple[str, ...]
    weights_digest: str
    dataset: str
    split: Literal["val", "test"]
    artefact: Artefact = "checkpoint"
    precision: ExportPrecision = "float32"
    gradients: Literal["copy", "none"] | None = None
    doubts: tuple[str, ...] | None = None
    takes: str | None = None
    data_digest: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is run, beside the clean images.

    Args:
        threat_model: the ball in which attacks look.
        attacks: in the order in which they run; only what is still right goes on to the next.
        on_doubt: run after them where a sanity check fails, because their figure would flatter, or where there are too
            few images for the checks; they then cost little.
        seed: all randomness comes from it.
        batch_size: halved whenever memory runs out.
        legacy_attacks: names of those that measure the legacy accuracy of a model with dummies; none leaves it out.
        sanity: whether the sanity checks run; they need gradients.
        surrogate: the model's own pre-dummy weights, for the sanity check on transfer.
        val: clean images for the thresholds of the rejection study; None leaves out all that an attack on
            dummy mass or confidence would tell.
        eight_bit: whether attacks may only make images of 8 bits: what can be sent to a server, and all that an
            exported file takes.
        processes: those that share the work; the rest of the plan is the same in all of them.
        keep_images: whether the images that break an example are kept, at 4 bytes for each value.
    """

    threat_model: ThreatModel
    attacks: tuple[Attack, ...]
    on_doubt: tuple[Attack, ...] = ()
    seed: int = 0
    batch_size: int = BATCH
    legacy_attacks: tuple[str, ...] = ("apgd-ce",)
    sanity: bool = True
    surrogate: Deployed | None = field(default=None, repr=False)
    val: DeviceSplit | None = field(default=None, repr=False)
    eight_bit: bool = False
    keep_images: bool = False
    processes: ProcessGroup = field(default=ProcessGroup(), repr=False)


@dataclass(frozen=True)
class Measured:
    """A report, what is known of every example that it counts, and the attacks by their number in `broken_by`."""

    report: RobustnessReport
    examples: Examples = field(repr=False)
    attacks: tuple[str, ...]


def evaluate(
    subject: Subject, plan: Plan, output: Output, state: EvaluationState | None = None
) -> RobustnessReport:
    """The report of `measure`, which says what is raised."""
    return measure(subject, plan, output, state).report


@exact_float32()
def measure(
    subject: Subject,
    plan: Plan,
    output: Output,
    state: EvaluationState | None = None,
    smaller: Examples | None = None,
    keeper: ExampleKeeper | None = None,
) -> Measured:
    """Accuracy per example: right on the clean image AND under every attack that was run.

    Args:
        smaller: what the same attacks have found on the same images in a smaller ball of the same norm.
        state: where to keep what is known after every attack; what is there already is gone on with.
        keeper: keeps a few of the images that the attacks make.

    Raises:
        UsageError: the model's output does not have C columns (a raw 2C model, say) or it is in train mode; a
            label is not one of C, or there are no images; eps is larger than any image; or the interrupted
            evaluation was another one.
        VerificationError: the model answers NaN to clean images.
    """
    require_measurable(subject, plan.threat_model)
    started = time.monotonic()
    runner = _runner(subject, plan, output)
    with frozen(subject.model):
        examples = _clean(runner, plan)
        if smaller is not None:
            examples.inherit(smaller)
        attack_run = AttackRun(runner, examples, state, keeper)
        attack_run.resume()
        earlier = sum(result.seconds for result in attack_run.results)
        attack_run.run(plan.attacks)
        sanity = check_sanity(runner, examples, plan.surrogate, subject.gradients) if plan.sanity else ()
        if plan.on_doubt and (doubt := _doubt(plan, examples, sanity)):
            output.say(f"{doubt} Going on to slow attacks.")
            attack_run.run((*plan.attacks, *plan.on_doubt))
        studies = _studied(runner, plan, examples, sanity)
    seconds = earlier + time.monotonic() - started
    report = _report(subject, plan, examples, attack_run.results, studies, seconds)
    return Measured(report, examples, tuple(attack.name for attack in (*plan.attacks, *plan.on_doubt)))


def _doubt(plan: Plan, examples: Examples, sanity: tuple[SanityCheck, ...]) -> str | None:
    """Why the attacks so far may have failed for a bad reason, a sentence; None where nothing says so."""
    if failed := [check.name for check in sanity if not check.passed]:
        return f"Gradient masking suspected: not so that {', '.join(failed)}."
    if plan.sanity and not sanity and bool(examples.right.any()):
        return (
            f"Gradient masking was not checked: too few images are right when clean ({ENOUGH} would be enough, and "
            "take less time)."
        )
    return None


def _runner(subject: Subject, plan: Plan, output: Output) -> Runner:
    """What runs the attacks of a plan; says so where some processes will have nothing to do."""
    model, data, processes = subject.model, subject.data, plan.processes
    batches = math.ceil(len(data) / plan.batch_size)
    if batches < processes.size:
        output.warn(
            f"Of {processes.size} devices {processes.size - batches} will have nothing to do: there are "
            f"{len(data)} images, in batches of {plan.batch_size}. A smaller "
            "--batch-size deals out more of them, and draws other random numbers."
        )
    ball = Ball.of(plan.threat_model, eight_bit=plan.eight_bit)
    return Runner(model, data, ball, plan.seed, Batches(plan.batch_size, output, processes), output)


def _clean(runner: Runner, plan: Plan) -> Examples:
    """What the clean images say. Raises VerificationError for NaN."""
    examples = Examples.of(runner, keep_images=plan.keep_images)
    if examples.undecided:
        raise VerificationError(
            f"The model answers NaN to {examples.undecided} clean images; nothing was measured.",
            "train it again, or load other weights",
        )
    return examples


@dataclass(frozen=True)
class _Studies:
    """What is measured beside the worst case."""

    sanity: tuple[SanityCheck, ...]
    floor: Floor | None
    legacy: float | None  # None where it was left out, or there are no dummies
    dummy_mass: DummyMass | None
    rejection: tuple[Rejection, ...]


def _studied(runner: Runner, plan: Plan, examples: Examples, sanity: tuple[SanityCheck, ...]) -> _Studies:
    """The studies of a plan, after all its attacks; ``sanity`` holds the checks that were made already."""
    has_legacy = _has_legacy(runner.model, plan)
    legacy = legacy_2c_accuracy(runner, examples, plan.legacy_attacks) if has_legacy else None
    mass = dummy_mass(runner, examples, adaptive=plan.val is not None)
    flagged = () if plan.val is None else rejection(runner, examples, plan.val)
    lowest = floor(runner, examples)  # the last one: it lies below what all others have left
    return _Studies(
        sanity=sanity if lowest is None else (*sanity, lowest[1]),
        floor=None if lowest is None else lowest[0],
        legacy=legacy,
        dummy_mass=mass,
        rejection=flagged,
    )


def _has_legacy(model: Deployed, plan: Plan) -> bool:
    return model.fold in ("max", "lse") and len(plan.legacy_attacks) > 0


def _fold_name(fold: Fold) -> Literal["max", "lse", "switch"] | None:
    if isinstance(fold, Switch):
        return fold.kind
    return None if fold == "none" else fold


def _report(
    subject: Subject,
    plan: Plan,
    examples: Examples,
    results: Sequence[AttackResult],
    studies: _Studies,
    seconds: float,
) -> RobustnessReport:
    total = len(subject.data)
    clean, survivors = int(examples.clean.sum()), int(examples.right.sum())
    return RobustnessReport(
        weights_digest=subject.weights_digest,
        dataset=subject.dataset,
        split=subject.split,
        artefact=subject.artefact,
        precision=subject.precision,
        gradients=subject.gradients,
        doubts=subject.doubts,
        takes=subject.takes,
        data_digest=subject.data_digest,
        lattice="8bit" if plan.eight_bit else None,
        examples=total,
        norm=plan.threat_model.norm,
        eps=plan.threat_model.eps,
        seed=plan.seed,
        clean_accuracy=clean / total,
        clean_interval=wilson(clean, total),
        worst_case_accuracy=survivors / total,
        worst_case_interval=wilson(survivors, total),
        legacy_2c_accuracy=studies.legacy,
        legacy_attacks=plan.legacy_attacks if _has_legacy(subject.model, plan) else (),
        dummy_mass=studies.dummy_mass,
        rejection=studies.rejection,
        sanity=studies.sanity,
        floor=studies.floor,
        broken_by_checks=examples.broken_by_checks or None,
        fold=_fold_name(subject.model.fold),
        per_class=_per_class(subject.labels, subject.data.labels, examples.clean, examples.right),
        attacks=tuple(results),
        seconds=round(seconds, 2),
        versions={
            "ducat-serve": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def require_measurable(subject: Subject, threat_model: ThreatModel) -> None:
    """Raise UsageError for what `evaluate` must refuse."""
    model, data, classes = subject.model, subject.data, len(subject.labels)
    if classes < 2:
        raise UsageError(
            "A decision needs 2 classes, and this model has one logit.",
            "have it return a logit for each class; of one logit z that is (0, z)",
        )
    if any(module.training for module in model.modules()):
        raise UsageError("The model is in train mode; what is deployed is in eval mode.", "call model.eval()")
    with torch.no_grad():
        logits = model(to_pixels(data.images[:1]))
    if logits.shape[1] != classes:
        raise UsageError(
            f"Only the deployed function may be evaluated: {classes} logits, but this model returns {logits.shape[1]}. "
            "Attacks on raw 2C logits say nothing about what is deployed.",
            "load the model with ducat_serve.load(path), which folds the dummies",
        )
    if len(data) == 0:
        raise UsageError("There are no images to measure on.")
    if not (int(data.labels.min()) >= 0 and int(data.labels.max()) < classes):
        outside = data.labels[(data.labels < 0) | (data.labels >= classes)][0]
        raise UsageError(f"Labels must be 0 to {classes - 1}, found {int(outside)}.")
    require_size("eps", threat_model.eps, threat_model.norm, math.prod(data.images.shape[1:]))


def _per_class(
    names: tuple[str, ...], labels: Tensor, clean: Tensor, right: Tensor
) -> tuple[ClassResult, ...]:
    results = []
    for index, name in enumerate(names):
        mine = labels == index
        count = int(mine.sum())
        results.append(
            ClassResult(
                label=name,
                examples=count,
                clean_accuracy=int(clean[mine].sum()) / count if count else None,
                worst_case_accuracy=int(right[mine].sum()) / count if count else None,
            )
        )
    return tuple(results)

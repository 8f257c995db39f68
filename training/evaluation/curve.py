"""Accuracy over eps: one evaluation in several balls, the smallest first, so that the curve never rises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ducat_serve.output import Output
from ducat_serve.report import CurvePoint, RobustnessReport
from ducat_serve.threat_model import ThreatModel, format_size
from training.evaluation.evaluate import Measured, Plan, Subject, measure
from training.evaluation.examples import Examples
from training.evaluation.kept import ExampleKeeper
from training.evaluation.state import EvaluationState


def measure_curve(
    subject: Subject,
    plan: Plan,
    sizes: Sequence[float],
    output: Output,
    state: EvaluationState | None = None,
    keeper: ExampleKeeper | None = None,
) -> Measured:
    """Measure at every radius of ``sizes``, in any order and at least one; the report is at that of ``plan``.

    An example that is broken at one radius is broken at all larger ones: the image that breaks it is in their balls
    too. So only what is left is attacked, and the worst case of the report is at most what `measure` alone would find.
    The legacy measure and the study of rejection are made at the plan's radius only; sanity checks decide at each
    whether slow attacks follow.

    Raises what `measure` does.
    """
    chosen = plan.threat_model.eps
    points: list[CurvePoint] = []
    smaller: Examples | None = None
    measured: dict[float, Measured] = {}
    for eps in sorted({*sizes, chosen}):
        threat_model = ThreatModel(norm=plan.threat_model.norm, eps=eps)
        at = plan if eps == chosen else _attacks_only(plan, threat_model)
        output.say(f"At {plan.threat_model.norm} {format_size(eps)}:")
        at_state = None if state is None else state.at(threat_model)
        # What breaks an image in a smaller ball is in the chosen one too; what does so in a larger ball need not be.
        found = measure(subject, at, output, at_state, smaller, keeper if eps <= chosen else None)
        measured[eps], smaller = found, found.examples
        points.append(_point(found.report))
    result = measured[chosen]
    return replace(result, report=result.report.model_copy(update={"curve": tuple(points)}))


def _attacks_only(plan: Plan, threat_model: ThreatModel) -> Plan:
    return replace(plan, threat_model=threat_model, legacy_attacks=(), val=None)


def _point(report: RobustnessReport) -> CurvePoint:
    return CurvePoint(
        eps=report.eps,
        worst_case_accuracy=report.worst_case_accuracy,
        worst_case_interval=report.worst_case_interval,
    )

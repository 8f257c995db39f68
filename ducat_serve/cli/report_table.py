"""A robustness report for people, on stdout."""

from __future__ import annotations

from ducat_serve.checklist import tick_off
from ducat_serve.output import Output
from ducat_serve.report import Artefact, RobustnessReport
from ducat_serve.report_text import (
    accuracies,
    broken_by_checks_in_words,
    doubts,
    dummy_mass_in_words,
    other_threat_model,
    server_access,
)
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import format_size

_WHERE: dict[Artefact, str] = {
    "checkpoint": "the deployed function",
    "onnx": "the exported file",
    "server": "the server's answers",
}
_SCORES = {"dummy_mass": "dummy mass", "confidence": "softmax confidence"}


def show_report(report: RobustnessReport, spec: ModelSpec | None, output: Output) -> None:
    """Print what was measured: accuracies, then dummy mass, flagging and sanity checks where there are any.

    ``spec`` is None for a model of others.
    """
    clean, *others = accuracies(report)
    after = [(f"after {a.name}", f"{a.worst_case_accuracy:.1%}", "") for a in report.attacks]
    where = _WHERE[report.artefact]
    output.table(
        f"{report.dataset}, {report.examples} {report.split} images, {report.norm} {format_size(report.eps)}"
        + ", attacks within images of 8 bits" * (report.lattice == "8bit"),
        (f"accuracy of {where}", "%", "95 % interval"),
        [clean, *after, *others],
    )
    for sentence in broken_by_checks_in_words(report):
        output.text(sentence)
    if (asked := server_access(report)) is not None:
        output.text(asked)
    if report.curve:
        output.table(
            "Accuracy over eps",
            ("eps", "worst case, %", "95 % interval"),
            [
                (
                    format_size(p.eps),
                    f"{p.worst_case_accuracy:.1%}",
                    "{:.1%} to {:.1%}".format(*p.worst_case_interval),
                )
                for p in report.curve
            ],
        )
    dummy_mass = dummy_mass_in_words(report)
    if dummy_mass is not None:
        output.text(f"Dummy mass. {dummy_mass}")
    if report.rejection:
        output.table(
            "Correct or flagged, under an attack that must be wrong AND unflagged",
            ("flag by", "flags of clean val", "of clean", "under attack"),
            [
                (
                    _SCORES[r.score],
                    f"{r.flagged_val:.0%}",
                    f"{r.correct_or_flagged_clean:.1%}",
                    f"{r.correct_or_flagged:.1%}",
                )
                for r in report.rejection
            ],
        )
    for doubt in doubts(report):
        output.warn(doubt)
    for check in report.failed_checks:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in check.figures.items())
        output.text(f"{check.name}: {figures}.")
    if report.sanity and not (report.failed_checks or report.is_unchecked):
        so = "but the doubts above stay" if report.doubts else "no sign of gradient masking"
        output.text(f"All {len(report.sanity)} sanity checks passed ({so}).")
    for sentence in () if spec is None else other_threat_model(report, spec):
        output.text(sentence)
    ticked = tick_off(report)
    output.text(
        f"Checklist, {sum(holds for _, holds in ticked)} of {len(ticked)} (the documentation's page "
        "'Evaluate your own defence honestly' says why each):"
    )
    for item, holds in ticked:
        output.text(f"[{'x' if holds else ' '}] {item.name}: {item.text}")

"""A robustness report for people, on stderr."""

from __future__ import annotations

from ducat_serve.output import Output
from ducat_serve.report import MASKING, RobustnessReport
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import format_size

LEGACY = "legacy 2C: non-adaptive, not a robustness claim"
_SCORES = {"dummy_mass": "dummy mass", "confidence": "softmax confidence"}


def show_report(report: RobustnessReport, spec: ModelSpec, output: Output) -> None:
    """Print what was measured: accuracies, then dummy mass, flagging and sanity checks where there are any."""
    low, high = report.worst_case_interval
    rows = [
        ("clean", f"{report.clean_accuracy:.1%}", ""),
        *((f"after {a.name}", f"{a.worst_case_accuracy:.1%}", "") for a in report.attacks),
        ("worst case", f"{report.worst_case_accuracy:.1%}", f"{low:.1%} to {high:.1%}"),
    ]
    if report.legacy_2c_accuracy is not None:
        rows.append((LEGACY, f"{report.legacy_2c_accuracy:.1%}", ""))
    where = "the exported file" if report.artefact == "onnx" else "the deployed function"
    output.table(
        f"{report.dataset}, {report.examples} {report.split} images, {report.norm} {format_size(report.eps)}",
        (f"accuracy of {where}", "%", "95 % interval"),
        rows,
    )
    if report.dummy_mass is not None:
        mass = report.dummy_mass
        adaptive = (
            ""
            if mass.auroc_adaptive is None
            else f", {mass.auroc_adaptive:.2f} against one that also lowers dummy mass"
        )
        output.say(
            f"Dummy mass: {mass.clean_mean:.3f} clean, {mass.adversarial_mean:.3f} on images that fool the model; "
            f"AUROC {mass.auroc:.2f} against attacks that did not try to hide it{adaptive}."
        )
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
    for check in report.failed_checks:
        figures = ", ".join(f"{name} {value:.3g}" for name, value in check.figures.items())
        output.warn(f"{MASKING}: {check.expectation}, but here: {figures}.")
    if report.artefact == "checkpoint" and not report.sanity:
        output.say("No sanity checks: too few images are right to say anything.")
    if report.sanity and not report.failed_checks:
        output.say(f"All {len(report.sanity)} sanity checks passed (no sign of gradient masking).")
    if spec.threat_model.norm != report.norm or spec.threat_model.eps != report.eps:
        output.say(f"It was trained for {spec.threat_model}.")

"""The robustness report in plain words: said once, for the command line, the model card, the page and the API."""

from __future__ import annotations

from typing import Any, NamedTuple

from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import format_size

NOT_RECORDED = "not recorded"
DIGESTS = "detect damage, not forgery: whoever can rewrite a file can write digests that fit. Signatures are planned."
LEGACY = "legacy 2C: non-adaptive, not a robustness claim"


class Accuracy(NamedTuple):
    """One line of a table of accuracies, as text."""

    name: str
    accuracy: str
    interval: str = ""  # 95 %


def accuracies(report: RobustnessReport) -> list[Accuracy]:
    """Clean and worst case, and the legacy measure of a model with dummies."""
    low, high = report.worst_case_interval
    lines = [
        Accuracy("clean", f"{report.clean_accuracy:.1%}"),
        Accuracy("worst case", f"{report.worst_case_accuracy:.1%}", f"{low:.1%} to {high:.1%}"),
    ]
    if report.legacy_2c_accuracy is not None:
        lines.append(Accuracy(LEGACY, f"{report.legacy_2c_accuracy:.1%}"))
    return lines


def report_in_words(spec: ModelSpec) -> dict[str, Any]:
    """What was measured on this model, as sentences; nothing that is not in its report.

    ``sentences`` and ``warnings`` are lists of text; ``dummy_mass`` is one text, or None where none was measured.
    """
    report = spec.robustness
    if report is None:
        nothing = "Nobody measured the robustness of this model. Expect none."
        return {"sentences": [], "warnings": [nothing], "dummy_mass": None}
    return {
        "sentences": [
            _clean(report),
            _worst_case(report),
            how_measured(report, spec),
            *other_threat_model(report, spec),
        ],
        "warnings": doubts(report),
        "dummy_mass": dummy_mass_in_words(report),
    }


def _clean(report: RobustnessReport) -> str:
    return (
        f"Of {report.examples} {report.split} images of {report.dataset}, "
        f"{_percent(report.clean_accuracy)} were classified correctly."
    )


def _worst_case(report: RobustnessReport) -> str:
    low, high = report.worst_case_interval
    return (
        f"{_percent(report.worst_case_accuracy)} (95\u00a0% interval {_percent(low)} to {_percent(high)}) stayed "
        f"correct under every attack that was run. An attacker was allowed {_allowed(report.norm, report.eps)}."
    )


def _allowed(norm: str, eps: float) -> str:
    size = format_size(eps)
    return {
        "linf": f"any change of at most {size} per pixel and colour, where black is 0 and white is 1",
        "l2": f"any change of at most {size} in Euclidean length over the whole image, where black is 0 and white is 1",
        "l1": f"any change that adds up to at most {size} over all pixels, where black is 0 and white is 1",
    }[norm]


def how_measured(report: RobustnessReport, spec: ModelSpec) -> str:
    """By which attacks, and what they knew."""
    names = ", ".join(attack.name for attack in report.attacks)
    if report.artefact == "onnx":
        return (
            f"Measured on the exported file, in {report.precision}, by attacks that see only its scores ({names}). "
            "Attacks that know the weights are stronger, so expect less."
        )
    knows = " and the dummy classes" if spec.fold != "none" and report.knows_pairs else ""
    limited = " and could only make images of 8 bits" if report.lattice == "8bit" else ""
    return (
        f"Measured on the deployed function, in {report.precision}, by attacks that know its weights{knows}{limited} "
        f"({names}). "
        "It is a measurement, not a guarantee: a better attack may break more."
    )


def other_threat_model(report: RobustnessReport, spec: ModelSpec) -> list[str]:
    """One sentence where it was measured under another threat model than it was trained for."""
    if (report.norm, report.eps) == (spec.threat_model.norm, spec.threat_model.eps):
        return []
    measured = f"{report.norm} {format_size(report.eps)}"
    return [f"It was trained against changes of {spec.threat_model}, and measured under {measured}."]


def server_access(report: RobustnessReport) -> str | None:
    """What was asked of a running server, and what it told; None where none was measured."""
    server, classes = report.server, len(report.per_class)
    if server is None:
        return None
    every = server.classes_told == classes
    told = f"all {classes}" if every else f"only the best {server.classes_told} of {classes}"
    guessed = "" if every else "; attacks took the others to share the rest of the probability evenly"
    return (
        f"{server.queries} of {server.query_budget} queries were spent on {server.url}, each a PNG file. Its answers "
        f"told the confidences of {told} classes{guessed}."
    )


def doubts(report: RobustnessReport) -> list[str]:
    """Reasons to trust the measurement less."""
    warnings = [
        f"A check of the measurement failed ({check.name}): {check.expectation}, and that did not hold. The attacks "
        "may have failed for a reason that a better one would not (gradient masking suspected)."
        for check in report.failed_checks
    ]
    if report.artefact == "checkpoint" and not report.sanity:
        warnings.append("The measurement itself was not checked: too few images were right to say anything.")
    if report.split == "val":
        warnings.append(
            "Measured on val images, which had a say in training. Test images are the fair measure."
        )
    return warnings


def dummy_mass_in_words(report: RobustnessReport) -> str | None:
    """What dummy mass was worth as a signal; None where that was not measured."""
    mass = report.dummy_mass
    if mass is None:
        return None
    hidden = (
        ""
        if mass.auroc_adaptive is None
        else f", and with {mass.auroc_adaptive:.2f} where the attack also lowered it"
    )
    return (
        f"In the measurement it was {_percent(mass.clean_mean)} on average for unchanged images, and "
        f"{_percent(mass.adversarial_mean)} for changed ones that fooled the model. It told the two apart with an "
        f"AUROC of {mass.auroc:.2f}{hidden}; 0.5 is no better than a coin."
    )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"

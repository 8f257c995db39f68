"""The model card: what an exported model is and what was measured on it, as Markdown for people."""

from __future__ import annotations

from typing import Any

from ducat_serve.images import RESIZE_POLICY
from ducat_serve.report import MASKING, NOT_MEASURED, RobustnessReport
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import format_size

_METHOD = {
    "off": "no dummy classes",
    "paper": "DUCAT as published (arXiv 2410.12671): 2C logits, deployed through the max-fold",
    "folded": "DUCAT, folded: inner attack and loss on folded posteriors, deployed through the lse-fold",
}


def model_card(spec: ModelSpec, name: str) -> str:
    """The card of the model file ``name``. No dates and no paths: the same spec gives the same text."""
    recipe: Any = spec.training.get("recipe", {})
    height, width = spec.image_size
    sections = [
        f"# {name}",
        f"Image classifier: {spec.network}, {spec.num_classes} classes, {height}x{width} pixels, "
        f"{'greyscale' if spec.channels == 1 else 'RGB'}.",
        "## Robustness",
        *_robustness(spec, name),
        "## Training",
        f"- Method: {recipe.get('method', 'pgd-at')}, {_METHOD.get(recipe.get('ducat'), 'not recorded')}\n"
        f"- Data: {spec.training.get('data')}\n"
        f"- Threat model in training: {spec.threat_model}\n"
        f"- {recipe.get('epochs')} epochs, batch {recipe.get('batch_size')}, seed {recipe.get('seed')}",
        "## Use",
        f"- Input `images`: uint8 [batch, {height}, {width}, {spec.channels}]. {RESIZE_POLICY}\n"
        f"- Outputs: `logits` float32 [batch, {spec.num_classes}], `label` int64 [batch], "
        "`dummy_mass` float32 [batch]. Confidence is the softmax of `logits`.\n"
        "- The threat model covers the pixels that the network sees: what resizing or decoding of a manipulated "
        "file does is outside of it.\n"
        "- Outside of the ball above, and on other data, nothing is promised.",
        "## Labels",
        ", ".join(spec.labels),
        f"Weights: SHA-256 `{spec.weights_digest}`.",
    ]
    return "\n\n".join(sections) + "\n"


def _robustness(spec: ModelSpec, name: str) -> list[str]:
    report = spec.robustness
    if report is None:
        how = (
            "Measure its checkpoint with `ducat evaluate`, and export again."
            if spec.precision == "float32"
            else f"`ducat evaluate {name}` measures it, by its scores."
        )
        return [f"**{NOT_MEASURED.capitalize()}.** {how}"]
    return [
        f"{_knowledge(spec, report)} {report.norm} {format_size(report.eps)} on {report.examples} {report.split} "
        f"images of {report.dataset}, seed {report.seed}.",
        _accuracies(report),
        *(
            f"**{MASKING.capitalize()}**: {check.expectation}, which did not hold."
            for check in report.failed_checks
        ),
        *_detection(report),
    ]


def _knowledge(spec: ModelSpec, report: RobustnessReport) -> str:
    """How much the attacks knew, as their names say."""
    if report.artefact == "onnx":
        return "Measured on this file by attacks that see its scores only:"
    knows = ", the fold and the dummies" if spec.fold != "none" and report.knows_pairs else ""
    return f"Measured on the deployed function by attacks that know the weights{knows}:"


def _accuracies(report: RobustnessReport) -> str:
    low, high = report.worst_case_interval
    rows = [
        "| | accuracy |",
        "|---|---|",
        f"| clean | {report.clean_accuracy:.1%} |",
        f"| **worst case** (95 %: {low:.1%} to {high:.1%}) | **{report.worst_case_accuracy:.1%}** |",
    ]
    if report.legacy_2c_accuracy is not None:
        rows.append(f"| legacy 2C: non-adaptive, not a robustness claim | {report.legacy_2c_accuracy:.1%} |")
    attacks = ", ".join(attack.name for attack in report.attacks)
    return "\n".join(rows) + f"\n\nAttacks: {attacks}."


def _detection(report: RobustnessReport) -> list[str]:
    mass = report.dummy_mass
    if mass is None:
        return []
    hiding = (
        ""
        if mass.auroc_adaptive is None
        else f", {mass.auroc_adaptive:.2f} against attacks that also lower it"
    )
    return [
        f"Dummy mass tells images that fool the model from clean ones with AUROC {mass.auroc:.2f}{hiding}: "
        "a signal, not a defence."
    ]

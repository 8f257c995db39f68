"""The model card: what an exported model is and what was measured on it, as Markdown for people."""

from __future__ import annotations

from pathlib import Path

from ducat_serve import atomic
from ducat_serve.errors import UsageError
from ducat_serve.images import RESIZE_POLICY
from ducat_serve.report import NOT_MEASURED, Artefact, RobustnessReport
from ducat_serve.report_text import (
    DIGESTS,
    NOT_RECORDED,
    accuracies,
    broken_by_checks_in_words,
    corruptions_in_words,
    doubts,
    dummy_mass_in_words,
    floor_in_words,
    how_measured,
    other_threat_model,
    resumptions_in_words,
    server_access,
    versions_in_words,
)
from ducat_serve.spec import ModelSpec, Switch
from ducat_serve.threat_model import format_size
from export.markdown import code, text

_METHOD = {
    "off": "no dummy classes",
    "paper": "DUCAT as published (arXiv 2410.12671): 2C logits, deployed through the max-fold",
    "folded": "DUCAT, folded: inner attack and loss on folded posteriors, deployed through the lse-fold",
}
_SCORES_ONLY = (
    " Attacks saw only the scores it answers with. Those that know its weights are stronger: expect less."
)
# What the digest in a report of somebody else's model is of.
_DIGEST: dict[Artefact, str] = {
    "checkpoint": "Weights: SHA-256 of the state_dict",
    "onnx": "File: SHA-256",
    "server": "Weights, as the server names them: SHA-256",
}


def model_card(spec: ModelSpec, name: str) -> str:
    """The card of the model file ``name``. No dates and no paths: the same spec gives the same text."""
    height, width = spec.image_size
    sections = [
        _title(spec),
        f"Image classifier: {text(spec.network)}, {spec.num_classes} classes, {height}x{width} pixels, "
        f"{'greyscale' if spec.channels == 1 else 'RGB'}. {_of_file(name)}",
        "## Robustness",
        *_robustness(spec, name),
        "## Training",
        *_how_trained(spec),
        "## Use",
        f"- Input `images`: uint8 [batch, {height}, {width}, {spec.channels}]. {RESIZE_POLICY}\n"
        f"- Outputs: `logits` float32 [batch, {spec.num_classes}], `label` int64 [batch], "
        "`dummy_mass` float32 [batch]. Confidence is the softmax of `logits`.\n"
        "- The threat model covers the pixels that the network sees: what resizing or decoding of a manipulated "
        "file does is outside of it.\n"
        "- Outside of the ball above, and on other data, nothing is promised." + _quantisation(spec),
        "## Labels",
        "\n".join(f"{index}. {code(label)}" for index, label in enumerate(spec.labels)),
        f"Weights: SHA-256 {code(spec.weights_digest)}. Digests {DIGESTS}",
    ]
    return "\n\n".join(sections) + "\n"


def _how_trained(spec: ModelSpec) -> list[str]:
    """Each tower of a two-tower model for itself: others may have trained one of them."""
    if spec.towers is None:
        return [(_imported(spec) if spec.is_imported else _training(spec)) + _provenance(spec)]
    standard, robust = spec.towers
    command = [f"- Mixed by: {code(spec.command)}"] if spec.command else []
    return [
        "\n".join([_towers(spec), *command]),
        "### Standard tower",
        *_how_trained(standard),
        "### Robust tower",
        *_how_trained(robust),
    ]


def _training(spec: ModelSpec) -> str:
    recipe = spec.recipe
    # Recipes are older than the methods; what they do not name was plain PGD adversarial training.
    method = recipe.get("method", "pgd-at") if recipe else NOT_RECORDED
    epochs, batch, seed = (text(recipe.get(key, NOT_RECORDED)) for key in ("epochs", "batch_size", "seed"))
    return (
        f"- Method: {text(method)}, {_METHOD.get(str(recipe.get('ducat')), NOT_RECORDED)}\n"
        f"- Data: {text(spec.training.get('data', NOT_RECORDED))}\n"
        f"- Threat model in training: {spec.threat_model}\n"
        f"- {epochs} epochs, batch {batch}, seed {seed}"
    )


def _imported(spec: ModelSpec) -> str:
    return (
        "- Trained by others, and imported: how, and on which images, is not known.\n"
        f"- Its classes are those of: {text(spec.training.get('data', NOT_RECORDED))}\n"
        f"- Threat model that it is meant for: {spec.threat_model}"
    )


def _title(spec: ModelSpec) -> str:
    data = spec.training.get("data")
    return f"# {text(spec.network)} for {text(data)}" if data else f"# {text(spec.network)}"


def card_path(model: Path) -> Path:
    """Where the card of a model file goes: beside it, as its name with .md.

    Raises UsageError where that is a text of somebody's own.
    """
    card = model.with_suffix(".md")
    if card.is_file() and not _is_card(card, model):
        raise UsageError(
            f"{card} is not the card of {model.name}, whose place it has.",
            "name another file with --out, or move that text",
        )
    return card


def _is_card(card: Path, model: Path) -> bool:
    return _of_file(model.name) in card.read_text(encoding="utf-8", errors="replace")


def _of_file(name: str) -> str:
    return f"File: {code(name)}."


def update_card(spec: ModelSpec, model: Path) -> None:
    """Write the card beside a model file anew; where there is none, none is wanted."""
    card = model.with_suffix(".md")
    if card.is_file() and _is_card(card, model):
        atomic.write_text(card, model_card(spec, model.name))


def _towers(spec: ModelSpec) -> str:
    """What the towers of a two-tower model are, and when which of them answers."""
    assert spec.towers is not None
    assert isinstance(spec.fold, Switch)
    standard, robust = spec.towers
    return (
        "- Two towers. "
        f"The standard tower ({text(standard.network)}, weights {code(standard.weights_digest)}) answers unless the "
        f"robust tower ({text(robust.network)}, weights {code(robust.weights_digest)}) is sure that it is wrong: "
        f"by a lead of {spec.fold.threshold:g}. `dummy_mass` is 1 where the robust tower answered, else 0."
    )


def _provenance(spec: ModelSpec) -> str:
    """A line for each thing that is recorded."""
    lines = {
        "Command": spec.command,
        "Network": _source(spec),
        "Weights" if spec.is_imported else "Start weights": _start_weights(spec),
        "Git revision of ducat-serve": spec.git_revision,
        "Versions": versions_in_words(spec),
        "Resumed by other code": resumptions_in_words(spec),
        "Digest of the data": spec.data_digest,
    }
    return "".join(f"\n- {name}: {code(value)}" for name, value in lines.items() if value)


def _source(spec: ModelSpec) -> str | None:
    """Of a network of others, how it is built again."""
    source = spec.network_source
    return (
        None if source is None else f"{source.package} {source.version or '(no version)'}: {source.rebuild}"
    )


def _start_weights(spec: ModelSpec) -> str | None:
    """Of a model that was trained from weights of others: what they are, their digest and their licence."""
    recipe = spec.recipe
    if "pretrained" not in recipe:
        return None
    digest, licence = recipe.get("initial_weights"), recipe.get("pretrained_licence", "unknown")
    return f"{recipe['pretrained']}, SHA-256 {digest}, licence: {licence}"


def _robustness(spec: ModelSpec, name: str) -> list[str]:
    report = spec.robustness
    if report is None:
        return [f"**{NOT_MEASURED.capitalize()}.** {_how_to_measure(spec, name)}", *_beside_float32(spec)]
    dummy_mass = dummy_mass_in_words(report)
    return [
        text(how_measured(report, spec)),
        *other_threat_model(report, spec),
        f"{report.norm} {format_size(report.eps)} on {report.examples} {report.split} images of "
        f"{text(report.dataset)}, seed {report.seed}:",
        _table(report),
        *broken_by_checks_in_words(report),
        *_beside_float32(spec),
        *floor_in_words(report),
        *(text(sentence) for sentence in corruptions_in_words(report.corruptions)),
        *(f"**Warning.** {text(doubt)}" for doubt in doubts(report)),
        *([] if dummy_mass is None else [f"Dummy mass is a signal, not a defence. {text(dummy_mass)}"]),
    ]


def _how_to_measure(spec: ModelSpec, name: str) -> str:
    command = code(f"ducat evaluate {name}")
    return {
        "float32": "Measure its checkpoint with `ducat evaluate`, and export again.",
        "float16": f"{command} measures it, by its scores.",
        "int8": f"{command} measures it, by its scores and through a differentiable copy of its graph.",
    }[spec.precision]


def _beside_float32(spec: ModelSpec) -> list[str]:
    """Of an int8 file, what was measured of it and of the checkpoint that it was made from."""
    if spec.quantisation is None:
        return []
    before = spec.quantisation.float32_robustness
    if before is None:
        return ["The float32 model that it was made from had not been measured."]
    rows = ["| | clean | worst case | measured by |", "|---|---|---|---|"]
    for precision, report in (("float32, the checkpoint", before), ("int8, this file", spec.robustness)):
        if report is None:
            rows.append(f"| {precision} | {NOT_MEASURED} | {NOT_MEASURED} | |")
            continue
        attacks = text(", ".join(attack.name for attack in report.attacks))
        rows.append(
            f"| {precision} | {report.clean_accuracy:.1%} | {report.worst_case_accuracy:.1%} "
            f"| {attacks}; {report.norm} {format_size(report.eps)}, {report.examples} {report.split} images, "
            f"seed {report.seed} |"
        )
    return [
        "Both precisions side by side. They are two functions: what was measured of one says nothing of the other.",
        "\n".join(rows),
    ]


def _quantisation(spec: ModelSpec) -> str:
    """How an int8 file was made; nothing for others."""
    record = spec.quantisation
    if record is None:
        return ""
    weights = (
        "weights of 7 bits, which are right on CPUs without an int8 dot product (VNNI) too"
        if record.reduced_range
        else "weights of 8 bits, for CPUs with an int8 dot product (VNNI): on others sums overflow"
    )
    return (
        f"\n- int8: activations of 8 bits, {weights}; head, fold and preprocessing in float32. Calibrated on "
        f"{record.calibration_images} train images, {record.attacked_images} of them attacked, seed {record.seed}, "
        f"SHA-256 of their pixels {code(record.calibration_digest)}"
    )


def report_card(name: str, report: RobustnessReport) -> str:
    """The card of a model that is not a file of ours: what was measured, and on which weights."""
    attacks = ", ".join(attack.name for attack in report.attacks)
    limited = ", which could only make images of 8 bits" if report.lattice == "8bit" else ""
    sections = [
        f"# {text(name)}",
        f"Measured on {report.examples} {report.split} images of {text(report.dataset)}, "
        f"{report.norm} {format_size(report.eps)}, seed {report.seed}, by {text(attacks)}{limited}. It is a "
        f"measurement, not a guarantee: a better attack may break more.{_SCORES_ONLY if report.scores_only else ''}",
        _table(report),
        *(text(sentence) for sentence in broken_by_checks_in_words(report)),
        *(text(sentence) for sentence in corruptions_in_words(report.corruptions)),
        *(text(line) for line in (server_access(report),) if line is not None),
        *(f"**Warning.** {text(doubt)}" for doubt in doubts(report)),
        f"{_DIGEST[report.artefact]} {code(report.weights_digest)}.",
    ]
    return "\n\n".join(sections) + "\n"


def _table(report: RobustnessReport) -> str:
    clean, worst_case, *others = accuracies(report)
    rows = [
        "| | accuracy |",
        "|---|---|",
        f"| {clean.name} | {clean.accuracy} |",
        f"| **{worst_case.name}** (95 %: {worst_case.interval}) | **{worst_case.accuracy}** |",
        *(f"| {text(line.name)} | {line.accuracy} |" for line in others),
    ]
    return "\n".join(rows)

"""Models side by side: what each of them measured, and which are not beaten on both counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ducat_serve.report import RobustnessReport

# Attacks that need dummies or a surrogate. Suites leave them out for models without, so that two models of one suite
# may differ in them. Spelt out, because they are loaded with torch; a test asks the attacks.
OF_SOME_MODELS = frozenset({"pair-margin-0", "pair-margin-4", "apgd-lse", "switch", "transfer"})
# What `standard` goes on to where a sanity check fails; for the same reasons.
ON_DOUBT = frozenset({"apgd-dlr", "pair-margin-1", "targeted", "square-warm", "square"})


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison; ``path`` is its file, or that of the report of a model of others."""

    name: str
    path: Path
    report: RobustnessReport | None
    weights_digest: str
    parameters: int | None  # None where it is not known
    bytes: int | None  # None of a model of others
    recipe: Mapping[str, Any] = field(
        default_factory=dict
    )  # that it was trained by; empty where it is not known


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The measured models that no other beats in one of clean and worst-case accuracy without losing the other.

    None where they were not measured alike: their numbers cannot be compared. A model whose report doubts its own worst
    case is not on the front, and beats nobody.
    """
    if differences(candidates):
        return []
    measured = [c for c in candidates if c.report and not (c.report.failed_checks or c.report.doubts)]
    return [c for c in measured if not any(_beats(other, c) for other in measured)]


def differences(candidates: Sequence[Candidate]) -> list[str]:
    """What was not the same when the models were measured, so that their numbers cannot be compared."""
    reports = [c.report for c in candidates if c.report is not None]
    if not reports:
        return []
    common = frozenset.intersection(*map(_attacks, reports))
    conditions: dict[str, set[Any]] = {
        "data": {(r.dataset, r.split) for r in reports},
        "images": {r.data_digest for r in reports} - {None},
        "number of images": {r.examples for r in reports},
        "threat model": {(r.norm, r.eps) for r in reports},
        "seed (which images)": {r.seed for r in reports},
        "knowledge (white-box or scores only)": {(r.artefact, r.gradients) for r in reports},
        "lattice": {r.is_within_8_bits for r in reports},
        "precision": {r.precision for r in reports},
        "attacks": {_attacks(r) for r in reports},
        "settings of attacks": {_settings(r, common) for r in reports},
        "legacy attacks": {r.legacy_attacks for r in reports if r.legacy_2c_accuracy is not None},
    }
    return [name for name, values in conditions.items() if len(values) > 1]


def corruption_differences(candidates: Sequence[Candidate]) -> bool:
    """Whether accuracies under corruptions are of other images, so that they cannot be compared."""
    found = [
        c.report.corruptions for c in candidates if c.report is not None and c.report.corruptions is not None
    ]
    conditions = {
        (f.source, f.generated_by, f.examples, f.seed, tuple(one.name for one in f.families)) for f in found
    }
    return len(conditions) > 1


def losses(old: RobustnessReport, new: RobustnessReport) -> list[str]:
    """In what a report replacing ``old`` says less, or something else; test images say more than val images."""
    is_fairer = (old.dataset, old.split, new.split) == (new.dataset, "val", "test")
    found = {
        "weaker attacks": _strength(new) < _strength(old) or _names(new) < _names(old),
        "attacks that could only make images of 8 bits": new.is_within_8_bits and not old.is_within_8_bits,
        "fewer images": new.examples < old.examples and not is_fairer,
        "another threat model": (new.norm, new.eps) != (old.norm, old.eps),
        "other data": (new.dataset, new.split) != (old.dataset, old.split) and not is_fairer,
    }
    return [what for what, true in found.items() if true]


def to_json(candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """One entry per model; accuracies are null where robustness was not measured."""
    front = {id(c) for c in pareto_front(candidates)}
    return [
        {
            "name": c.name,
            "file": str(c.path),
            "clean_accuracy": c.report.clean_accuracy if c.report else None,
            "dataset": c.report.dataset if c.report else None,
            "split": c.report.split if c.report else None,
            "examples": c.report.examples if c.report else None,
            "threat_model": {"norm": c.report.norm, "eps": c.report.eps} if c.report else None,
            "worst_case_accuracy": c.report.worst_case_accuracy if c.report else None,
            "worst_case_interval": list(c.report.worst_case_interval) if c.report else None,
            "floor_accuracy": c.report.floor.accuracy if c.report and c.report.floor else None,
            "corruption_accuracy": _corruptions(c, "accuracy"),
            "corruption_source": _corruptions(c, "source"),
            "corruptions_generated_by": _corruptions(c, "generated_by"),
            "legacy_2c_accuracy": c.report.legacy_2c_accuracy if c.report else None,
            "gradient_masking_suspected": bool(c.report.failed_checks) if c.report else None,
            "screening": c.report.is_screening if c.report else None,
            "pareto": id(c) in front,
            "parameters": c.parameters,
            "bytes": c.bytes,
            "weights_digest": c.weights_digest,
        }
        for c in candidates
    ]


def _corruptions(candidate: Candidate, field: str) -> Any:
    found = candidate.report.corruptions if candidate.report is not None else None
    return None if found is None else getattr(found, field)


def _attacks(report: RobustnessReport) -> frozenset[str]:
    """Only those that every model could be given count."""
    names = _names(report)
    return names - OF_SOME_MODELS - (ON_DOUBT if "closest-first" in names else frozenset())


def _settings(report: RobustnessReport, names: frozenset[str]) -> frozenset[tuple[str, str, float]]:
    """How long the attacks ``names`` were; their losses follow from the model."""
    return frozenset(
        (attack.name, setting, value)
        for attack in report.attacks
        if attack.name in names
        for setting, value in attack.settings.items()
        if not isinstance(value, str)
    )


def _names(report: RobustnessReport) -> frozenset[str]:
    return frozenset(attack.name for attack in report.attacks)


def _strength(report: RobustnessReport) -> tuple[int, int]:
    """Orders reports by their attacks: AutoAttack beside ours, `standard`, and screenings by their number."""
    names = _names(report)
    if report.is_screening:
        return (0, len(names))
    return (2, 0) if {"autoattack"} < names else (1, 0)


def _beats(other: Candidate, mine: Candidate) -> bool:
    a, b = other.report, mine.report
    assert a is not None
    assert b is not None
    pairs = (
        (a.clean_accuracy, b.clean_accuracy),
        (a.worst_case_accuracy, b.worst_case_accuracy),
    )
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)
